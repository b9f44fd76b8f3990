"""The statistical checks. Each has one null hypothesis, the same: every token is drawn from the target.

Under it the u of evidence.py are independent and uniform, so every expected count is known and nothing is fitted.
Sequences end where an end token is drawn: how many tokens there are is decided by the tokens. That does no harm. A
token's contribution has mean zero given all that came before it, and so has a sum of such contributions up to a
stopping time that is bounded, as max_new_tokens bounds it (optional stopping); variances add up in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

from sybil.losslessness.evidence import Evidence, Floats, Integers

POWER = 0.9  # of every smallest detectable effect
EXPECTED = (
    25  # in a cell, at least: with the usual 5 a chi-square's far tail, where alpha lies, is several times too thin
)
BINS, PAIR_BINS, PLACE_BINS, LAGS = 20, 5, 10, 4
LEAST_SPREAD = 4.0  # of a sum of overlaps, each between 0 and 1, for its distribution to be known
SKEW = 0.5  # of the sum of log probabilities; beyond it there are too few tokens for its distribution to be known


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question put to the decoder.

    p_value: None where the answer is certain, or the check was not made; adjusted: p_value after Holm, which fails
    the check from alpha downwards. effect and detectable are in `unit`: what was seen, and the smallest that as many
    tokens as `count` show with power 0.9, infinite where the check was not made. residuals: of pairs of tokens, by
    bin of the first and of the second, in standard deviations."""

    name: str
    p_value: float | None
    statistic: float
    effect: float
    detectable: float
    unit: str
    count: int
    detail: str
    failed: bool = False
    adjusted: float | None = None
    residuals: tuple[tuple[float, ...], ...] = ()

    @property
    def made(self) -> bool:
        return math.isfinite(self.detectable)


@dataclass(frozen=True, slots=True)
class Drift:
    """Mean of log_prob + entropy, nats a token, with its 95 % interval. Above zero: the decoder keeps too much to the
    tokens that the target likes best, as at a lower temperature. Below: its text is worse than the target's own."""

    value: float
    low: float
    high: float


def uniform(evidence: Evidence, alpha: float) -> Check:
    """Whether u is uniform: Pearson's chi-square on counts in equal bins."""
    count = len(evidence)
    bins = _bins(count, BINS, 4)
    if not bins:
        return _not_made("uniform", "Cohen's w", count, f"{EXPECTED * 4} tokens")
    found = np.bincount(_binned(evidence.u, bins), minlength=bins)
    statistic = _pearson(found)
    return _chi_square("uniform", statistic, bins - 1, count, alpha, f"u of each token in {bins} equal bins")


def lag(evidence: Evidence, steps: int, alpha: float) -> Check:
    """Whether a token's u depends on that of the token `steps` before it, whatever the bins' own counts."""
    key = _keys(evidence)
    return _pairs(evidence, key, key + steps, f"lag {steps}", "tokens of a sequence, one after the other", alpha)


def rows(evidence: Evidence, alpha: float) -> Check:
    """Whether the same place of two sequences asked for side by side shares its noise."""
    key = _keys(evidence)
    return _pairs(evidence, key, key + _stride(evidence), "rows", "the same place of neighbouring sequences", alpha)


def places(evidence: Evidence, alpha: float) -> Check:
    """Whether u is uniform at each place of a block, the chi-squares summed.

    Whether a block reaches a place depends on earlier tokens and on noise that the place's own token is independent
    of. That is plain under the token rule; under block verification, which looks ahead, it is what its proof shows:
    given that a block is kept as far as a place, the token there has the target's distribution."""
    statistic, freedom, used = 0.0, 0, 0
    described, u = [], evidence.u
    for place in np.unique(evidence.place[evidence.place >= 0]):
        here = u[evidence.place == place]
        bins = _bins(len(here), PLACE_BINS, 4)
        if not bins:
            continue
        found = _pearson(np.bincount(_binned(here, bins), minlength=bins))
        statistic, freedom, used = statistic + found, freedom + bins - 1, used + len(here)
        described.append(f"{place}: {special.chdtrc(bins - 1, found):.2g}")
    if not freedom:
        known = int((evidence.place >= 0).sum())
        return _not_made("places", "Cohen's w", known, f"{EXPECTED * 4} tokens at one known place of a block")
    return _chi_square("places", statistic, freedom, used, alpha, f"p-value by place {', '.join(described)}")


