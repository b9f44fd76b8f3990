"""Preallocated keys and values whose lengths are the state.

A token's place is its row's length. What lies beyond a row's length is garbage: never read, and
overwritten next time. So rolling back is assigning a smaller length, and rows may differ.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from sybil.allocation import taking
from sybil.transfer import CPU, count_to, upload

WHOLE = 16
"""A mask's rows lie a multiple of so many numbers apart: GPUs' attention copies every other mask, layer by layer."""


@dataclass(frozen=True, slots=True)
class Masks:
    """How a model's masks are made, once a forward for all layers. dtype: the model's. windows: those of its layers,
    each once. shared: how many queries' heads share a head of keys; attention takes them as so many times more queries
    (operators.attention), so that a mask stands in them that often."""

    dtype: torch.dtype
    windows: Collection[int | None] = (None,)
    shared: int = 1

    def mask(self, positions: Tensor, end: int, window: int | None) -> Tensor:
        """(batch, 1, shared * count, end), to be added to scores: 0 where the token at a position (batch, count) may
        look, and the least number there is elsewhere."""
        seen = _mask(positions, -(-end // WHOLE) * WHOLE, window).repeat(1, 1, self.shared, 1)
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=positions.device)
        return mask.masked_fill_(~seen, torch.finfo(self.dtype).min)[..., :end]


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
        # no inference tensors, which nobody may write to outside of that mode: a later generation may be outside
        with taking(self.nbytes, f"a cache of {batch} rows of {capacity} tokens", device), torch.inference_mode(False):
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=CPU)
        self.capacity = capacity

    def write(self, layer: int, keys: Tensor, values: Tensor, layout: CacheLayout) -> tuple[Tensor, Tensor]:
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

    def clear(self) -> None:
        """Zeros in all places."""
        self.keys.zero_()
        self.values.zero_()

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


class CacheLayout:
    """Where the next count tokens of each row go, and which keys each of them sees.

    positions: (batch, count); masks: for each of the windows (None: no window) what Masks.mask() makes, or None where
    every token may look everywhere."""

    def __init__(self, lengths: Tensor, count: int, device: torch.device, masks: Masks) -> None:
        counts = lengths.tolist()
        self.start, self.end = max(counts), max(counts) + count
        self.even = min(counts) == self.start
        self.positions = upload(lengths[:, None] + count_to(count), device)
        self.rows = torch.arange(len(counts), dtype=torch.int64, device=device)[:, None]
        self.masks: dict[int | None, Tensor | None] = dict.fromkeys(masks.windows)
        for window in self.masks:
            windowed = window is not None and window < self.end
            if count > 1 or not self.even or windowed:
                self.masks[window] = masks.mask(self.positions, self.end, window)

    @classmethod
    def static(cls, lengths: Tensor, count: int, end: int, masks: Masks) -> CacheLayout:
        """A layout whose shapes depend on count and end only, lengths (batch,) being read where they are: on the
        device, which may be a GPU that replays what follows with other lengths."""
        layout = cls.__new__(cls)
        layout.even, layout.start, layout.end = False, 0, end
        layout.positions = lengths[:, None] + torch.arange(count, dtype=torch.int64, device=lengths.device)
        layout.rows = torch.arange(len(lengths), dtype=torch.int64, device=lengths.device)[:, None]
        layout.masks = {window: masks.mask(layout.positions, end, window) for window in masks.windows}
        return layout


def _mask(positions: Tensor, end: int, window: int | None) -> Tensor:
    """(batch, 1, count, end), True where the token at a position may look."""
    keys, at = torch.arange(end, dtype=torch.int64, device=positions.device), positions[..., None]
    seen = keys <= at
    if window is not None:
        seen &= keys > at - window
    return seen[:, None]
