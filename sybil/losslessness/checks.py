"""The statistical checks. All have the same null hypothesis: every token is drawn from the target.

Under it the u of evidence.py are independent and uniform. So every expected count is known, and nothing is fitted.

Sequences end where an end token is drawn, so the number of tokens depends on the tokens. This makes no check wrong:
given everything before it, a token's contribution has mean zero, and so has the sum of contributions up to a bounded
stopping time (optional stopping). max_new_tokens is the bound. Variances add up in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from sybil.losslessness.chisquare import (
    EXPECTED,
    POWER,
    Check,
    adjust,
    binned,
    bins_for,
    chi_square,
    holm,
    noncentrality,
    not_made,
    pearson,
    shown,
)  # fmt: skip
from sybil.losslessness.evidence import Evidence
from sybil.losslessness.neighbours import LAGS, lag, rows

BINS, LEAST_BINS, PLACE_BINS = 20, 4, 10
LEAST_SPREAD = 4.0  # the least variance of a sum of overlaps, each in [0, 1], whose distribution is known
SKEW = 0.5  # the largest skewness of the sum of log probabilities; above it there are too few tokens


@dataclass(frozen=True, slots=True)
class Drift:
    """The mean of log_prob + entropy, in nats a token, with its 95 % interval.

    Above zero, the decoder prefers the target's likeliest tokens too much, as at a lower temperature. Below zero, its
    text is less probable than the target's own."""

    value: float
    low: float
    high: float


def uniform(evidence: Evidence, alpha: float) -> Check:
    """Whether u is uniform: Pearson's chi-square on counts in equal bins."""
    count = len(evidence)
    bins = bins_for(count, BINS, LEAST_BINS)
    if not bins:
        return not_made("uniform", "Cohen's w", count, f"{count} tokens are too few, it needs {EXPECTED * LEAST_BINS}")
    found = np.bincount(binned(evidence.u, bins), minlength=bins)
    statistic = pearson(found)
    return chi_square("uniform", statistic, bins - 1, count, alpha, f"u of each token in {bins} equal bins")


def places(evidence: Evidence, alpha: float) -> Check:
    """Whether u is uniform at each place of a block; the chi-squares are summed.

    Whether a block reaches a place depends on earlier tokens and on noise, and the token at the place is independent of
    that noise. This is evident for the token rule. Block verification looks ahead, but its proof shows the same: given
    that a block is kept up to a place, the token there has the target's distribution."""
    statistic, freedom, used = 0.0, 0, 0
    described, u = [], evidence.u
    for place in np.unique(evidence.place[evidence.place >= 0]):
        here = u[evidence.place == place]
        bins = bins_for(len(here), PLACE_BINS, LEAST_BINS)
        if not bins:
            continue
        found = pearson(np.bincount(binned(here, bins), minlength=bins))
        statistic, freedom, used = statistic + found, freedom + bins - 1, used + len(here)
        described.append(f"{place}: {shown(float(special.chdtrc(bins - 1, found)))}")
    if not freedom:
        known = int((evidence.place >= 0).sum())
        few = f"no place of a block has the {EXPECTED * LEAST_BINS} tokens that it needs"
        why = few if known else "the decoder doesn't say which tokens came in one block"
        return not_made("places", "Cohen's w", known, why)
    return chi_square("places", statistic, freedom, used, alpha, f"p-value by place {', '.join(described)}")


def quality(evidence: Evidence, alpha: float) -> Check:
    """Whether the tokens are as probable as the target's own: neither too probable nor too improbable.

    The sum of log_prob + entropy has mean zero and a known variance and skewness. Its p-value comes from Pearson's
    type III distribution, a shifted gamma distribution with the same mean, variance and skewness. The normal
    distribution's tail is too thin: it would accuse too often."""
    count, unit = len(evidence), "nats a token"
    variance = float(evidence.variance.sum())
    if not count:
        return not_made("quality", unit, 0, "there are no tokens")
    if variance == 0:  # the target was certain of every token
        detail = "the target is certain of every token"
        return Check(name="quality", p_value=None, statistic=0.0, effect=0.0, detectable=0.0, unit=unit,
                     count=count, detail=detail)  # fmt: skip
    deviation = math.sqrt(variance)
    skew = float(evidence.third.sum()) / variance**1.5
    if abs(skew) > SKEW:
        return not_made("quality", unit, count, f"{count} tokens are too few, their log probabilities are too skewed")
    if one_token_weighs(deviation, count, alpha):
        return not_made("quality", unit, count, f"the target is unsure of too few of the {count} tokens")
    z = float((evidence.log_prob + evidence.entropy).sum()) / deviation
    p_value = 2 * min(float(stats.pearson3.cdf(z, skew)), float(stats.pearson3.sf(z, skew)), 0.5)
    detectable = float(special.ndtri(POWER) - special.ndtri(alpha / 2)) * deviation / count
    detail = f"z = {z:+.2f}: {'too greedy' if z > 0 else 'degraded'}, if anything"
    return Check(name="quality", p_value=p_value, statistic=z, effect=drift(evidence).value, detectable=detectable,
                 unit=unit, count=count, detail=detail)  # fmt: skip


