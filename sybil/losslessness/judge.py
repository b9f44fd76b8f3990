"""The verdict on a decoder, and how it is come by: greedily, at its stops, at other widths, and by sampling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sybil.agreement import Tolerance
from sybil.errors import EmptyPrompt, InvalidSetting, PromptTooLong
from sybil.losslessness import advice, ending, ruling
from sybil.losslessness.asking import ask
from sybil.losslessness.checks import drift, every
from sybil.losslessness.chisquare import Check
from sybil.losslessness.evidence import Evidence, Reference, greedy, sampled
from sybil.losslessness.faults import Fault, certain, listed
from sybil.losslessness.report import Plan, Question, Report
from sybil.losslessness.samples import Request, Sample, Subject, widths
from sybil.losslessness.width import parting

__all__ = ["Plan", "Report", "verify"]

PROBED = 64  # prompts, for one token each
FOREIGN = 0.25  # of the probed tokens: with more of them at fault, another model speaks
TOLD_BY: dict[str, tuple[Question, ...]] = {
    "probe": ("tokens",),
    "greedy": ("tokens", "endings"),
    "stopping": ("endings",),
    "width": ("width",),
    "sampling": ("distribution", "endings"),
}
"""The questions that a phase's answers are about."""

Progress = Callable[[str, int, int], None]
Path = tuple[int, tuple[int, ...]]
"""A prompt's number, and greedy tokens that are the target's own beyond doubt."""


def _silent(phase: str, done: int, total: int) -> None:
    pass


def _unheard(advice: str) -> None:
    pass


def verify(
    subject: Subject,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    plan: Plan,
    progress: Progress = _silent,
    advise: Callable[[str], None] = _unheard,
) -> Report:
    """Judge subject by what it says after prompts (token ids). progress: phase, done, total; advise: told before the
    decoder is asked anything that the plan is too small for a PASS, where it is.

    Of each question, FAIL: with a certain fault, or one that chance explains with probability alpha at most.
    INCONCLUSIVE: where the target seems not to be the decoder's, answers are in doubt, or tokens too few. PASS: for
    what was checked. The whole follows as ruling.whole() has it."""
    _refuse(reference, prompts, plan)
    told = [tuple(prompt) for prompt in prompts]
    too_small = advice.before(reference, told, plan)
    if too_small:
        advise(too_small)
    return _Trial(subject, reference, told, plan, progress).report()


def _refuse(reference: Reference, prompts: Sequence[Sequence[int]], plan: Plan) -> None:
    if not prompts:
        raise InvalidSetting("there are no prompts: give at least one")
    if plan.request.stop_strings and reference.tokenizer is None:
        raise InvalidSetting("stop strings can't be looked for without the target's tokenizer: give it, or none")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise EmptyPrompt(f"prompt {number} has no token: there is nothing to condition on")
        if len(prompt) + plan.request.max_new_tokens > reference.context:
            raise PromptTooLong(
                f"prompt {number} has {len(prompt)} tokens, which with {plan.request.max_new_tokens} new ones exceed "
                f"the target's context of {reference.context}: shorten the prompt, or ask for fewer tokens"
            )
        if not 0 <= min(prompt) <= max(prompt) < reference.vocab_size:
            raise InvalidSetting(
                f"prompt {number} has token ids outside the target's vocabulary of {reference.vocab_size}: encode it "
                "with the target's tokenizer"
            )


