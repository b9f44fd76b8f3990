"""Makes small tensors on the CPU, and moves them to a device without waiting for the device."""

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
    """Rows of unequal lengths as (batch, longest) int64 on the CPU, padded with zeros on the right."""
    width = max(map(len, rows))
    return integers([[*row, *[0] * (width - len(row))] for row in rows])


def count_to(end: int) -> Tensor:
    """0 .. end - 1 as int64 on the CPU."""
    return torch.arange(end, dtype=torch.int64, device=CPU)


def native(tensor: Any) -> Any:
    """A CPU tensor as a numpy array that shares its memory; any other tensor unchanged. Code that is valid for both
    kinds runs by numpy on the CPU.

    At the size of a vocabulary torch's CPU operators start threads. These cost more time than they save, and then spin
    for milliseconds, which slows the model's own threads down. numpy uses one thread."""
    return tensor.numpy() if isinstance(tensor, Tensor) and tensor.is_cpu else tensor


def back(numbers: Any) -> Tensor:
    """The tensor of an array or tensor that was computed from the results of native()."""
    return torch.from_numpy(numbers) if isinstance(numbers, np.ndarray) else numbers


def where(condition: Any, one: Any, other: Any) -> Any:
    """numpy's or torch's where(), by the condition's kind."""
    return np.where(condition, one, other) if isinstance(condition, np.ndarray) else torch.where(condition, one, other)


def counting(end: int, like: Any) -> Any:
    """0 .. end - 1, int64: an array if `like` is one, and else a tensor on the device of `like`."""
    if isinstance(like, np.ndarray):
        return np.arange(end, dtype=np.int64)
    return torch.arange(end, dtype=torch.int64, device=like.device)


def filled(like: Any, value: float) -> Any:
    """An array or tensor with the shape, dtype and kind of `like`, filled with one value."""
    return np.full_like(like, value) if isinstance(like, np.ndarray) else torch.full_like(like, value)


def cast(numbers: Any, like: Any) -> Any:
    """Numbers converted to the dtype of `like`."""
    return numbers.astype(like.dtype) if isinstance(numbers, np.ndarray) else numbers.to(like.dtype)


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """The same as torch.stack(rows, 1); numpy computes it on the CPU."""
    if rows[0].device.type == "cpu":
        return torch.from_numpy(np.stack([row.numpy() for row in rows], 1))
    return torch.stack(list(rows), 1)


def drawn_at(device: torch.device) -> torch.device:
    """The device on which tokens are drawn from a model's logits, for a model on `device`. Draws need sums in float64,
    which mps lacks, so a model on mps has its tokens drawn on the CPU."""
    return CPU if device.type == "mps" else device


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy from pageable memory to a GPU would wait for all work queued before it. So the
    tensor is copied to page-locked memory first, from which the GPU fetches it asynchronously."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
