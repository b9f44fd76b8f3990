"""All of Sybil that only a GPU can show, in one command of under eight minutes: `python -m benchmarks.gpu`.

It needs torch, transformers and scipy, and a checkout of Sybil to stand in. The parts run in a process of their own.
One that fails, hangs or takes the process down becomes a row with its error, and the rest goes on. The command ends
with a table, and writes everything as JSON. Exit: 0 all is well, 1 something isn't, 2 there is no such part.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import FULL, PARTS, TINY, GpuPlan, GpuRow, table

WORKER = (sys.executable, "-m", "benchmarks.gpu.work")
SECONDS = 460.0
"""The time, in seconds, that all parts may take together. Parts for which no time is left are reported as left out."""


def rows(
    parts: Sequence[str], plan: GpuPlan, device: str, seconds: float = SECONDS, worker: Sequence[str] = WORKER
) -> Iterator[GpuRow]:
    """The rows of every part, as they are found."""
    left, ends = list(parts), time.monotonic() + seconds
    while left:
        if time.monotonic() >= ends:
            yield from (GpuRow(part, "left out", error=f"{seconds:.0f} s were over") for part in left)
            return
        yield from _of_one_process(left, plan, device, ends, worker)


def _of_one_process(
    left: list[str], plan: GpuPlan, device: str, ends: float, worker: Sequence[str]
) -> Iterator[GpuRow]:
    """The rows of one process, which is killed when a part takes too long. Each part that it begins is removed from
    `left`. At least one part is removed: if none can begin, that is the failure of the first one."""
    now, began, count = "", time.monotonic(), len(left)
    with _started(worker) as process:
        assert process.stdin
        process.stdin.write(json.dumps({"parts": left, "plan": asdict(plan), "device": device}) + "\n")
        process.stdin.flush()
        lines = _lines(process)
        while True:
            limit = min(began + plan.seconds, ends)
            try:
                line = lines.get(timeout=max(limit - time.monotonic(), 0.0))
            except queue.Empty:
                why = f"it took more than {time.monotonic() - began:.0f} s"
                yield GpuRow(now or left.pop(0), "ended", error=why)
                return
            if line is None:
                if now or len(left) == count:
                    yield GpuRow(now or left.pop(0), "ended", error=f"its process ended with {process.wait()}")
                return
            if "begins" in line:
                now, began = line["begins"], time.monotonic()
                left.remove(now)
            elif "row" in line:
                yield GpuRow(**line["row"])
            else:
                now, began = "", time.monotonic()


@contextlib.contextmanager
def _started(worker: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process, which is killed at the end with every process that it has started."""
    with subprocess.Popen(
        worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _lines(process: subprocess.Popen[str]) -> queue.Queue[dict[str, Any] | None]:
    """The JSON lines that a process writes, as they come; None at its end."""
    lines: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        assert process.stdout
        with contextlib.suppress(ValueError):  # half a line, or a pipe that was closed meanwhile
            for line in process.stdout:
                lines.put(json.loads(line))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="torch's name of it; cpu with --tiny tries the command itself")
    parser.add_argument("--tiny", action="store_true", help="as little as can be of everything")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas between")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what all parts may take together")
    parser.add_argument("--out", type=Path, default=Path("sybil-gpu.json"), help="where the JSON goes")
    asked = parser.parse_args(arguments)
    parts = asked.parts.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: the parts are {', '.join(PARTS)}")
    began, found = time.monotonic(), list[GpuRow]()
    for row in rows(parts, TINY if asked.tiny else FULL, asked.device, asked.seconds):
        found.append(row)
        print(f"{time.monotonic() - began:4.0f} s  {table([row]).splitlines()[1]}", flush=True)  # noqa: T201
        record = {"device": asked.device, "date": time.strftime("%Y-%m-%d"), "rows": [asdict(each) for each in found]}
        asked.out.write_text(json.dumps(record | {"seconds": time.monotonic() - began}, indent=1) + "\n")
    print(f"\n{table(found)}\n\n{asked.out} has it all")  # noqa: T201
    return int(any(row.is_failure for row in found))


if __name__ == "__main__":
    sys.exit(main())
