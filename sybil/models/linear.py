"""One way to multiply by a weight: prepacked for the processor where torch can, plainly elsewhere.

The packed products are the ones torch's own compiler emits for CPUs. They are underscored, so they are
wrapped here and nowhere else; with few rows they run at the memory's bandwidth where F.linear does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["none", "gelu_tanh", "gelu", "relu", "silu"]
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
    """Whether this torch has oneDNN's packed product for the weight (CPU, float32)."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(
    weight: Tensor, bias: Tensor | None = None, activation: Activation = "none", pack: bool | None = None
) -> Linear:
    """x (..., inputs) -> activation(x @ weight.T + bias), weight being (outputs, inputs).

    pack: None packs where it can be done; False never does."""
    if pack is None:
        pack = can_pack(weight)
    if not pack:
        plain = _PLAIN[activation]
        return lambda x: plain(F.linear(x, weight, bias))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    product = torch.ops.mkldnn._linear_pointwise
    name, algorithm = _POSTFIX[activation]

    def apply(x: Tensor) -> Tensor:
        out: Tensor = product(x, packed, bias, name, [], algorithm)
        return out

    return apply
