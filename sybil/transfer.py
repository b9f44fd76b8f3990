"""Small tensors: made on the CPU, moved to a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")


def integers(values: Sequence[Any]) -> Tensor:
    """Nested sequences of integers as int64 on the CPU, whatever torch's default device and dtype are."""
    return torch.tensor(values, dtype=torch.int64, device=CPU)


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of unequal lengths as (batch, longest) int64, likewise, zeros after a row's own."""
    width = max(map(len, rows))
    return integers([[*row, *[0] * (width - len(row))] for row in rows])


def count_to(end: int) -> Tensor:
    """0 .. end - 1, likewise."""
    return torch.arange(end, dtype=torch.int64, device=CPU)


def native(tensor: Any) -> Any:
    """A tensor as numpy's array where it is on the CPU; anything else as it is: for what both say alike.

    At the size of a vocabulary torch's operators call threads, which cost more than they bring there, and look out for
    more work for milliseconds, in the way of the model's; numpy's keep to their own."""
    return tensor.numpy() if isinstance(tensor, Tensor) and tensor.is_cpu else tensor


def back(numbers: Any) -> Tensor:
    """What native() gave, or what was computed of it, as a tensor."""
    return torch.from_numpy(numbers) if isinstance(numbers, np.ndarray) else numbers


def where(condition: Any, one: Any, other: Any) -> Any:
    """numpy's or torch's."""
    return np.where(condition, one, other) if isinstance(condition, np.ndarray) else torch.where(condition, one, other)


def counting(end: int, like: Any) -> Any:
    """0 .. end - 1, int64: numpy's, or torch's on its device, as the numbers given."""
    if isinstance(like, np.ndarray):
        return np.arange(end, dtype=np.int64)
    return torch.arange(end, dtype=torch.int64, device=like.device)


def filled(like: Any, value: float) -> Any:
    """As many numbers of the same dtype, all of one value."""
    return np.full_like(like, value) if isinstance(like, np.ndarray) else torch.full_like(like, value)


def cast(numbers: Any, like: Any) -> Any:
    """Numbers in the other ones' dtype."""
    return numbers.astype(like.dtype) if isinstance(numbers, np.ndarray) else numbers.to(like.dtype)


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """torch.stack(rows, 1)."""
    if rows[0].device.type == "cpu":
        return torch.from_numpy(np.stack([row.numpy() for row in rows], 1))
    return torch.stack(list(rows), 1)


def drawn_at(device: torch.device) -> torch.device:
    """Where tokens are drawn of the logits of a model on that device. They are drawn by sums in float64, which mps
    lacks: its logits come to the CPU."""
    return CPU if device.type == "mps" else device


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. From ordinary memory a GPU would first finish what it was asked before; from
    page-locked memory it fetches the numbers when their turn comes."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
