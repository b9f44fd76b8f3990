"""One text's rounds on a timeline: when the draft, the target and the sampling worked, and which tokens were accepted.

The times are sums of the decoding loop's own seconds by phase (sybil/clock.py). So spans follow each other without
gaps, and the time that a caller spends between two rounds is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tokenizers import Tokenizer

from sybil.results import Step, Timings
from sybil.text import TextStream

TARGET, DRAFT, SAMPLING = "target", "draft", "sampling"
TRACKS = {"prefill": TARGET, "draft": DRAFT, "verify": TARGET, "sample": SAMPLING, "other": SAMPLING}
"""The track of each phase, in the order of a round. The phase "other" commits tokens and informs the drafter."""
WAITING = {TARGET: (DRAFT,), DRAFT: (TARGET,), SAMPLING: (TARGET, DRAFT)}
"""The tracks that wait while a track works. The loop does one thing at a time."""


@dataclass(frozen=True, slots=True)
class Span:
    """One phase of a round, in seconds since the generation began."""

    phase: str
    begin: float
    end: float

    @property
    def track(self) -> str:
        return TRACKS[self.phase]

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one row. place: the place of the round's first token among the new tokens. tokens: the row's new
    tokens, of which the first `accepted` are the draft's. text: the tokens' text, '' where no tokenizer is known."""

    number: int
    place: int
    spans: tuple[Span, ...]
    tokens: tuple[int, ...]
    proposed: int
    accepted: int
    text: str

    @property
    def begin(self) -> float:
        return self.spans[0].begin

    @property
    def end(self) -> float:
        return self.spans[-1].end

    @property
    def rejected(self) -> bool:
        """Whether the target replaced a proposed token. Where a text ends within the accepted tokens, it isn't known
        whether later tokens would have been rejected."""
        return self.accepted < min(self.proposed, len(self.tokens))


def rounds_of(steps: Iterable[Step], tokenizer: Tokenizer | None = None) -> list[Round]:
    """The rounds of a generation of one row, from its first one on."""
    rounds: list[Round] = []
    pieces = TextStream(tokenizer) if tokenizer else None
    now, place = 0.0, 0
    for number, step in enumerate(steps, start=1):
        spans = []
        for phase in fields(Timings):  # which are in a round's order
            seconds = getattr(step.timings, phase.name)
            if seconds > 0:
                spans.append(Span(phase.name, now, now + seconds))
                now += seconds
        tokens = step.tokens[0]
        text = pieces.push(tokens) if pieces else ""
        if pieces and step.finished[0]:
            text += pieces.finish()
        rounds.append(Round(number, place, tuple(spans), tokens, step.proposed[0], step.accepted[0], text))
        place += len(tokens)
    return rounds


def waits(rounds: Iterable[Round]) -> dict[str, float]:
    """The seconds of a text, by which track waits for which."""
    found = dict.fromkeys((DRAFT, TARGET, SAMPLING), 0.0)
    for span in (span for each in rounds for span in each.spans):
        found[span.track] += span.seconds
    return {
        "target waits for the draft": found[DRAFT],
        "draft waits for the target": found[TARGET],
        "both wait for sampling and the rest": found[SAMPLING],
    }


def trace(rounds: Sequence[Round], title: str) -> dict[str, Any]:
    """The timeline in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open. Each span is a complete
    event, in microseconds, and each track is a thread."""
    threads = {track: number for number, track in enumerate((TARGET, DRAFT, SAMPLING), start=1)}
    events: list[dict[str, Any]] = [_named("process_name", 0, name=f"sybil: {title}")]
    for track, thread in threads.items():
        events += [_named("thread_name", thread, name=track), _named("thread_sort_index", thread, sort_index=thread)]
    for each in rounds:
        told = {
            "round": each.number, "proposed": each.proposed, "accepted": each.accepted, "tokens": list(each.tokens),
            "text": each.text,
        }  # fmt: skip
        for span in each.spans:
            begin, end = round(1e6 * span.begin, 3), round(1e6 * span.end, 3)
            event = {
                "name": span.phase, "cat": span.track, "ph": "X", "ts": begin, "dur": round(end - begin, 3), "pid": 1,
                "tid": threads[span.track], "args": {**told, "waiting": " and ".join(WAITING[span.track])},
            }  # fmt: skip
            events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"title": title}}


def _named(what: str, thread: int, **args: Any) -> dict[str, Any]:
    """A metadata event: the name or the position of a process or a thread."""
    return {"name": what, "ph": "M", "pid": 1, "tid": thread, "args": args}
