"""Metrics of decoding for Prometheus: counters of speculation, and latencies, under vLLM's names.

The format is Prometheus' text format 0.0.4. Names and labels are those of vLLM's /metrics, so that a dashboard made for
vLLM shows Sybil's numbers too."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from sybil.measuring import files
from sybil.results import Step

BETWEEN_BOUNDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
"""Seconds. vLLM's bounds, and four smaller ones, because a round of a small model takes less than 10 ms."""
FIRST_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
"""Seconds, as in vLLM."""


class _Histogram:
    """Counts, for each bound, the values that are no larger than it. bounds: ascending."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.total = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """Counters and histograms of all generations that were observed. They only grow.

    model: the target's name, which becomes the label model_name."""

    def __init__(self, model: str) -> None:
        self._labels = {"model_name": model, "engine": "0"}
        self._prompt = self._generated = self._drafts = self._proposed = self._accepted = 0
        self._by_position: list[int] = []
        self._first, self._between = _Histogram(FIRST_BOUNDS), _Histogram(BETWEEN_BOUNDS)

    def observe(self, steps: Iterable[Step]) -> None:
        """Count the rounds of one generation, from the first one on. Each row of a batch counts as a request."""
        elapsed = 0.0
        begun: set[int] = set()
        for step in steps:
            elapsed += step.timings.total
            self._prompt += sum(step.prefilled)
            for row, tokens in enumerate(step.tokens):
                if not tokens:
                    continue
                self._generated += len(tokens)
                self._count_draft(step.proposed[row], step.accepted[row])
                if row in begun:
                    self._between.observe(step.timings.total)
                else:
                    self._first.observe(elapsed)
                    begun.add(row)

    def _count_draft(self, proposed: int, accepted: int) -> None:
        if not proposed:
            return
        self._drafts += 1
        self._proposed += proposed
        self._accepted += accepted
        self._by_position += [0] * (proposed - len(self._by_position))
        for position in range(accepted):
            self._by_position[position] += 1

    def text(self) -> str:
        """All metrics in Prometheus' text format. The last line ends with a newline."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        accepted, labels = "vllm:spec_decode_num_accepted_tokens", self._labels
        yield from _counter("vllm:prompt_tokens", "Prompt tokens that the target read.", [(labels, self._prompt)])
        yield from _counter("vllm:generation_tokens", "Tokens that were generated.", [(labels, self._generated)])
        yield from _counter(
            "vllm:spec_decode_num_drafts", "Rounds in which tokens were proposed.", [(labels, self._drafts)]
        )
        yield from _counter(
            "vllm:spec_decode_num_draft_tokens", "Tokens that were proposed.", [(labels, self._proposed)]
        )
        yield from _counter(accepted, "Proposed tokens that were accepted.", [(labels, self._accepted)])
        yield from _counter(
            f"{accepted}_per_pos",
            "Proposed tokens that were accepted, by their position in the proposal.",
            [({**labels, "position": str(place)}, count) for place, count in enumerate(self._by_position)],
        )
        yield from _histogram("vllm:time_to_first_token_seconds", "Time to first token.", labels, self._first)
        yield from _histogram(
            "vllm:inter_token_latency_seconds",
            "Time between the tokens of a round and those of the round before.",
            labels,
            self._between,
        )


def _counter(name: str, about: str, samples: Sequence[tuple[Mapping[str, str], int]]) -> Iterator[str]:
    yield from (f"# HELP {name}_total {about}", f"# TYPE {name}_total counter")
    for labels, count in samples:
        yield _sample(f"{name}_total", labels, count)


def _histogram(name: str, about: str, labels: Mapping[str, str], histogram: _Histogram) -> Iterator[str]:
    yield from (f"# HELP {name} {about}", f"# TYPE {name} histogram")
    count = 0
    for bound, more in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        count += more
        yield _sample(f"{name}_bucket", {**labels, "le": str(bound)}, count)
    yield _sample(f"{name}_sum", labels, histogram.total)
    yield _sample(f"{name}_count", labels, count)


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    told = ",".join(f'{label}="{escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{told}}} {value!r}"


def escaped(text: str) -> str:
    """A label's value, escaped for use between quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class MetricsFile:
    """A file with the metrics for Prometheus. It is replaced atomically after each generation.

    path: None where no file is wanted; nothing is written then. Raises InvalidSetting, before anything runs, where the
    file can't be written."""

    def __init__(self, path: Path | None, model: str) -> None:
        self._path, self._metrics = path, Metrics(model)
        if path is not None:
            files.check_file(path, "metrics_file")

    def add(self, steps: Iterable[Step]) -> None:
        """Count one more generation, and write the file. Raises InvalidSetting where writing fails."""
        if self._path is not None:
            self._metrics.observe(steps)
            content = self._metrics.text().encode("utf-8", "backslashreplace")
            files.replace_named(self._path, "metrics_file", content)
