"""Small tensors: made on the CPU, moved to a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


def integers(values: Sequence[Any]) -> Tensor:
    """Nested sequences of integers as int64 on the CPU, whatever torch's default device and dtype are."""
    return torch.tensor(values, dtype=torch.int64, device=CPU)


def count_to(end: int) -> Tensor:
    """0 .. end - 1, likewise."""
    return torch.arange(end, dtype=torch.int64, device=CPU)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. From ordinary memory a GPU would first finish what it was asked before; from
    page-locked memory it fetches the numbers when their turn comes."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
