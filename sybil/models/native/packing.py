"""Weights as the C forward reads them: in panels, front to back, in memory of huge pages."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor


class Arena:
    """Memory for weights in huge pages, where the system has them: a product reads through megabytes in one go."""

    CHUNK = 64 << 20

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)
        self.used = 0

    def take(self, source: Tensor) -> Tensor:
        """A copy of the tensor, contiguous and aligned to 64 bytes."""
        size = -(-source.nbytes // 64) * 64
        if size > len(self._free):
            if hasattr(mmap, "MADV_HUGEPAGE"):  # for private memory only
                chunk = mmap.mmap(-1, max(size, self.CHUNK), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                with contextlib.suppress(OSError):
                    chunk.madvise(mmap.MADV_HUGEPAGE)
            else:
                chunk = mmap.mmap(-1, max(size, self.CHUNK))
            self._free = torch.frombuffer(chunk, dtype=torch.uint8)
        place, self._free = self._free[: source.nbytes], self._free[size:]
        self.used += source.nbytes
        return place.view(source.dtype).view(source.shape).copy_(source)
