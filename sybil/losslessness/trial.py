"""Asks one decoder under judgement, and collects faults and doubts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sybil.agreement import Tolerance
from sybil.losslessness import ending
from sybil.losslessness.asking import ask
from sybil.losslessness.evidence import Reference
from sybil.losslessness.faults import Fault
from sybil.losslessness.kept import Kept
from sybil.losslessness.report import Plan, Question
from sybil.losslessness.ruling import Findings
from sybil.losslessness.samples import Request, Sample, Subject
from sybil.losslessness.speculation import Seen

TOLD_BY: dict[str, tuple[Question, ...]] = {
    "probe": ("tokens",),
    "greedy": ("tokens", "endings"),
    "stopping": ("endings",),
    "width": ("width",),
    "sampling": ("distribution", "endings"),
}
"""The questions that a phase's answers bear on."""

Progress = Callable[[str, int, int], None]


def silent(phase: str, done: int, total: int) -> None:
    """A Progress that does nothing."""


def unheard(advice: str) -> None:
    """An advice callback that does nothing."""


@dataclass(slots=True)
class Trial:
    """What every phase needs, and adds to. kept: answers of an earlier run, and this one's; ends: sequences whose end
    was looked at; said: greedily, by the prompt's number; seen: of speculation."""

    subject: Subject
    reference: Reference
    prompts: list[tuple[int, ...]]
    plan: Plan
    progress: Progress
    kept: Kept = field(default_factory=Kept)
    found: Findings = field(default_factory=Findings)
    ends: int = 0
    end_faults: list[Fault] = field(default_factory=list)
    said: dict[int, Sample] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)

    @property
    def greedily(self) -> Request:
        """The request of greedy sequences."""
        return replace(self.plan.request, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)

    @property
    def widest(self) -> Tolerance:
        """How far below the likeliest a token must stand before rounding can't be the reason."""
        return self.plan.doubtful or self.plan.near_tie

    def ask(
        self, phase: str, prompts: Sequence[tuple[int, ...]], request: Request | Sequence[Request], seed: int,
        done: int = 0, total: int = 0, other: tuple[str, Subject] | None = None,
    ) -> list[Sample]:  # fmt: skip
        """The answers of the decoder, or of another subject by its name; what makes one doubtful is noted. request:
        that of all prompts, or one a prompt; done, total: answers that the phase has, and will have."""

        def tell(count: int) -> None:
            self.progress(phase, done + count, total or len(prompts))

        name, subject = ("", self.subject) if other is None else other
        vocab_size, named = self.reference.vocab_size, f"{phase}, {name}" if name else phase
        requests = [request] * len(prompts) if isinstance(request, Request) else request
        samples = ask(subject, prompts, requests, seed, vocab_size, tell, self.kept, named)
        for sample in samples:
            if other is None:
                self.seen.add(sample.places, sample.speculation)
            if sample.doubt:
                self.found.doubt(sample.doubt, TOLD_BY[phase])
        return samples

    def ends_well(self, sample: Sample, request: Request, where: str) -> bool:
        """Whether a sequence ends where it should; a fault is noted, and a doubt."""
        self.ends += 1
        end = ending.judged(sample.tokens, request, self.reference.tokenizer)
        if end.fault:
            self.end_faults.append(Fault(where, end.fault))
        if end.doubt:
            self.found.doubt(end.doubt, ["endings"])
        return not end.fault


def within(sample: Sample, request: Request) -> Sample:
    """Without the tokens over the limit, for which the target's context may have no room."""
    count = request.max_new_tokens
    return replace(sample, tokens=sample.tokens[:count], places=sample.places and sample.places[:count])
