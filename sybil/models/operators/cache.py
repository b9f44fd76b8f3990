"""A preallocated KV cache whose only state is its lengths.

A token is written at its row's length. What is beyond a row's length is garbage: it is never read, and is overwritten
by the next tokens. So a row is rolled back by assigning a smaller length, and rows may have different lengths."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from sybil.allocation import taking
from sybil.transfer import CPU, count_to, upload

WHOLE = 16
"""The rows of a mask are a multiple of so many numbers apart in memory. GPUs' attention copies any other mask in each
layer."""


@dataclass(frozen=True, slots=True)
class Masks:
    """Makes a model's attention masks, once in a forward for all layers. dtype: the model's. windows: the layers'
    window sizes, each once. shared: how many query heads share a head of keys. Attention takes them as so many times
    more queries (operators.attention), so each mask is repeated that often."""

    dtype: torch.dtype
    windows: Collection[int | None] = (None,)
    shared: int = 1

    def mask(self, positions: Tensor, end: int, window: int | None) -> Tensor:
        """The mask (batch, 1, shared * count, end) that is added to scores: 0 where the token at a position may see a
        key, and the dtype's least number elsewhere. positions: (batch, count)."""
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
        # inference tensors can't be written to outside inference mode, where a later generation may run
        with taking(self.nbytes, f"a cache of {batch} rows of {capacity} tokens", device), torch.inference_mode(False):
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=CPU)
        self.capacity = capacity

    def write(self, layer: int, keys: Tensor, values: Tensor, layout: CacheLayout) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values (batch, kv_heads, count, head size) at the layout's places. Returns the
        layer's keys and values so far."""
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
        """Fill all places with zeros."""
        self.keys.zero_()
        self.values.zero_()

    def take_over(self, other: KVCache) -> None:
        """See models.Cache."""
        self.copy(other, int(other.lengths.max()))
        self.lengths = other.lengths

    def copy(self, other: KVCache, count: int) -> None:
        """Copy the first `count` places of another cache's keys and values."""
        self.keys[..., :count, :] = other.keys[..., :count, :]
        self.values[..., :count, :] = other.values[..., :count, :]


def check_fit(held: int, count: int, capacity: int) -> None:
    """Raises IndexError where `count` tokens after the `held` ones exceed the capacity. torch itself would drop a
    single token silently."""
    if held + count > capacity:
        raise IndexError(f"{count} tokens after {held} others don't fit a cache of {capacity}")


class CacheLayout:
    """The places of each row's next `count` tokens, and the keys that each of them sees.

    positions: (batch, count). masks: for each window size (None for no window) the mask by Masks.mask(), or None where
    every token may see all keys."""

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
        """A layout whose shapes depend on count and end only. lengths (batch,) are read on the device. So a GPU can
        replay the following work with other lengths."""
        layout = cls.__new__(cls)
        layout.even, layout.start, layout.end = False, 0, end
        layout.positions = lengths[:, None] + torch.arange(count, dtype=torch.int64, device=lengths.device)
        layout.rows = torch.arange(len(lengths), dtype=torch.int64, device=lengths.device)[:, None]
        layout.masks = {window: masks.mask(layout.positions, end, window) for window in masks.windows}
        return layout


def _mask(positions: Tensor, end: int, window: int | None) -> Tensor:
    """(batch, 1, count, end), True where the token at a position may see a key."""
    keys, at = torch.arange(end, dtype=torch.int64, device=positions.device), positions[..., None]
    seen = keys <= at
    if window is not None:
        seen &= keys > at - window
    return seen[:, None]
