"""What a commit may not worsen, starting: lower is better in every track here. Each sample is a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks import fresh
from benchmarks.measured import IS_FAST, check_installed
from benchmarks.parameters import VERSION, samples, track

PROCESSES = 3 if IS_FAST else 9
Starts = list[dict[str, Any]]
version = VERSION


def setup_cache() -> Starts:
    """What fresh.py said, a dictionary a process; the first, which finds nothing in the disk's cache, is left out."""
    starts = [start() for _ in range(PROCESSES + 1)][1:]
    check_installed(starts[0]["sybil"])
    return starts


def start(pair: str = "stdlib") -> dict[str, Any]:
    """What one fresh process said that loads the pair; raises RuntimeError with what it wrote where it failed."""
    command = [sys.executable, "-I", str(fresh.__file__), pair]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _read(starts: Starts, name: str, factor: float = 1.0) -> dict[str, Any] | float:
    """Samples, or NaN where the measured commit or the machine doesn't tell."""
    values = [start[name] for start in starts if start.get(name) is not None]
    return samples([factor * value for value in values]) if values else float("nan")


@track("s", "import time")
def track_import(starts: Starts) -> dict[str, Any] | float:
    """Seconds that `import sybil` takes, torch's own import included."""
    return _read(starts, "import")


@track("ms", "import time, torch left out")
def track_import_after_torch(starts: Starts) -> dict[str, Any] | float:
    """Milliseconds that `import sybil` takes after `import torch`."""
    return _read(starts, "own_import", 1e3)


@track("ms", "load time")
def track_load(starts: Starts) -> dict[str, Any] | float:
    """Milliseconds to load the embedded pair; its compiled forward is there already."""
    return _read(starts, "load", 1e3)


@track("MB", "peak memory")
def track_peak_memory(starts: Starts) -> dict[str, Any] | float:
    """The most memory that loading the embedded pair and generating 16 tokens take, above what the imports take."""
    return _read(starts, "peak_memory")
