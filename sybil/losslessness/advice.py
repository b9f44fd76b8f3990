"""How many sampled tokens a verdict needs. The estimate before the first token is drawn gets better once some are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from sybil.losslessness.checks import BINS, LEAST_BINS, SKEW, each_share, one_token_weighs
from sybil.losslessness.chisquare import EXPECTED, POWER, noncentrality
from sybil.losslessness.evidence import Evidence, Floats, Reference, moments
from sybil.losslessness.report import Plan
from sybil.sampling import probabilities

LOOKED_AT = 16  # prompts whose own tokens are used to estimate how unsure the target is
LOOKED_BACK = 32  # the most tokens of each, the last ones
SPARE = 1.1  # a factor on the advised number, because how unsure the target will be is an estimate


@dataclass(frozen=True, slots=True)
class Unsure:
    """How unsure the target is of a token: the mean variance and third central moment of its log probabilities."""

    variance: float
    third: float

    @classmethod
    def of(cls, evidence: Evidence) -> Unsure:
        """The estimate from sampled tokens. evidence holds at least one."""
        return cls(float(evidence.variance.mean()), float(evidence.third.mean()))

    @classmethod
    def at(cls, reference: Reference, prompts: Sequence[Sequence[int]], plan: Plan) -> Unsure:
        """The estimate from the last tokens of the prompts: the decoder hasn't answered yet, so no others are known."""

        def unsure(prompt: Sequence[int]) -> tuple[Floats, Floats]:
            start = max(1, len(prompt) // 2, len(prompt) - LOOKED_BACK)
            logits = reference.logits(prompt[:start], [*prompt[start:], prompt[0]]).double()
            return moments(probabilities(logits, plan.request.sampling))[2:]

        variance, third = zip(*reference.of_each(unsure, prompts[:LOOKED_AT]), strict=True)
        return cls(float(np.concatenate(variance).mean()), float(np.concatenate(third).mean()))


def before(reference: Reference, prompts: Sequence[Sequence[int]], plan: Plan) -> str:
    """What to ask for instead, where a plan has too few sequences even if none ends early; "" where they may do."""
    most = plan.repeats * len(prompts) * plan.request.max_new_tokens
    if not most:
        return ""
    unsure = Unsure.at(reference, prompts, plan)
    if most >= tokens_needed(unsure, plan, spare=1.0):
        return ""
    needed = tokens_needed(unsure, plan)
    return (
        f"at most {most} tokens will be sampled, too few for a PASS: to see a drift of {plan.resolution:g} nats a "
        f"token and an uneven u of {plan.uniformity:g}, as is asked for, takes about {needed}: "
        f"{remedy(needed, most, plan)}"
    )


def remedy(needed: int, count: int, plan: Plan) -> str:
    """What to change in a plan that gave, or will give, count tokens, where needed tokens are necessary."""
    return f"use {math.ceil(plan.repeats * needed / max(count, 1))} repeats in place of {plan.repeats}, or more prompts"


def tokens_needed(unsure: Unsure, plan: Plan, spare: float = SPARE) -> int:
    """How many sampled tokens are needed to detect what the plan asks a PASS to detect."""
    alpha = each_share(plan.alpha)
    return max(for_uniform(plan.uniformity, alpha), for_quality(unsure, plan.resolution, alpha, spare))


def for_uniform(bound: float, alpha: float) -> int:
    """The fewest tokens with which `uniform` detects an effect of bound. More tokens have more bins, up to 500."""
    fewest = EXPECTED * BINS
    for bins in range(BINS, LEAST_BINS - 1, -1):
        needed = math.ceil(noncentrality(bins - 1, alpha) / bound**2)
        if needed > EXPECTED * bins:
            return needed if bins == BINS else min(needed, fewest)
        fewest = EXPECTED * bins
    return fewest


def for_quality(unsure: Unsure, bound: float, alpha: float, spare: float = SPARE) -> int:
    """The fewest tokens, times spare, with which `quality` detects a drift of bound, for so unsure a target."""
    deviation = math.sqrt(unsure.variance)
    if not deviation:
        return 0
    wanted = float(special.ndtri(POWER) - special.ndtri(alpha / 2)) * deviation / bound
    skewed = abs(unsure.third) / deviation**3 / SKEW
    count = max(math.ceil(spare * max(wanted, skewed) ** 2), 1)
    while one_token_weighs(deviation * math.sqrt(count), count, alpha):
        count = math.ceil(SPARE * count)
    return count