def one_token_weighs(deviation: float, count: int, alpha: float) -> bool:
    """Whether a single rare token may move a sum of that standard deviation as far as alpha allows."""
    return float(-special.ndtri(alpha / 2)) * deviation < -math.log(alpha / count)


def draft(evidence: Evidence, alpha: float) -> Check:
    """Whether tokens lean towards the draft's proposals, or away from them, at any place of a block.

    This check responds most strongly to a wrong rule. For example, without the residual the tokens are off by exactly
    min(1, draft / target). The sum of `lean` at each place becomes a normal score by Pearson's type III distribution,
    as in `quality`. The squares of the scores are added up."""
    unit, known = "of a token's overlap", np.isfinite(evidence.lean)
    statistic, freedom, count, variance, described = 0.0, 0, 0, 0.0, []
    for place in np.unique(evidence.place[known]):
        here = known & (evidence.place == place)
        spread = float(evidence.lean_variance[here].sum())
        skew = float(evidence.lean_third[here].sum()) / spread**1.5 if spread else math.inf
        if spread < LEAST_SPREAD or abs(skew) > SKEW:
            continue
        score = _normal_score(float(evidence.lean[here].sum()) / math.sqrt(spread), skew)
        statistic, freedom = statistic + score**2, freedom + 1
        count, variance = count + int(here.sum()), variance + spread
        described.append(f"{place}: {score:+.1f}")
    if not freedom:
        few = f"{int(known.sum())} tokens are too few, or the draft is too much like the target"
        return not_made("draft", unit, int(known.sum()), few if known.any() else "no draft is named")
    check = chi_square("draft", statistic, freedom, count, alpha, f"normal score by place {', '.join(described)}")
    detectable = math.sqrt(noncentrality(freedom, alpha) * variance) / count
    return replace(check, effect=float(evidence.lean[known].mean()), detectable=detectable, unit=unit)


def rarest(evidence: Evidence, alpha: float) -> Check:
    """Whether the rarest token is rarer than so many draws would show. One wrong token in thousands is enough to fail.

    The tails are uniform, so the smallest of n has exactly the distribution function 1 - (1 - x)^n."""
    count, unit = len(evidence), "probability of so rare a token"
    if not count:
        return not_made("rarest", unit, 0, "there are no tokens")
    least = int(evidence.tail.argmin())
    tail = float(evidence.tail[least])
    p_value = -math.expm1(count * math.log1p(-min(tail, math.nextafter(1.0, 0.0))))
    detail = f"sequence {evidence.sequence[least]}, token {evidence.index[least]}"
    return Check(name="rarest", p_value=p_value, statistic=tail, effect=tail, detectable=alpha / count, unit=unit,
                 count=count, detail=detail)  # fmt: skip


MADE: tuple[Callable[[Evidence, float], Check], ...] = (uniform, quality, draft, rarest, places, rows)


def each_share(alpha: float) -> float:
    """The strictest bound on a p-value that Holm's method may set for one of the checks."""
    return alpha / (len(MADE) + LAGS)


def every(evidence: Evidence, alpha: float) -> list[Check]:
    """All checks, with p-values adjusted by Holm's method. Detectable effects are those at Holm's strictest bound."""
    share = each_share(alpha)
    checks = [check(evidence, share) for check in MADE]
    checks += [lag(evidence, steps, share) for steps in range(1, LAGS + 1)]
    p_values = [check.p_value for check in checks if check.p_value is not None]
    adjusted = iter(adjust(p_values))
    rejected = iter(holm(p_values, alpha))
    judged = [check if check.p_value is None else _judged(check, next(adjusted), next(rejected)) for check in checks]
    uneven = judged[0].failed
    return [replace(each, echo=uneven and each.failed and (each.alone or 0) > share) for each in judged]


def drift(evidence: Evidence) -> Drift:
    """The drift of evidence, which holds at least one token. The interval has the width of a lossless decoder's."""
    excess = float((evidence.log_prob + evidence.entropy).sum())
    return drift_of(excess, float(evidence.variance.sum()), len(evidence))


def drift_of(excess: float, variance: float, count: int) -> Drift:
    """The drift of count tokens, at least one. excess: the sum of log_prob + entropy. variance: its variance."""
    value, half = excess / count, 1.96 * math.sqrt(variance) / count
    return Drift(value, value - half, value + half)


def _normal_score(z: float, skew: float) -> float:
    """The standard normal score with the same tail probability as z in a standardised sum of that skewness."""
    side = float(stats.pearson3.cdf(z, skew) if z < 0 else stats.pearson3.sf(z, skew))
    return math.copysign(float(special.ndtri(max(side, 1e-300))), z)


def _judged(check: Check, adjusted: float, failed: bool) -> Check:
    return replace(check, adjusted=adjusted, failed=failed)
