"""The process that does the work: part after part, each row told as soon as it is found.

`python -m benchmarks.gpu.work` is what benchmarks.gpu starts, and nobody else: it reads a plan and names of parts from
its standard input, and writes a JSON line a row to its standard output.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any

from benchmarks.gpu.rows import PARTS, GpuPlan, GpuRow

Rows = Callable[[GpuPlan, Any], Iterator[GpuRow]]


def run(part: str, plan: GpuPlan, device: str, parts: dict[str, Rows] | None = None) -> Iterator[GpuRow]:
    """The rows of one part; what it raises is its last row, and no further part's affair."""
    try:
        import torch

        yield from ((parts or {}).get(part) or _named(PARTS[part]))(plan, torch.device(device))
    except Exception as error:
        reason = str(error).strip().splitlines()
        yield GpuRow(part, "what it raised", error=f"{type(error).__name__}: {reason[0] if reason else ''}"[:300])


def _named(place: str) -> Rows:
    module, _, name = place.partition(":")
    found: Rows = getattr(import_module(module), name)
    return found


def released(device: str) -> bool:
    """Give memory back; False where the GPU answers no more, as after a kernel's fault: a new process is due then."""
    import torch

    gc.collect()
    if not device.startswith("cuda"):
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def serve(parts: Sequence[str], plan: GpuPlan, device: str, tell: Callable[[dict[str, Any]], None]) -> None:
    """Tell of every part that it begins, its rows, and that it is done."""
    for part in parts:
        began = time.perf_counter()
        tell({"begins": part})
        for row in run(part, plan, device):
            tell({"row": asdict(row)})
        tell({"done": part, "seconds": time.perf_counter() - began})
        if not released(device):
            return


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    asked = json.loads(sys.stdin.readline())
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no row

    def tell(line: dict[str, Any]) -> None:
        """One line, at once."""
        replies.write(json.dumps(line) + "\n")
        replies.flush()

    serve(asked["parts"], GpuPlan(**asked["plan"]), asked["device"], tell)
