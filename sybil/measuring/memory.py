"""Peak memory of a stretch of work: the GPU allocator's, or this process's resident memory on Linux."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from sybil.decoding import Decoder
from sybil.models import Model
from sybil.models.operators.static import Held

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures the work in its block: with PeakMemory(device, models) as peak: ... Afterwards peak.growth is the peak
    in bytes above the start; None where it is unknown.

    models: the models that work in the block. On a GPU, a cache that an earlier generation has left them counts as
    growth, and so does the memory of their CUDA graphs, which torch doesn't count."""

    def __init__(self, device: torch.device, models: Sequence[Model] = ()) -> None:
        self._device, self._cuda, self._models = device, device.type == "cuda", models
        self.growth: int | None = None

    def __enter__(self) -> PeakMemory:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            held = sum(each.nbytes for each in idle(self._models))
            self._start: int | None = torch.cuda.memory_allocated(self._device) - held
        else:
            self._start = _resident("VmRSS") if _reset_peak() else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            graphs = sum(each.graph_bytes for each in idle(self._models))
            peak: int | None = torch.cuda.max_memory_allocated(self._device) + graphs
        else:
            peak = _resident("VmHWM")
        if peak is not None and self._start is not None:
            self.growth = max(peak - self._start, 0)


def idle(models: Sequence[Model]) -> list[Held]:
    """The caches, with their graphs, that models keep between generations on a GPU."""
    found = [getattr(model, "idle", None) for model in models]
    return list({id(each): each for each in found if isinstance(each, Held)}.values())


def release() -> None:
    """Return freed memory to the system, where that is possible. Freed memory that the process keeps would hide the
    next growth."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> bool:
    """Reset VmHWM, the kernel's peak of resident memory. False where the system can't do that (see proc(5),
    clear_refs)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int | None:
    try:
        rows = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(rows[field].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def weight_bytes(decoder: Decoder) -> int:
    """The bytes of all weights. Weights that the draft shares with the target count once."""
    return decoder.target.weight_bytes + (0 if decoder.draft is None else decoder.draft.weight_bytes)
