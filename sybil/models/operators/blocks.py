"""One layer's weights, and how they are made from a mapping of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sybil.models.operators.linear import Linear, Way, WideLinear, is_half, linear, nbytes
from sybil.models.shape import Activation, Shape

Observe = Callable[[str, Tensor], None]
"""A function that is called with a product's name and inputs each time the product computes."""


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation over the last dimension, or root mean square normalisation (rms). The result has the weight's
    dtype."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float
    rms: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.rms:
            return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.epsilon).to(x.dtype)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer's weights."""

    norms: Mapping[str, Norm]
    """The layer's norms, by the names that Shape.norms() gives."""
    query_key_value: Linear
    attention_out: Linear
    mlp_in: Linear
    """The MLP's first product, with its activation."""
    mlp_up: Linear | None
    """In a gated layer, the product whose outputs the activations are multiplied by; None elsewhere."""
    mlp_out: Linear


class BlockMaker:
    """Makes products, norms and blocks from weights by name, and counts the bytes that they take.

    way: how products are computed, see operators.linear. observe: called with each product's inputs, or None."""

    def __init__(
        self, shape: Shape, weights: Mapping[str, Tensor], way: Way | None = None, observe: Observe | None = None
    ) -> None:
        self.shape, self.weights, self.way, self.observe = shape, weights, way, observe
        self.weight_bytes = 0

    def take(self, name: str) -> Tensor:
        tensor = self.weights[name]
        self.weight_bytes += tensor.nbytes
        return tensor

    def bias(self, name: str) -> Tensor | None:
        return self.take(f"{name}.bias") if f"{name}.bias" in self.weights else None

    def norm(self, name: str) -> Norm:
        return Norm(self.take(f"{name}.weight"), self.bias(name), self.shape.epsilon, self.shape.norm == "rms")

    def product(self, name: str, activation: Activation = "none") -> Linear:
        return self.linear(name, self.weights[f"{name}.weight"], self.bias(name), activation)

    def linear(self, name: str, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> Linear:
        """The product of that name, or a part of it."""
        self.weight_bytes += nbytes(weight, self.way)
        return self._observed(name, linear(weight, bias, activation, self.way))

    def head(self, name: str, weight: Tensor) -> Linear:
        """The product that gives the logits. They are float32 or wider, except those of a draft in few bits."""
        self.weight_bytes += nbytes(weight, self.way)
        bias, is_plain = (self.bias(name) if name == "head" else None), self.way in (None, "packed", "plain")
        if is_plain and is_half(weight):
            return self._observed(name, WideLinear(weight, bias))
        return self._observed(name, linear(weight, bias, way=self.way))

    def _observed(self, name: str, product: Linear) -> Linear:
        return product if self.observe is None else _Observed(product, name, self.observe)

    def block(self, layer: int) -> Block:
        mlp_in, mlp_up = self._gate_and_up(f"{layer}.mlp_in")
        return Block(
            norms={name: self.norm(f"{layer}.{name}") for name in self.shape.norms()},
            query_key_value=self.product(f"{layer}.query_key_value"),
            attention_out=self.product(f"{layer}.attention_out"),
            mlp_in=mlp_in,
            mlp_up=mlp_up,
            mlp_out=self.product(f"{layer}.mlp_out"),
        )

    def _gate_and_up(self, name: str) -> tuple[Linear, Linear | None]:
        if not self.shape.gated:
            return self.product(name, self.shape.activation), None
        gate, up = self.weights[f"{name}.weight"].chunk(2)
        biases = self.bias(name)
        gate_bias, up_bias = (None, None) if biases is None else biases.chunk(2)
        self.weight_bytes += nbytes(up, self.way)  # it has the gate's inputs
        return self.linear(name, gate, gate_bias, self.shape.activation), linear(up, up_bias, way=self.way)


class Passing(Mapping[int, Block]):
    """A model's blocks, each made when it is needed and then dropped: for one pass over a model as large as memory."""

    def __init__(self, maker: BlockMaker) -> None:
        self._maker = maker

    def __getitem__(self, layer: int) -> Block:
        return self._maker.block(layer)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._maker.shape.layers))

    def __len__(self) -> int:
        return self._maker.shape.layers


@dataclass(frozen=True, slots=True)
class _Observed:
    """A product that passes its inputs to an Observe function."""

    product: Linear
    name: str
    observe: Observe

    def __call__(self, x: Tensor) -> Tensor:
        self.observe(self.name, x)
        return self.product(x)
