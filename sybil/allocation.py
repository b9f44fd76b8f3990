"""Checks that memory is free before it is allocated. A request that is too large gets an error of one line; otherwise
the system might kill the process."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from sybil.errors import OutOfMemory, one_line

WORTH_ASKING = 1 << 26
"""Requests of fewer bytes are made without looking at how much memory is free."""
REMEDY = "lower max_new_tokens, gamma or the number of rows"
OF_WEIGHTS = "take a smaller model, or one in fewer bits (dtype), or device='cpu'"
"""The remedy in the message for a model that doesn't fit."""
GROUPS = (
    (r"^0::/(.*)$", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        *(r"^\d+:memory:/(.*)$", "/sys/fs/cgroup/memory"),
        *("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
)
"""Control groups of version 2 and of version 1: their lines in /proc/self/cgroup, their folder, and their files."""
_REFUSALS = re.compile(
    r"can't allocate memory|out of memory|(?:calculation|multiplication) overflow|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


@contextlib.contextmanager
def taking(size: int, what: str, device: torch.device) -> Iterator[None]:
    """A context manager around an allocation of `size` bytes or more on the device. `what` names the purpose in the
    message. Raises OutOfMemory where so many bytes aren't free, or where the allocation fails."""
    free = available() if device.type == "cpu" and size >= WORTH_ASKING else None
    if free is not None and size > free:
        raise OutOfMemory(f"{what} would take {size:,} bytes, and {free:,} are free: {REMEDY}")
    with as_out_of_memory(f"{what} would take {size:,} bytes"):
        yield


@contextlib.contextmanager
def as_out_of_memory(what: str, remedy: str = REMEDY) -> Iterator[None]:
    """A context manager that turns the memory errors of torch, numpy and Python into OutOfMemory. Its message begins
    with `what`."""
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
    """The bytes that this process may still take on a device, without swap; None where that is unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return available() if device.type == "cpu" else None


def spare() -> int:
    """The bytes that the system can free beyond those that it calls available: swap, and ZFS's file cache above its
    least size. A process that takes them becomes slow, but isn't killed."""
    arc = Path("/proc/spl/kstat/zfs/arcstats")
    cached, least = (_number(arc, rf"^{name}\s+\d+\s+(\d+)$") or 0 for name in ("size", "c_min"))
    return 1024 * (_number(Path("/proc/meminfo"), r"^SwapFree:\s+(\d+) kB") or 0) + max(cached - least, 0)


def available() -> int | None:
    """The bytes that this process may still take, as the system and the control groups state them; None where that is
    unknown."""
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
    """The folders of this process's control group and of the groups that contain it."""
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
