"""The KV cache of the C forward, and the forward's working memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sybil.allocation import taking
from sybil.errors import InvalidSetting
from sybil.models.native.structs import CacheStruct
from sybil.models.shape import Shape
from sybil.transfer import CPU


class NativeCache:
    """Keys (layers, batch, heads, head size, places) and values (layers, batch, heads, places, head size) in float32,
    and the C forward's working memory.

    capacity: the most tokens of a row. Vectors are stored whole, so `places` is the capacity rounded up to whole lanes,
    and the head size is rounded up likewise. The rounded numbers are used for addresses only, and differ between
    processors.
    """

    def __init__(self, shape: Shape, batch: int, capacity: int, lanes: int) -> None:
        """lanes: floats in a vector. Raises OutOfMemory, and InvalidSetting for numbers out of the C forward's
        range."""
        if batch < 1 or capacity < 0:
            raise InvalidSetting(f"a cache of {batch} rows of {capacity} tokens: ask for one row or more")
        places, head_size = (-(-size // lanes) * lanes for size in (capacity, shape.head_size))
        size = (shape.layers, batch, shape.kv_heads)
        self.nbytes = 8 * shape.layers * batch * shape.kv_heads * places * head_size
        with taking(self.nbytes, f"a cache of {batch} rows of {capacity} tokens", CPU):
            # torch.zeros would start OpenMP threads, which spin for milliseconds and take cores from the workers
            self.keys = torch.from_numpy(np.zeros((*size, head_size, places), dtype=np.float32))
            self.values = torch.from_numpy(np.zeros((*size, places, head_size), dtype=np.float32))
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=CPU)
        self.batch, self.capacity = batch, capacity
        self._bind()

    def _bind(self) -> None:
        places = self.keys.shape[-1]
        pointers = self.keys.data_ptr(), self.values.data_ptr()
        self._struct = CacheStruct(*pointers, self.keys.numel(), self.batch, self.capacity, places)
        self.address = ctypes.addressof(self._struct)
        self.scratch: Tensor | None = None
        self.scratch_address, self.floats, self.rows = 0, 0, 0

    def make_room(self, rows: int, floats: int) -> None:
        """Make the working memory large enough for a call of `rows` rows, which takes `floats` floats. Raises
        OutOfMemory."""
        with taking(4 * floats, f"a forward of {rows} tokens", CPU):
            self.scratch = torch.empty(floats, dtype=torch.float32, device=CPU)
        self.scratch_address, self.floats, self.rows = self.scratch.data_ptr(), floats, rows

    def take_over(self, other: NativeCache) -> None:
        """See models.Cache."""
        held = int(other.lengths.max())
        self.keys[..., :held] = other.keys[..., :held]
        self.values[..., :held, :] = other.values[..., :held, :]
        self.lengths = other.lengths

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy or a pickle, without addresses and working memory."""
        names = ("keys", "values", "lengths", "batch", "capacity", "nbytes")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()