@dataclass(slots=True)
class _Trial:
    """One decoder before the judge. What speaks against it, or against judging it, is gathered phase by phase."""

    subject: Subject
    reference: Reference
    prompts: list[tuple[int, ...]]
    plan: Plan
    progress: Progress
    found: ruling.Findings = field(default_factory=ruling.Findings)
    asked: list[Question] = field(default_factory=list)
    ends: int = 0  # sequences whose end was looked at
    end_faults: list[Fault] = field(default_factory=list)
    greedily_said: dict[int, Sample] = field(default_factory=dict)  # by the prompt's number

    @property
    def greedily(self) -> Request:
        return replace(self.plan.request, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)

    @property
    def widest(self) -> Tolerance:
        """Of a token that stands further below the likeliest no rounding is to blame."""
        return self.plan.doubtful or self.plan.near_tie

    def report(self) -> Report:
        plan, notes, sequences = self.plan, list[str](), 0  # notes: on what was left out
        self.asked = ["distribution"] if plan.repeats else []
        if plan.greedy or plan.stopping:
            self.asked += ["tokens", "endings"]
            foreign = self._foreign()
            if foreign:
                rulings = tuple(ruling.Ruling(question, "INCONCLUSIVE", (foreign,)) for question in self.asked)
                return Report(self.subject.name, "INCONCLUSIVE", rulings, (foreign,), (), plan)
            paths = self._greedy()
            if not self._stopping(paths):
                notes.append("stops were not tried" + (": no greedy sequence was fit for it" if plan.stopping else ""))
            notes += self._widths()
        else:
            self.asked += ["endings"]
            notes.append("without greedy decoding nothing confirms that the target is the decoder's, nor its stops")
        sampled_checks = list[Check]()
        if plan.repeats:
            sequences, sampled_checks = self._sampling()
        else:
            notes.append("sampling was left out")
        holds = "sequences end where plain decoding does"
        self.found.checks += [certain("stopping", self.end_faults, self.ends, "of sequences", holds), *sampled_checks]
        rulings, evidence = ruling.rule(self.found, plan, self.asked), self.found.evidence
        return Report(
            subject=self.subject.name,
            verdict=ruling.whole(rulings),
            rulings=rulings,
            reasons=(*ruling.reasons(rulings), *notes, *getattr(self.subject, "notes", ())),
            checks=tuple(self.found.checks),
            plan=plan,
            drift=drift(evidence) if len(evidence) else None,
            tokens=len(evidence) + evidence.near + len(evidence.impossible),
            sequences=sequences,
            evidence=evidence if len(evidence) else None,
        )

    def _foreign(self) -> str:
        """Why the target is hardly the decoder's; "" where it may be."""
        request = replace(self.greedily, max_new_tokens=1)
        samples = self._ask("probe", self.prompts[:PROBED], request, self.plan.seed)
        first = [greedy(self.reference, _within(s, request)) for s in samples if not s.doubt and s.tokens]
        wrong = [float(each.deficit[0]) for each in first if each.deficit[0] > self.widest.of(each.size)[0]]
        if len(wrong) <= FOREIGN * len(first):
            return ""
        return (
            f"the decoder seems to follow another target, or not to be greedy when asked: {len(wrong)} of {len(first)} "
            f"first tokens are not this target's likeliest (median {np.median(wrong):.3g} logits below): give its own"
        )

    def _greedy(self) -> list[Path]:
        """The comparison; gives the paths that stops can be tried on."""
        prompts = self.prompts[: max(self.plan.greedy, self.plan.stopping)]
        faults, ties, paths, tokens, rounded = list[Fault](), list[Fault](), list[Path](), 0, 0
        for number, sample in enumerate(self._ask("greedy", prompts, self.greedily, self.plan.seed)):
            if sample.doubt:
                continue
            self.greedily_said[number] = _within(sample, self.greedily)
            found = greedy(self.reference, self.greedily_said[number])
            tokens += len(found.deficit)
            bound, near_tie = self.widest.of(found.size), self.plan.near_tie.of(found.size)
            rounded += int(((found.deficit > near_tie) & (found.deficit <= bound)).sum())
            for index in np.flatnonzero(found.deficit > 0):
                deficit, gap = found.deficit[index], found.gap[index]
                told = f"{deficit:.3g} logits below the likeliest, top-2 gap {gap:.3g}"
                (faults if deficit > bound[index] else ties).append(Fault(f"prompt {number}, token {index}", told))
            unsure = np.flatnonzero((found.deficit > 0) | (found.gap <= bound))
            fit = int(unsure[0]) if len(unsure) else len(sample.tokens)  # tokens that are the target's beyond doubt
            if self._ends_well(sample, self.greedily, f"prompt {number}, greedy") and fit > 1:
                paths.append((number, sample.tokens[:fit]))
        near = f"near-ties: {listed(ties)}" if ties else "no near-tie"
        holds = f"tokens are the target's likeliest; {near}"
        self.found.checks.append(certain("greedy", faults, tokens, "of tokens", holds))
        if rounded:
            self.found.rounding["tokens"] = (
                f"{rounded} of {tokens} greedy tokens stand further below the likeliest than the target's own rounding "
                "explains, and nearer than half precision does: does the decoder round? say how far (dtype, tolerance)"
            )
        return paths[: self.plan.stopping]

    def _stopping(self, paths: Sequence[Path]) -> int:
        """An end token, a limit and a stop string on each path: the decoder must say the path as far as that, and
        no token more. Gives the number of trials."""
        choice, tokenizer = np.random.default_rng([self.plan.seed, 2]), self.reference.tokenizer
        takes = getattr(self.subject, "takes", lambda request: True)
        trials = [
            (number, path, request)
            for number, path in paths
            for request in ending.inside(self.prompts[number], path, self.greedily, tokenizer, choice)
            if takes(request)
        ]
        for done, (number, path, request) in enumerate(trials, start=1):
            (sample,) = self._ask("stopping", [self.prompts[number]], request, self.plan.seed, done - 1, len(trials))
            where = f"prompt {number}, {ending.in_words(request, tokenizer)}"
            if sample.doubt or not self._ends_well(sample, request, where):
                continue
            if sample.tokens != path[: ending.end(path, request, tokenizer)]:
                self.end_faults.append(Fault(where, "another greedy text than without that stop"))
        return len(trials)

    def _widths(self) -> list[str]:
        """Greedy texts at other widths beside the ones that are known; gives a note where there are none."""
        others = widths(self.subject) if self.plan.widths else {}
        if not others:
            why = ": the decoder doesn't let one choose how many tokens it verifies at once" if self.plan.widths else ""
            return [f"other widths were not tried{why}"]
        self.asked.append("width")
        numbers = list(self.greedily_said)[: self.plan.widths]
        prompts, total = [self.prompts[number] for number in numbers], len(numbers) * len(others)
        faults, near, texts = list[Fault](), list[Fault](), 0
        for turn, (name, subject) in enumerate(others.items()):
            answers = self._ask("width", prompts, self.greedily, self.plan.seed, turn * len(numbers), total, subject)
            for number, sample in zip(numbers, answers, strict=True):
                if sample.doubt:
                    continue
                texts += 1
                where = f"prompt {number}, {name}"
                parted = parting(self.reference, self.greedily_said[number], sample, where, self.widest)
                if parted is not None:
                    (near if parted[1] else faults).append(parted[0])
        holds = f"greedy texts are the same at every width: {', '.join(others)}"
        self.found.checks.append(certain("width", faults, texts, "of texts", holds))
        if near:
            self.found.rounding["width"] = (
                f"{len(near)} of {texts} greedy texts are not the same at another width, and rounding alone explains "
                f"it: they part where two tokens are as good as equally likely ({listed(near)})"
            )
        return []

    def _sampling(self) -> tuple[int, list[Check]]:
        """How many sequences were judged, and what they say; none where answers are in doubt, or repeated."""
        plan, found = self.plan, self.found
        noise = np.random.default_rng([plan.seed, 1])
        samples, parts, total = list[Sample](), list[Evidence](), plan.repeats * len(self.prompts)
        for repeat in range(plan.repeats):
            seed = int(np.random.SeedSequence([plan.seed, repeat]).generate_state(1)[0] >> 1)
            for sample in self._ask("sampling", self.prompts, plan.request, seed, repeat * len(self.prompts), total):
                number = len(samples)
                samples.append(sample)
                if sample.doubt:
                    continue
                self._ends_well(sample, plan.request, f"sequence {number} (prompt {number % len(self.prompts)})")
                sample = _within(sample, plan.request)
                parts.append(sampled(self.reference, sample, number, plan.request.sampling, noise, self.widest))
                self.progress("evidence", len(samples), total)
            if any(part.impossible for part in parts):
                break
        if found.doubts.get("distribution"):
            return 0, []
        evidence = Evidence.join(parts)
        faults = [
            Fault(
                f"sequence {each.sequence} (prompt {each.sequence % len(self.prompts)}), token {each.index}",
                ending.named(each.token, self.reference.tokenizer),
            )
            for each in evidence.impossible
        ]
        count = len(evidence) + evidence.near + len(faults)
        holds = f"tokens have a probability above 0; {evidence.near} only within the near-tie bound"
        impossible = certain("impossible", faults, count, "of tokens", holds)
        repeated = _repeated(samples, evidence, plan.alpha)
        if repeated:
            why = "word for word another's, far too long for chance (a cache, or a fixed seed?)"
            found.doubt(why, ["distribution"], repeated)
            return 0, [impossible]
        found.evidence = evidence
        return len(samples), [impossible, *(self._explained(check) for check in every(evidence, plan.alpha))]

    def _explained(self, check: Check) -> Check:
        """Why there is no check of the draft, where none is known."""
        if check.name != "draft" or self.reference.draft is not None:
            return check
        return replace(check, detail=f"not made: {self.reference.no_draft}")

    def _ask(
        self, phase: str, prompts: Sequence[tuple[int, ...]], request: Request, seed: int, done: int = 0,
        total: int = 0, subject: Subject | None = None,
    ) -> list[Sample]:  # fmt: skip
        """The answers of the decoder, or of the subject given; what makes one doubtful is noted."""

        def tell(count: int) -> None:
            self.progress(phase, done + count, total or len(prompts))

        samples = ask(subject or self.subject, prompts, request, seed, self.reference.vocab_size, tell)
        for sample in samples:
            if sample.doubt:
                self.found.doubt(sample.doubt, TOLD_BY[phase])
        return samples

    def _ends_well(self, sample: Sample, request: Request, where: str) -> bool:
        """Whether a sequence ends where it should; a fault is noted, and a doubt."""
        self.ends += 1
        end = ending.judged(sample.tokens, request, self.reference.tokenizer)
        if end.fault:
            self.end_faults.append(Fault(where, end.fault))
        if end.doubt:
            self.found.doubt(end.doubt, ["endings"])
        return not end.fault


def _repeated(samples: list[Sample], evidence: Evidence, alpha: float) -> int:
    """How many sequences are, word for word, another's with the same prompt, and so improbable that independent
    draws agree on any such with probability alpha at most (two draws agree on a sequence x with the chance of x)."""
    log_prob = np.bincount(evidence.sequence, weights=evidence.log_prob, minlength=len(samples))
    askings = Counter(sample.prompt for sample in samples).values()
    pairs = sum(count * (count - 1) // 2 for count in askings)
    if not pairs:
        return 0
    bound = math.log(alpha / pairs)
    seen = Counter((each.prompt, each.tokens) for each, log in zip(samples, log_prob, strict=True) if log < bound)
    return sum(count - 1 for count in seen.values())


def _within(sample: Sample, request: Request) -> Sample:
    """Without the tokens over the limit, for which the target's context may have no room."""
    count = request.max_new_tokens
    return replace(sample, tokens=sample.tokens[:count], places=sample.places and sample.places[:count])
