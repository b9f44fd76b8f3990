"""One way to multiply by a weight: prepacked for the processor where torch can, plainly elsewhere.

The packed products are the ones torch's own compiler emits for CPUs. They are underscored, so they are
wrapped here and nowhere else; with few rows they run at the memory's bandwidth where F.linear does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.models.shape import Activation
from sybil.models.storage import quantise

Way = Literal["packed", "int8", "plain"]
Linear = Callable[[Tensor], Tensor]

_POSTFIX: dict[Activation, tuple[str, str]] = {
    "none": ("none", ""),
    "gelu_tanh": ("gelu", "tanh"),
    "gelu": ("gelu", "none"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}
_PLAIN: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


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
    way = way or ("packed" if can_pack(weight) else "plain")
    if way == "packed":
        return _packed(weight, bias, activation)
    if way == "int8":
        return _int8(weight, bias, activation)
    plain = _PLAIN[activation]
    return lambda x: plain(F.linear(x, weight, bias))


def _packed(weight: Tensor, bias: Tensor | None, activation: Activation) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    product = torch.ops.mkldnn._linear_pointwise
    name, algorithm = _POSTFIX[activation]

    def apply(x: Tensor) -> Tensor:
        out: Tensor = product(x, packed, bias, name, [], algorithm)
        return out

    return apply


def _int8(weight: Tensor, bias: Tensor | None, activation: Activation) -> Linear:
    scales, rounded = quantise(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # its making is deprecated, its product isn't
        quantised = torch._make_per_channel_quantized_tensor(
            rounded, scales, torch.zeros(len(scales), dtype=torch.int64), 0
        )
        packed = torch.ops.quantized.linear_prepack(quantised, bias)
    product, plain = torch.ops.quantized.linear_dynamic, _PLAIN[activation]
    return lambda x: plain(product(x, packed, True))
