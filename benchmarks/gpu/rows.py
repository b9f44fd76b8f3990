"""What the GPU command measures, how much of it, and its table. This module is pure and quick to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PARTS: Mapping[str, str] = {
    "device": "benchmarks.gpu.speeds:device",
    "checks": "benchmarks.gpu.checks:checks",
    "texts": "benchmarks.gpu.texts:texts",
    "verify": "benchmarks.gpu.texts:verify",
    "graphs": "benchmarks.gpu.speeds:graphs",
    "noise": "benchmarks.gpu.speeds:noise",
    "replay": "benchmarks.gpu.replays:replay",
    "self": "benchmarks.gpu.replays:self",
    "memory": "benchmarks.gpu.replays:memory",
}
"""By part: its function, from (plan, device) to rows, which come one at a time. "memory" must be last, because it
limits the memory of its process."""


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One line of the table. ok: None where a number is only reported. error: why nothing was found."""

    part: str
    what: str
    found: str = ""
    ok: bool | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def is_failure(self) -> bool:
        return self.ok is False or bool(self.error)


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """How much is done.

    workload: a workload of sybil.measuring.workload, whose target and draft are replayed. dtypes: the dtypes of texts
    and verdicts. families, checked, checked_tokens: the model_types, dtypes and number of new tokens of the checks.
    seconds: a part that takes longer is ended."""

    workload: str = "gpt2:medium"
    dtypes: Sequence[str] = ("float32", "float16")
    families: Sequence[str] = ("gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen3")
    checked: Sequence[str] = ("float32", "float16", "bfloat16")
    checked_tokens: int = 40
    prompts: int = 6
    new_tokens: int = 48
    judged: Mapping[str, int] = field(default_factory=lambda: {"count": 32, "repeats": 2, "max_new_tokens": 32})
    passes: int = 20
    replayed_tokens: int = 64
    repetitions: int = 5
    rows_in_memory: Sequence[int] = (1, 4)
    tokens_in_memory: int = 1000
    vocab: int = 50257
    seconds: float = 150.0


FULL = GpuPlan()
TINY = GpuPlan(
    workload="",
    dtypes=("float32",),
    families=("gpt2", "llama"),
    checked=("float32", "bfloat16"),
    checked_tokens=10,
    prompts=2,
    new_tokens=6,
    judged={
        "count": 2, "repeats": 1, "max_new_tokens": 4, "greedy": 1, "stopping": 1, "widths": 1, "stop_strings": False,
    },
    passes=2,
    replayed_tokens=12,
    repetitions=1,
    rows_in_memory=(1, 2),
    tokens_in_memory=60,
    vocab=5000,
)  # fmt: skip
"""The plan of a test on a CPU: everything runs, but no number says anything about speed. workload "": tiny models are
replayed."""


def table(rows: Sequence[GpuRow]) -> str:
    """The rows as a text table."""
    lines = [("part", "what", "found", "")]
    for row in rows:
        verdict = "error" if row.error else {True: "ok", False: "NOT OK", None: ""}[row.ok]
        lines.append((row.part, row.what, row.error or row.found, verdict))
    widths = [max(len(line[place]) for line in lines) for place in range(3)]
    told = []
    for *texts, verdict in lines:
        columns = [text.ljust(width) for text, width in zip(texts, widths, strict=True)]
        told.append("  ".join([*columns, verdict]).rstrip())
    return "\n".join(told)
