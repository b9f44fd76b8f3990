"""Products with a weight: prepacked for the processor where torch can do that, and by F.linear elsewhere.

The packed products are those that torch's own compiler emits for CPUs. Their names begin with an underscore, so they
are wrapped here and used nowhere else. With few rows they run at the memory's bandwidth, and F.linear doesn't."""

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
"""The activations that oneDNN computes with a product. Its relu isn't used, because it gives 0 for NaN."""


def can_pack(weight: Tensor) -> bool:
    """Whether this torch has oneDNN's packed product for the weight: on a CPU, in float32, or in bfloat16 where that is
    fast."""
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
    """The product x (..., inputs) -> activation(x @ weight.T + bias), where weight is (outputs, inputs).

    way: None is packed where that is possible, and plain elsewhere. int8 rounds weights (one scale for each output) and
    inputs (one scale for each row). It is for drafts, because the text's distribution doesn't depend on them."""
    if isinstance(way, Packaged):
        return PackagedLinear(weight, bias, activation, way)
    way = way or ("packed" if can_pack(weight) else "plain")
    if way == "packed":
        return PackedLinear(weight, bias, activation)
    return Int8Linear(weight, bias, activation) if way == "int8" else PlainLinear(weight, bias, activation)


def nbytes(weight: Tensor, way: Way | None) -> int:
    """The bytes that a weight takes in the form in which products use it."""
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
    """oneDNN's product with a weight in oneDNN's own order."""

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
        """A copy or a pickle is packed again, because torch can't save a weight in oneDNN's order."""
        return PackedLinear, (self.packed.to_dense(), self.bias, self.activation)


AT_ONCE = 4096
"""The number of a weight's outputs that are converted to float32 at once."""


def is_half(weight: Tensor) -> bool:
    """Whether the weight is in half precision."""
    return weight.dtype in (torch.float16, torch.bfloat16)


class WideLinear:
    """The product with a weight in half precision, with float32 output.

    In half precision a logit of 64 to 128 would be rounded to a sixteenth (float16) or to a half (bfloat16). The two
    largest logits are often nearer to each other than that."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, None if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        out = _in_float32(x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def _in_float32(x: Tensor, weight: Tensor) -> Tensor:
    """x (rows, inputs) @ weight.T (inputs, outputs) in float32, for x and weight in half precision. It is one product
    where torch has that (on GPUs, from torch 2.8), and is computed by parts of the weight elsewhere."""
    if x.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        product: Tensor = torch.ops.aten.mm.dtype(x, weight.T, torch.float32)
        return product
    return torch.cat([x.float() @ part.float().T for part in torch.split(weight, AT_ONCE)], -1)


class PackagedLinear:
    """A library's product, followed by the activation."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation, way: Packaged) -> None:
        self.product, self.activation = way.make(weight, bias), activation

    def __call__(self, x: Tensor) -> Tensor:
        return activate(self.product(x), self.activation)


class Int8Linear:
    """torch's quantised product, with each row of inputs rounded by the row's own largest number.

    By itself torch rounds all rows of a call by one scale. A token's logits would then depend on the tokens and rows
    beside it; in a cascade they would depend on what the helper draws, with the same noise as the draft. So rows are
    scaled to one size. A row of ones and a row of minus ones fix the range of numbers."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        scales, rounded = quantise(weight)
        zeros = torch.zeros(len(scales), dtype=torch.int64, device=scales.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the weight's packing is deprecated, the product isn't
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
