"""One way to multiply by a weight: prepacked for the processor where torch can, plainly elsewhere.

The packed products are the ones torch's own compiler emits for CPUs. They are underscored, so they are
wrapped here and nowhere else; with few rows they run at the memory's bandwidth where F.linear does not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.models.operators.packaged import Packaged
from sybil.models.shape import Activation
from sybil.models.storage import FORMATS, quantise

Way = Literal["packed", "int8", "plain"] | Packaged
Linear = Callable[[Tensor], Tensor]

_POSTFIX: dict[Activation, tuple[str, str]] = {
    "none": ("none", ""),
    "gelu_tanh": ("gelu", "tanh"),
    "gelu": ("gelu", "none"),
    "silu": ("swish", ""),
}
"""What oneDNN computes with a product. Its relu is left out: it gives 0 for NaN."""


def can_pack(weight: Tensor) -> bool:
    """Whether this torch has oneDNN's packed product for the weight (CPU; float32, or bfloat16 where it is fast)."""
    return (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (
            weight.dtype == torch.float32
            or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
    )


def linear(
    weight: Tensor, bias: Tensor | None = None, activation: Activation = "none", way: Way | None = None
) -> Linear:
    """x (..., inputs) -> activation(x @ weight.T + bias), weight being (outputs, inputs).

    way: None is packed where it can be done, and plain elsewhere. int8 rounds weights (a scale an output) and inputs
    (a scale a row): for drafts, whose output decides nothing."""
    if isinstance(way, Packaged):
        return PackagedLinear(weight, bias, activation, way)
    way = way or ("packed" if can_pack(weight) else "plain")
    if way == "packed":
        return PackedLinear(weight, bias, activation)
    return Int8Linear(weight, bias, activation) if way == "int8" else PlainLinear(weight, bias, activation)


def nbytes(weight: Tensor, way: Way | None) -> int:
    """What a weight takes as it is multiplied by."""
    if isinstance(way, Packaged):
        return way.nbytes(weight)
    return FORMATS["int8"].nbytes(*weight.shape) if way == "int8" else weight.nbytes


def activate(x: Tensor, activation: Activation) -> Tensor:
    """activation(x)."""
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "gelu":
        return F.gelu(x)
    if activation == "relu":
        return F.relu(x)
    return F.silu(x) if activation == "silu" else x


class PlainLinear:
    """F.linear."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        self.weight, self.bias, self.activation = weight, bias, activation

    def __call__(self, x: Tensor) -> Tensor:
        return activate(F.linear(x, self.weight, self.bias), self.activation)


class PackedLinear:
    """oneDNN's product with a weight in its own order."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.bias, self.activation = bias, activation
        self._product = torch.ops.mkldnn._linear_pointwise
        self._name, self._algorithm = _POSTFIX.get(activation, _POSTFIX["none"])
        self._left: Activation = "none" if activation in _POSTFIX else activation

    def __call__(self, x: Tensor) -> Tensor:
        out = self._product(x, self.packed, self.bias, self._name, [], self._algorithm)
        return activate(out, self._left)

    def __reduce__(self) -> tuple[type[PackedLinear], tuple[Tensor, Tensor | None, Activation]]:
        """A copy or a pickle is packed anew: oneDNN's order is no tensor that torch could write down."""
        return PackedLinear, (self.packed.to_dense(), self.bias, self.activation)


AT_ONCE = 4096
"""Outputs of a weight that are widened at once."""


def is_half(weight: Tensor) -> bool:
    """Whether it is in half precision."""
    return weight.dtype in (torch.float16, torch.bfloat16)


class WideLinear:
    """The product with a weight in half precision, its output float32.

    A logit of 64 to 128 would be rounded to the next sixteenth in float16, to the next half in bfloat16, and the two
    best are often nearer than that."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, None if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        out = _in_float32(x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def _in_float32(x: Tensor, weight: Tensor) -> Tensor:
    """x (rows, inputs) @ weight.T (inputs, outputs), both in half precision, as float32: in one product where torch has
    it (GPUs, from torch 2.8), by parts of the weight elsewhere."""
    if x.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        product: Tensor = torch.ops.aten.mm.dtype(x, weight.T, torch.float32)
        return product
    return torch.cat([x.float() @ part.float().T for part in torch.split(weight, AT_ONCE)], -1)


class PackagedLinear:
    """A library's product, and the activation behind it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation, way: Packaged) -> None:
        self.product, self.activation = way.make(weight, bias), activation

    def __call__(self, x: Tensor) -> Tensor:
        return activate(self.product(x), self.activation)


class Int8Linear:
    """torch's quantised product, each row rounded by its own largest number.

    By itself torch rounds all rows of a call alike: a token's logits would depend on the tokens and rows beside it, and
    in a cascade on what the helper draws with the noise that the draft itself draws with. So rows are brought to one
    size, and a row of ones and one of minus ones say how far numbers go."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        scales, rounded = quantise(weight)
        zeros = torch.zeros(len(scales), dtype=torch.int64, device=scales.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # its making is deprecated, its product isn't
            quantised = torch._make_per_channel_quantized_tensor(rounded, scales, zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(quantised, None)
        self.bias, self.activation = None if bias is None else bias.float(), activation
        ones = torch.ones(1, weight.shape[1], dtype=torch.float32, device=weight.device)
        self._ends = torch.cat([ones, -ones])

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.float().flatten(0, -2)
        sizes = rows.abs().amax(-1, keepdim=True)
        broken = ~sizes.isfinite()
        scaled = (rows / sizes).masked_fill_(broken | (sizes == 0), 0.0)  # torch would round NaN to a number
        out = torch.ops.quantized.linear_dynamic(torch.cat([scaled, self._ends]), self.packed, True)[:-2]
        out = out * sizes.masked_fill(broken, math.nan)
        out = out if self.bias is None else out + self.bias
        return activate(out.view(*x.shape[:-1], -1).to(x.dtype), self.activation)
