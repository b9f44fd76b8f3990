"""Collects the evidence of a decoder's sampled sequences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sybil.losslessness import ending
from sybil.losslessness.checks import every
from sybil.losslessness.chisquare import Check
from sybil.losslessness.evidence import Evidence, sampled
from sybil.losslessness.faults import Fault, certain
from sybil.losslessness.samples import Sample
from sybil.losslessness.trial import Trial, within


def draws(trial: Trial) -> tuple[int, list[Check]]:
    """The number of sampled sequences that were judged, and their checks. The number is 0 where answers are in doubt or
    repeat each other."""
    plan, found = trial.plan, trial.found
    samples, parts, total = list[Sample](), list[Evidence](), plan.repeats * len(trial.prompts)
    for repeat in range(plan.repeats):
        seed = int(np.random.SeedSequence([plan.seed, repeat]).generate_state(1)[0] >> 1)
        answers = trial.ask("sampling", trial.prompts, plan.request, seed, len(samples), total)
        fit = list[tuple[int, Sample]]()
        for number, sample in enumerate(answers, start=len(samples)):
            if sample.doubt:
                continue
            trial.ends_well(sample, plan.request, f"sequence {number} (prompt {number % len(trial.prompts)})")
            fit.append((number, within(sample, plan.request)))
        parts += _measured(trial, fit, len(samples), total)
        samples += answers
        if any(part.impossible for part in parts):
            break
    if found.doubts.get("distribution"):
        return 0, []
    evidence = Evidence.join(parts)
    faults = [
        Fault(
            f"sequence {each.sequence} (prompt {each.sequence % len(trial.prompts)}), token {each.index}",
            ending.named(each.token, trial.reference.tokenizer),
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
    return len(samples), [impossible, *(_explained(trial, check) for check in every(evidence, plan.alpha))]


def _measured(trial: Trial, fit: Sequence[tuple[int, Sample]], done: int, total: int) -> list[Evidence]:
    """The evidence of sequences. Each comes with its number, from which its noise is seeded."""
    plan = trial.plan

    def measured(each: tuple[int, Sample]) -> Evidence:
        number, sample = each
        noise = np.random.default_rng([plan.seed, 1, number])
        return sampled(trial.reference, sample, number, plan.request.sampling, noise, trial.widest)

    return trial.reference.of_each(measured, fit, lambda count: trial.progress("evidence", done + count, total))


def _explained(trial: Trial, check: Check) -> Check:
    """The check; where it is of an unknown draft, with the reason why the draft isn't checked."""
    if check.name != "draft" or trial.reference.draft is not None:
        return check
    return replace(check, detail=f"not made: {trial.reference.no_draft}")


def _repeated(samples: list[Sample], evidence: Evidence, alpha: float) -> int:
    """How many sequences are an exact copy of another with the same prompt, and too improbable for that to be chance.

    Two independent draws agree on a sequence x with the probability of x. The limit is set so that independent draws
    agree on any sequence counted here with probability alpha at most."""
    log_prob = np.bincount(evidence.sequence, weights=evidence.log_prob, minlength=len(samples))
    askings = Counter(sample.prompt for sample in samples).values()
    pairs = sum(count * (count - 1) // 2 for count in askings)
    if not pairs:
        return 0
    bound = math.log(alpha / pairs)
    seen = Counter((each.prompt, each.tokens) for each, log in zip(samples, log_prob, strict=True) if log < bound)
    return sum(count - 1 for count in seen.values())
