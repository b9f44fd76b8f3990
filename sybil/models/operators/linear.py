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
    (a scale a call): for drafts, whose output decides nothing."""
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


class PackagedLinear:
    """A library's product, and the activation behind it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation, way: Packaged) -> None:
        self.product, self.activation = way.make(weight, bias), activation

    def __call__(self, x: Tensor) -> Tensor:
        return activate(self.product(x), self.activation)


class Int8Linear:
    """torch's quantised product."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        scales, rounded = quantise(weight)
        zeros = torch.zeros(len(scales), dtype=torch.int64, device=scales.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # its making is deprecated, its product isn't
            quantised = torch._make_per_channel_quantized_tensor(rounded, scales, zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.float())
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        dtype, x = x.dtype, x.float()
        if math.isfinite(x.sum()):
            out = torch.ops.quantized.linear_dynamic(x, self.packed, True)
        else:
            rows = x.isfinite().all(-1, keepdim=True)  # torch would round what is no number to one
            out = torch.ops.quantized.linear_dynamic(torch.where(rows, x, 0.0), self.packed, True)
            out = torch.where(rows, out, math.nan)
        return activate(out.to(dtype), self.activation)