def quality(evidence: Evidence, alpha: float) -> Check:
    """Whether the tokens are as probable as the target's own would be, to either side.

    The sum of log_prob + entropy has mean zero and a known variance and skewness; Pearson's type III distribution,
    a shifted gamma, has all three, where the normal's thin tail would accuse too often."""
    count, unit = len(evidence), "nats a token"
    variance = float(evidence.variance.sum())
    if variance == 0:  # any other token would have been an impossible one
        detail = "the target is certain of every token"
        return Check(name="quality", p_value=None, statistic=0.0, effect=0.0, detectable=0.0 if count else math.inf,
                     unit=unit, count=count, detail=detail)  # fmt: skip
    deviation = math.sqrt(variance)
    skew = float(evidence.third.sum()) / variance**1.5
    if abs(skew) > SKEW:
        return _not_made("quality", unit, count, f"about {count * (skew / SKEW) ** 2:.0f} tokens")
    if -special.ndtri(alpha / 2) * deviation < -math.log(alpha / count):  # a single rare token would weigh too much
        return _not_made("quality", unit, count, "more tokens of which the target is unsure")
    z = float((evidence.log_prob + evidence.entropy).sum()) / deviation
    p_value = 2 * min(float(stats.pearson3.cdf(z, skew)), float(stats.pearson3.sf(z, skew)), 0.5)
    detectable = float(special.ndtri(POWER) - special.ndtri(alpha / 2)) * deviation / count
    detail = f"z = {z:+.2f}: {'too greedy' if z > 0 else 'degraded'}, if anything"
    return Check(name="quality", p_value=p_value, statistic=z, effect=drift(evidence).value, detectable=detectable,
                 unit=unit, count=count, detail=detail)  # fmt: skip


def draft(evidence: Evidence, alpha: float) -> Check:
    """Whether tokens lean towards what the draft proposes, or away from it, at any place of a block.

    Of all that can be asked this is what a wrong rule answers most loudly: without the residual, say, the tokens are
    off by just min(1, draft / target). Sums of `lean` at each place, turned into normal scores by Pearson's type III
    distribution as in `quality`, squared and added up."""
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
        return _not_made("draft", unit, int(known.sum()), "a draft that is known, and more tokens")
    check = _chi_square("draft", statistic, freedom, count, alpha, f"normal score by place {', '.join(described)}")
    detectable = math.sqrt(_noncentrality(freedom, alpha) * variance) / count
    return replace(check, effect=float(evidence.lean[known].mean()), detectable=detectable, unit=unit)


def rarest(evidence: Evidence, alpha: float) -> Check:
    """Whether the rarest token is rarer than that many draws would show: one wrong token in thousands is enough.

    The tails are uniform, so the least of n has the distribution function 1 - (1 - x)^n exactly."""
    count, unit = len(evidence), "probability of so rare a token"
    if not count:
        return _not_made("rarest", unit, 0, "1 token")
    least = int(evidence.tail.argmin())
    tail = float(evidence.tail[least])
    p_value = -math.expm1(count * math.log1p(-min(tail, math.nextafter(1.0, 0.0))))
    detail = f"sequence {evidence.sequence[least]}, token {evidence.index[least]}"
    return Check(name="rarest", p_value=p_value, statistic=tail, effect=tail, detectable=alpha / count, unit=unit,
                 count=count, detail=detail)  # fmt: skip


def every(evidence: Evidence, alpha: float) -> list[Check]:
    """All of them, failed and adjusted by Holm; detectable effects at the strictest bound that Holm may set."""
    made: list[Callable[[Evidence, float], Check]] = [uniform, quality, draft, rarest, places, rows]
    share = alpha / (len(made) + LAGS)
    checks = [check(evidence, share) for check in made]
    checks += [lag(evidence, steps, share) for steps in range(1, LAGS + 1)]
    p_values = [check.p_value for check in checks if check.p_value is not None]
    adjusted = iter(adjust(p_values))
    rejected = iter(holm(p_values, alpha))
    return [check if check.p_value is None else _judged(check, next(adjusted), next(rejected)) for check in checks]


def drift(evidence: Evidence) -> Drift:
    """The interval is that of a lossless decoder's scatter about the value; evidence holds a token at least."""
    value = float((evidence.log_prob + evidence.entropy).mean())
    half = 1.96 * math.sqrt(float(evidence.variance.sum())) / len(evidence)
    return Drift(value, value - half, value + half)


