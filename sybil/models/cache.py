"""Preallocated keys and values whose lengths are the state.

A token's place is its row's length. What lies beyond a row's length is garbage: never read, and
overwritten next time. So rolling back is assigning a smaller length, and rows may differ.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """What the loop and the drafters know of a cache."""

    lengths: Tensor
    """(batch,) int64 on the CPU: how many tokens of each row are in. Assign to roll back."""


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
        shape = (layers, batch, kv_heads, capacity, head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64)

    def layout(self, count: int, window: int | None = None) -> Layout:
        """Where the next count tokens of each row go, and which keys each of them sees: the last window, or all."""
        return Layout(self.lengths, count, self.keys.device, window)

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


class Layout:
    """The places of count tokens after lengths, one row beside another. Made once a forward.

    positions: (batch, count); mask: (batch, 1, count, end), True where a token may look, or None
    where it may look everywhere."""

    def __init__(self, lengths: Tensor, count: int, device: torch.device, window: int | None = None) -> None:
        counts = lengths.tolist()
        self.start, self.end = max(counts), max(counts) + count
        self.even = min(counts) == self.start
        places = torch.arange(count)
        self.positions = (lengths[:, None] + places).to(device)
        self.rows = torch.arange(len(counts), device=device)[:, None]
        self.mask: Tensor | None = None
        windowed = window is not None and window < self.end
        if count > 1 or not self.even or windowed:
            keys, positions = torch.arange(self.end, device=device), self.positions[..., None]
            seen = keys <= positions  # (batch, count, end)
            if window is not None:
                seen &= keys > positions - window
            self.mask = seen[:, None]
