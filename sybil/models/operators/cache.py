"""Preallocated keys and values whose lengths are the state.

A token's place is its row's length. What lies beyond a row's length is garbage: never read, and
overwritten next time. So rolling back is assigning a smaller length, and rows may differ.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from sybil.allocation import taking
from sybil.transfer import CPU, count_to, upload

Windows = Collection[int | None]
"""The windows of a model's layers, each once."""


class KVCache:
    """Keys and values of every layer, each (batch, heads of keys and values, capacity, head size)."""

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Raises OutOfMemory."""
        shape = (layers, batch, kv_heads, capacity, head_size)
        self.nbytes = 2 * math.prod(shape) * dtype.itemsize
        with taking(self.nbytes, f"a cache of {batch} rows of {capacity} tokens", device):
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=CPU)
        self.capacity = capacity

    def write(self, layer: int, keys: Tensor, values: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Write (batch, kv_heads, count, head size) at the layout's places; the layer's keys and values so far."""
        all_keys, all_values = self.keys[layer], self.values[layer]
        if layout.even:
            places = slice(layout.start, layout.end)
            all_keys[:, :, places] = keys
            all_values[:, :, places] = values
        else:
            all_keys[layout.rows, :, layout.positions] = keys.transpose(1, 2)
            all_values[layout.rows, :, layout.positions] = values.transpose(1, 2)
        return all_keys[:, :, : layout.end], all_values[:, :, : layout.end]

    def take_over(self, other: KVCache) -> None:
        """See models.Cache."""
        self.copy(other, int(other.lengths.max()))
        self.lengths = other.lengths

    def copy(self, other: KVCache, count: int) -> None:
        """Copies another cache's keys and values of the first count places."""
        self.keys[..., :count, :] = other.keys[..., :count, :]
        self.values[..., :count, :] = other.values[..., :count, :]


def check_fit(held: int, count: int, capacity: int) -> None:
    """Raises IndexError where count tokens after those held find no place: torch drops a single one without a word."""
    if held + count > capacity:
        raise IndexError(f"{count} tokens after {held} others don't fit a cache of {capacity}")


class Layout:
    """Where the next count tokens of each row go, and which keys each of them sees.

    positions: (batch, count); masks: for each of the windows (None: no window) a mask (batch, 1, count, end), True
    where a token may look, or None where it may look everywhere."""

    def __init__(self, lengths: Tensor, count: int, device: torch.device, windows: Windows = (None,)) -> None:
        counts = lengths.tolist()
        self.start, self.end = max(counts), max(counts) + count
        self.even = min(counts) == self.start
        self.positions = upload(lengths[:, None] + count_to(count), device)
        self.rows = torch.arange(len(counts), dtype=torch.int64, device=device)[:, None]
        self.masks: dict[int | None, Tensor | None] = dict.fromkeys(windows)
        for window in self.masks:
            windowed = window is not None and window < self.end
            if count > 1 or not self.even or windowed:
                self.masks[window] = _mask(self.positions, self.end, window)

    @classmethod
    def static(cls, lengths: Tensor, count: int, end: int, windows: Windows = (None,)) -> Layout:
        """A layout whose shapes depend on count and end only, lengths (batch,) being read where they are: on the
        device, which may be a GPU that replays what follows with other lengths."""
        layout = cls.__new__(cls)
        layout.even, layout.start, layout.end = False, 0, end
        layout.positions = lengths[:, None] + torch.arange(count, dtype=torch.int64, device=lengths.device)
        layout.rows = torch.arange(len(lengths), dtype=torch.int64, device=lengths.device)[:, None]
        layout.masks = {window: _mask(layout.positions, end, window) for window in windows}
        return layout


def _mask(positions: Tensor, end: int, window: int | None) -> Tensor:
    """(batch, 1, count, end), True where the token at a position may look."""
    keys, at = torch.arange(end, dtype=torch.int64, device=positions.device), positions[..., None]
    seen = keys <= at
    if window is not None:
        seen &= keys > at - window
    return seen[:, None]
