"""Memory is asked for by its bytes, and refused in one line before the system ends the process for it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from sybil.errors import OutOfMemory, one_line

WORTH_ASKING = 1 << 26
"""Bytes below which nobody looks how much is free."""
REMEDY = "lower max_new_tokens, gamma or the number of rows"
OF_WEIGHTS = "take a smaller model, or one in fewer bits (dtype), or device='cpu'"
"""The remedy where it is a model that doesn't fit."""
GROUPS = (
    (r"^0::/(.*)$", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        *(r"^\d+:memory:/(.*)$", "/sys/fs/cgroup/memory"),
        *("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
)
"""Control groups of version 2 and 1: how /proc/self/cgroup names them, where they lie, and their files."""
_REFUSALS = re.compile(
    r"can't allocate memory|out of memory|(?:calculation|multiplication) overflow|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


@contextlib.contextmanager
def taking(size: int, what: str, device: torch.device) -> Iterator[None]:
    """Around what allocates size bytes or more on the device for `what`. Raises OutOfMemory where they aren't free, or
    can't be had."""
    free = available() if device.type == "cpu" and size >= WORTH_ASKING else None
    if free is not None and size > free:
        raise OutOfMemory(f"{what} would take {size:,} bytes, and {free:,} are free: {REMEDY}")
    with as_out_of_memory(f"{what} would take {size:,} bytes"):
        yield


@contextlib.contextmanager
def as_out_of_memory(what: str, remedy: str = REMEDY) -> Iterator[None]:
    """What torch, numpy and Python say where memory can't be had, as OutOfMemory after `what`."""
    try:
        yield
    except OutOfMemory:
        raise
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).strip() or "there is no memory left").splitlines()[0]
        if not isinstance(error, MemoryError) and not _REFUSALS.search(reason):
            raise
        raise OutOfMemory(f"{what} ({one_line(reason)}): {remedy}") from None


def free(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device, the swap left out; None where unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return available() if device.type == "cpu" else None


def spare() -> int:
    """Bytes that the system can make room with besides what is available: swap, and what ZFS keeps of files beyond its
    least. Who takes them is slow, and isn't ended for it."""
    arc = Path("/proc/spl/kstat/zfs/arcstats")
    cached, least = (_number(arc, rf"^{name}\s+\d+\s+(\d+)$") or 0 for name in ("size", "c_min"))
    return 1024 * (_number(Path("/proc/meminfo"), r"^SwapFree:\s+(\d+) kB") or 0) + max(cached - least, 0)


def available() -> int | None:
    """Bytes that this process may still take, by the system's and its control groups' word; None where unknown."""
    free = _number(Path("/proc/meminfo"), r"^MemAvailable:\s+(\d+) kB")
    known = [] if free is None else [1024 * free]
    for pattern, root, most, used, files in GROUPS:
        for group in _folders(pattern, Path(root)):
            limit, taken = (_number(group / name, r"^(\d+)$") for name in (most, used))
            if limit is not None and taken is not None:
                dropped = _number(group / "memory.stat", rf"^{files} (\d+)$")  # by the system, when memory is asked for
                known.append(max(limit - taken + (dropped or 0), 0))
    return min(known, default=None)


def _folders(pattern: str, root: Path) -> list[Path]:
    """Of this process's control group and those around it."""
    try:
        inside = re.search(pattern, Path("/proc/self/cgroup").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        return []
    own = root / inside[1] if inside else root
    return [each for each in (own, *own.parents) if each.is_relative_to(root)]


def _number(file: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, file.read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
