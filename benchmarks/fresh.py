"""One fresh process: import Sybil, load a pair, generate; what each took, as a line of JSON.

benchmarks/starting.py and real.py run this file with -I, so that nothing but the environment's own packages is found.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

NEW_TOKENS = 16
PROMPT = "def main("


def resident(field: str) -> float | None:
    """VmRSS or VmHWM in MB; None where the system doesn't say. getrusage's peak would be the parent's at the fork."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        return None
    return int(rows[field].split()[0]) / 1024


def start(pair: str = "stdlib") -> dict[str, float | str | None]:
    """Seconds and MB; those of a first text, which warms up, and of a second."""
    began = time.perf_counter()
    import torch  # noqa: F401  by itself first: most of what importing Sybil takes, and none of Sybil's doing

    torch_there = time.perf_counter()
    import sybil

    imported = time.perf_counter()
    found: dict[str, float | str | None] = {
        "sybil": sybil.__file__,
        "import": imported - began,
        "own_import": imported - torch_there,
    }
    before = resident("VmRSS")
    began = time.perf_counter()
    decoder = sybil.load(pair, device="cpu")
    found["load"] = time.perf_counter() - began
    decoder.generate(PROMPT, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    peak = resident("VmHWM")
    found["peak_memory"] = None if before is None or peak is None else peak - before
    began = time.perf_counter()
    stats = decoder.generate(PROMPT, max_new_tokens=NEW_TOKENS, eos_token_id=[]).stats
    found["token"] = (time.perf_counter() - began) / NEW_TOKENS
    found["first_token"] = stats.time_to_first_token
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(start(*sys.argv[1:])) + "\n")