def adjust(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: to be compared with the error rate of all of them together."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which are rejected, if one false rejection among all is to have at most probability alpha."""
    return [p_value <= alpha for p_value in adjust(p_values)]


def _normal_score(z: float, skew: float) -> float:
    """The standard normal number as far out as z is in a standardised sum of that skewness."""
    side = float(stats.pearson3.cdf(z, skew) if z < 0 else stats.pearson3.sf(z, skew))
    return math.copysign(float(special.ndtri(max(side, 1e-300))), z)


def _judged(check: Check, adjusted: float, failed: bool) -> Check:
    return replace(check, adjusted=adjusted, failed=failed)


def _bins(count: int, most: int, least: int, of: int = 1) -> int:
    """How many bins count things may fall into, in each of `of` dimensions; 0 where there are too few of them."""
    bins = min(most, math.floor((count / EXPECTED) ** (1 / of) + 1e-9))
    return bins if bins >= least else 0


def _binned(u: Floats, bins: int) -> Integers:
    return (u * bins).astype(np.int64)


def _pearson(found: Integers) -> float:
    """Pearson's statistic of counts whose expectations are equal."""
    expected = found.sum() / len(found)
    return float(((found - expected) ** 2).sum() / expected)


def _stride(evidence: Evidence) -> int:
    """More than any index and any lag, so that keys of two sequences never meet by chance."""
    return int(evidence.index.max(initial=0)) + LAGS + 1


def _keys(evidence: Evidence) -> Integers:
    keys: Integers = evidence.sequence * _stride(evidence) + evidence.index
    return keys


def _pairs(evidence: Evidence, firsts: Integers, partners: Integers, name: str, what: str, alpha: float) -> Check:
    """The interaction in the table of pairs of u, whose margins are known: r = O - row/B - column/B + n/B^2.

    sum r^2 * B^2 / n is chi-square with (B - 1)^2 degrees of freedom. r sums, over the pairs, the products of both
    tokens' centred bin indicators. Pairs overlap, but a product has mean zero given everything before its later
    token, so those of two pairs are uncorrelated: their covariances are as if the pairs were independent."""
    _, later, earlier = np.intersect1d(firsts, partners, assume_unique=True, return_indices=True)
    count = len(later)
    bins = _bins(count, PAIR_BINS, 2, of=2)
    if not bins:
        return _not_made(name, "Cohen's w", count, f"{EXPECTED * 4} pairs")
    binned = _binned(evidence.u, bins)
    table = np.bincount(binned[earlier] * bins + binned[later], minlength=bins**2).reshape(bins, bins)
    r = table - table.sum(1, keepdims=True) / bins - table.sum(0) / bins + count / bins**2
    statistic = float((r**2).sum()) * bins**2 / count
    check = _chi_square(name, statistic, (bins - 1) ** 2, count, alpha, f"{what}, in {bins} x {bins} bins")
    residuals = r * bins / (math.sqrt(count) * (1 - 1 / bins))
    return replace(check, residuals=tuple(tuple(map(float, row)) for row in residuals))


def _chi_square(name: str, statistic: float, freedom: int, count: int, alpha: float, detail: str) -> Check:
    """The effect is the estimate of the noncentrality, as Cohen's w: 0 where the statistic is what chance gives."""
    return Check(
        name=name,
        p_value=float(special.chdtrc(freedom, statistic)),
        statistic=statistic,
        effect=math.sqrt(max(statistic - freedom, 0.0) / count),
        detectable=math.sqrt(_noncentrality(freedom, alpha) / count),
        unit="Cohen's w",
        count=count,
        detail=f"{detail}, {freedom} degrees of freedom",
    )


@lru_cache
def _noncentrality(freedom: int, alpha: float) -> float:
    """At which a chi-square check at alpha has the wanted power."""
    bound = float(special.chdtri(freedom, alpha))

    def missed(shift: float) -> float:
        return float(special.chndtr(bound, freedom, shift)) - (1 - POWER)

    return float(optimize.brentq(missed, 1e-6, 4 * bound + 100))


def _not_made(name: str, unit: str, count: int, needed: str) -> Check:
    return Check(name=name, p_value=None, statistic=0.0, effect=0.0, detectable=math.inf, unit=unit, count=count,
                 detail=f"not made: it needs {needed}, and has {count}")  # fmt: skip
