"""Rotary embedding's cosines and sines for the C forward. They are computed only as far as caches reach, because a
model's context may be far longer than any text."""

from __future__ import annotations

import torch
from torch import Tensor

from sybil.allocation import taking
from sybil.models.shape import Rotary, Shape
from sybil.transfer import CPU

CHUNK = 1024
"""Positions that are computed at once. The chunks are fixed, so the numbers don't depend on the caches' sizes."""


class Rotations:
    """The tables of a shape's rotations, (context, rotary size / 2) each. The system gives them memory only as they are
    written."""

    def __init__(self, shape: Shape) -> None:
        """Raises OutOfMemory where the tables are larger than a process's address space allows."""
        self._context, self._filled = shape.context, 0
        kinds = dict.fromkeys(attention.rotary for attention in shape.attentions if attention.rotary)
        with taking(0, f"rotations for a context of {shape.context} tokens", CPU):
            self._tables = {rotary: (self._empty(rotary), self._empty(rotary)) for rotary in kinds}

    def _empty(self, rotary: Rotary) -> Tensor:
        return torch.empty(self._context, rotary.size // 2, dtype=torch.float32, device=CPU)

    def __getitem__(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """(cosines, sines), valid for as many places as reach() has been called for."""
        return self._tables[rotary]

    def reach(self, places: int) -> None:
        """Compute the missing positions for a cache of `places` places. Raises OutOfMemory."""
        places = min(places, self._context)
        for start in range(self._filled, places, CHUNK):  # two threads may do this at once: both write the same numbers
            chunk = range(start, min(start + CHUNK, self._context))
            for rotary, tables in self._tables.items():
                for whole, part in zip(tables, rotary.tables(chunk), strict=True):
                    whole[chunk.start : chunk.stop] = part
            self._filled = chunk.stop
