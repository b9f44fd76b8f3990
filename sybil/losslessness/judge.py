"""The verdict on a decoder, and how it is come by: greedily, at its stops, and by sampling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sybil.errors import EmptyPrompt, InvalidSetting, NotJudgeable, PromptTooLong
from sybil.losslessness import ending
from sybil.losslessness.checks import POWER, Check, drift, every
from sybil.losslessness.child import LARGEST_ID, MOST_TOKENS
from sybil.losslessness.evidence import NOTHING, Evidence, Floats, Greedy, Reference, greedy, sampled
from sybil.losslessness.report import Plan, Report, Verdict
from sybil.losslessness.samples import Request, Sample, Subject

__all__ = ["Plan", "Report", "verify"]

MANY = 8  # prompts that don't all continue with themselves
PROBED = 64  # prompts, for one token each
FOREIGN = 0.25  # of the probed tokens: with more of them at fault, another model speaks
HALVES = (
    "further from the likeliest token than float32 rounds: does the decoder compute in half precision? say so (dtype)"
)
LISTED = 3  # faults and near-ties told in a check's detail

Progress = Callable[[str, int, int], None]


def _silent(phase: str, done: int, total: int) -> None:
    pass


def verify(
    subject: Subject,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    plan: Plan,
    progress: Progress = _silent,
) -> Report:
    """Judge subject by what it says after prompts (token ids). progress: phase, done, total.

    FAIL: with a certain fault, or one that chance explains with probability alpha at most. INCONCLUSIVE: where the
    target seems not to be the decoder's, answers are in doubt, or tokens too few. PASS: for what was checked."""
    _refuse(reference, prompts, plan)
    return _Trial(subject, reference, [tuple(prompt) for prompt in prompts], plan, progress).report()


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
    doubts: Counter[str] = field(default_factory=Counter)  # answers, by what is doubtful in them
    ends: int = 0  # sequences whose end was looked at
    end_faults: list[str] = field(default_factory=list)

    @property
    def greedily(self) -> Request:
        return replace(self.plan.request, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)

    def report(self) -> Report:
        plan, checks, notes = self.plan, list[Check](), list[str]()  # notes: on what was left out
        if plan.greedy or plan.stopping:
            foreign = self._foreign()
            if foreign:
                return Report(self.subject.name, "INCONCLUSIVE", (foreign,), (), plan)
            check, paths = self._greedy()
            checks.append(check)
            if not self._stopping(paths):
                notes.append("stops were not tried" + (": no greedy sequence was fit for it" if plan.stopping else ""))
        else:
            notes.append("without greedy decoding nothing confirms that the target is the decoder's, nor its stops")
        if not plan.repeats:
            notes.append("sampling was left out")
        evidence, sequences, sampled_checks = self._sampling() if plan.repeats else (NOTHING, 0, [])
        holds = "sequences end where plain decoding does"
        checks += [_certain("stopping", self.end_faults, self.ends, "of sequences", holds), *sampled_checks]
        verdict, reasons = self._verdict(checks)
        return Report(
            subject=self.subject.name,
            verdict=verdict,
            reasons=(*reasons, *notes),
            checks=tuple(checks),
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
        wrong = [float(each.deficit[0]) for each in first if each.deficit[0] > self._bound(each)[0]]
        if len(wrong) <= FOREIGN * len(first):
            return ""
        return (
            f"the decoder seems to follow another target, or not to be greedy when asked: {len(wrong)} of {len(first)} "
            f"first tokens are not this target's likeliest (median {np.median(wrong):.3g} logits below): give its own"
        )

    def _greedy(self) -> tuple[Check, list[tuple[int, tuple[int, ...]]]]:
        """The comparison; gives the prompts' numbers and paths that are the target's own beyond doubt."""
        prompts = self.prompts[: max(self.plan.greedy, self.plan.stopping)]
        faults, ties, paths, tokens = list[str](), list[str](), list[tuple[int, tuple[int, ...]]](), 0
        for number, sample in enumerate(self._ask("greedy", prompts, self.greedily, self.plan.seed)):
            if sample.doubt:
                continue
            found = greedy(self.reference, _within(sample, self.greedily))
            tokens += len(found.deficit)
            bound, rounding = self._bound(found), self.plan.near_tie.of(found.size)
            self.doubts[HALVES] += int(((found.deficit > rounding) & (found.deficit <= bound)).sum())
            for index in np.flatnonzero(found.deficit > 0):
                deficit, gap = found.deficit[index], found.gap[index]
                where = f"prompt {number}, token {index}: {deficit:.3g} logits below the likeliest, top-2 gap {gap:.3g}"
                (faults if deficit > bound[index] else ties).append(where)
            unsure = np.flatnonzero((found.deficit > 0) | (found.gap <= bound))
            fit = int(unsure[0]) if len(unsure) else len(sample.tokens)  # tokens that are the target's beyond doubt
            if self._ends_well(sample, self.greedily, f"prompt {number}, greedy") and fit > 1:
                paths.append((number, sample.tokens[:fit]))
        near = f"near-ties: {_listed(ties)}" if ties else "no near-tie"
        holds = f"tokens are the target's likeliest; {near}"
        return _certain("greedy", faults, tokens, "of tokens", holds), paths[: self.plan.stopping]

    def _bound(self, found: Greedy) -> Floats:
        """Of each token, how far below the likeliest it may stand without being a fault."""
        bound: Floats = (self.plan.doubtful or self.plan.near_tie).of(found.size)
        return bound

    def _stopping(self, paths: list[tuple[int, tuple[int, ...]]]) -> int:
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
            (sample,) = self._ask("", [self.prompts[number]], request, self.plan.seed)
            self.progress("stopping", done, len(trials))
            where = f"prompt {number}, {ending.in_words(request)}"
            if sample.doubt or not self._ends_well(sample, request, where):
                continue
            if sample.tokens != path[: ending.end(path, request, tokenizer)]:
                self.end_faults.append(f"{where}: another greedy text than without that stop")
        return len(trials)

    def _sampling(self) -> tuple[Evidence, int, list[Check]]:
        """The evidence, of how many sequences, and what it says; none where answers are in doubt, or repeated."""
        plan = self.plan
        noise = np.random.default_rng([plan.seed, 1])
        samples, parts, total = list[Sample](), list[Evidence](), plan.repeats * len(self.prompts)
        before, wide = self.doubts.total(), plan.doubtful or plan.near_tie
        for repeat in range(plan.repeats):
            seed = int(np.random.SeedSequence([plan.seed, repeat]).generate_state(1)[0] >> 1)
            for sample in self._ask("sampling", self.prompts, plan.request, seed, repeat * len(self.prompts), total):
                number = len(samples)
                samples.append(sample)
                if sample.doubt:
                    continue
                self._ends_well(sample, plan.request, f"sequence {number} (prompt {number % len(self.prompts)})")
                sample = _within(sample, plan.request)
                parts.append(sampled(self.reference, sample, number, plan.request.sampling, noise, wide))
                self.progress("evidence", len(samples), total)
            if any(part.impossible for part in parts):
                break
        if self.doubts.total() > before:
            return NOTHING, 0, []
        evidence = Evidence.join(parts)
        faults = [
            f"sequence {each.sequence} (prompt {each.sequence % len(self.prompts)}), token {each.index}: {each.token}"
            for each in evidence.impossible
        ]
        count = len(evidence) + evidence.near + len(faults)
        holds = f"tokens have a probability above 0; {evidence.near} only within the near-tie bound"
        impossible = _certain("impossible", faults, count, "of tokens", holds)
        repeated = _repeated(samples, evidence, plan.alpha)
        if repeated:
            self.doubts["word for word another's, far too long for chance (a cache, or a fixed seed?)"] += repeated
            return NOTHING, 0, [impossible]
        return evidence, len(samples), [impossible, *every(evidence, plan.alpha)]

    def _ask(
        self, phase: str, prompts: list[tuple[int, ...]], request: Request, seed: int, done: int = 0, total: int = 0
    ) -> list[Sample]:
        """The decoder's answers, if they can be judged."""
        name, samples, whole = self.subject.name, list[Sample](), 0
        for sample in self.subject.sample(prompts, request, seed):
            if len(samples) == len(prompts) or tuple(sample.prompt) != prompts[len(samples)]:
                raise NotJudgeable(
                    f"{name} answers other prompts than it was given: give one sample a prompt, in order"
                )
            if len(sample.tokens) > MOST_TOKENS:
                raise NotJudgeable(
                    f"{name} gives {len(sample.tokens)} tokens in one answer, and {MOST_TOKENS} are the most that are "
                    "judged: give the new tokens only"
                )
            alien = [token for token in sample.tokens if not 0 <= token < self.reference.vocab_size]
            if alien:
                shown = alien[0] if abs(alien[0]) <= LARGEST_ID else "of more than 31 bits"
                raise NotJudgeable(
                    f"{name} gives token id {shown}, outside the target's vocabulary of "
                    f"{self.reference.vocab_size}: give the target that it decodes for"
                )
            if sample.places is not None and len(sample.places) != len(sample.tokens):
                given = f"{len(sample.places)} places for {len(sample.tokens)} tokens"
                raise NotJudgeable(f"{name} gives {given}: give one a token, or none")
            samples.append(sample)
            self.doubts[sample.doubt] += bool(sample.doubt)
            begins = len(sample.prompt) >= 4 and sample.tokens[: len(sample.prompt)] == tuple(sample.prompt)
            # a text that repeats itself may begin with its prompt; it won't be too long then, nor will most texts
            whole += begins and (len(sample.tokens) > request.max_new_tokens or len(prompts) >= MANY)
            if phase:
                self.progress(phase, done + len(samples), total or len(prompts))
        if len(samples) != len(prompts):
            raise NotJudgeable(f"{name} gives {len(samples)} samples for {len(prompts)} prompts: give one a prompt")
        if 2 * whole > len(samples):
            raise NotJudgeable(f"{name} returns the prompt with its answer: give the new tokens only")
        return samples

    def _ends_well(self, sample: Sample, request: Request, where: str) -> bool:
        """Whether a sequence ends where it should; a fault is noted."""
        self.ends += 1
        fault = ending.fault(sample.tokens, request, self.reference.tokenizer)
        if fault:
            self.end_faults.append(f"{where}: {fault}")
        return not fault

    def _verdict(self, checks: list[Check]) -> tuple[Verdict, list[str]]:
        plan = self.plan
        failed = [_accusation(check) for check in checks if check.failed]
        if failed:
            return "FAIL", failed
        open_questions = [f"{count} answers are in doubt: {doubt}" for doubt, count in self.doubts.items() if count]
        bounds = {"quality": plan.resolution, "uniform": plan.uniformity}
        for check in checks:
            bound = bounds.get(check.name)
            if bound is not None and check.detectable > bound:
                open_questions.append(f"too few tokens ({check.count}): {_needed(check, bound)}")
        if open_questions:
            return "INCONCLUSIVE", open_questions
        seen = [
            f"{check.name}: {check.detectable:.3g} {check.unit} would have been seen"
            for check in checks if check.name in bounds
        ]  # fmt: skip
        return "PASS", seen or ["every greedy token is the target's likeliest, and sequences end where they should"]


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


def _certain(name: str, faults: list[str], count: int, unit: str, holds: str) -> Check:
    """A check whose single fault is proof. detectable: the rate of faults of which one shows with power 0.9."""
    rate = len(faults) / count if count else 0.0
    detectable = 1 - (1 - POWER) ** (1 / count) if count else math.inf
    detail = _listed(faults) if faults else holds if count else "not made: there is nothing to look at"
    return Check(name=name, p_value=None, statistic=float(len(faults)), effect=rate, detectable=detectable, unit=unit,
                 count=count, detail=detail, failed=bool(faults))  # fmt: skip


def _listed(faults: list[str]) -> str:
    more = len(faults) - LISTED
    return "; ".join(faults[:LISTED]) + (f"; and {more} more" if more > 0 else "")


def _accusation(check: Check) -> str:
    if check.adjusted is None:
        return f"{check.name}: {check.statistic:.0f} faults in {check.count}: {check.detail}"
    effect = f"effect {check.effect:.3g} {check.unit}"
    return (
        f"{check.name}: p = {check.adjusted:.2g} after Holm, {effect}, {check.count} tokens or pairs ({check.detail})"
    )


def _needed(check: Check, bound: float) -> str:
    if not check.made:
        return f"{check.name} was {check.detail}"
    needed = math.ceil(check.count * (check.detectable / bound) ** 2)
    return (
        f"{check.name} would show {check.detectable:.3g} {check.unit} at the least, where {bound:g} is asked for: "
        f"about {needed} tokens do that"
    )
