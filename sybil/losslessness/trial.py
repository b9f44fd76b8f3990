"""The state of one decoder's judgement: asks the decoder, and collects faults and doubts."""

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
"""The questions that each phase's answers are evidence for."""

Progress = Callable[[str, int, int], None]


def silent(phase: str, done: int, total: int) -> None:
    """A Progress that does nothing."""


def unheard(advice: str) -> None:
    """An advice callback that does nothing."""


@dataclass(slots=True)
class Trial:
    """The state that every phase reads and adds to. kept: the answers of an earlier run and of this one. ends: the
    number of sequences whose end was checked. end_faults: the faults among them. said: greedy answers, by the prompt's
    number. seen: what the answers show of speculation."""

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
        """The largest distance below the likeliest token that rounding can still explain."""
        return self.plan.doubtful or self.plan.near_tie

    def ask(
        self, phase: str, prompts: Sequence[tuple[int, ...]], request: Request | Sequence[Request], seed: int,
        done: int = 0, total: int = 0, other: tuple[str, Subject] | None = None,
    ) -> list[Sample]:  # fmt: skip
        """The answers of the decoder, or of another subject. Doubts about answers are collected. request: one for all
        prompts, or one for each. done, total: answers that the phase has, and will have. other: the other subject's
        name, and the subject."""

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
        """Whether a sequence ends where it should. A fault or a doubt is collected."""
        self.ends += 1
        end = ending.judged(sample.tokens, request, self.reference.tokenizer)
        if end.fault:
            self.end_faults.append(Fault(where, end.fault))
        if end.doubt:
            self.found.doubt(end.doubt, ["endings"])
        return not end.fault


def within(sample: Sample, request: Request) -> Sample:
    """The sample without its tokens over the limit, for which the target's context may have no room."""
    count = request.max_new_tokens
    return replace(sample, tokens=sample.tokens[:count], places=sample.places and sample.places[:count])
