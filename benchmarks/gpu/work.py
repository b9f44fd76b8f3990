"""The process that runs the parts one after the other, and reports each row as soon as it is found.

Only benchmarks.gpu starts it, as `python -m benchmarks.gpu.work`. It reads a plan and the names of parts from its
standard input, and writes each row as a JSON line to its standard output."""

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
    """The rows of one part. If the part raises an exception, that becomes its last row, and other parts aren't
    affected."""
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
    """Free the GPU's memory. Returns False if the GPU no longer answers, for instance after a fault in a kernel; a new
    process is needed then."""
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
    """Report the beginning of every part, its rows, and its end."""
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
    os.dup2(2, 1)  # what a library prints isn't mistaken for a row

    def tell(line: dict[str, Any]) -> None:
        """Write one line at once."""
        replies.write(json.dumps(line) + "\n")
        replies.flush()

    serve(asked["parts"], GpuPlan(**asked["plan"]), asked["device"], tell)
