"""The parts of the statistical checks: a check's result, counts in bins, chi-square, and Holm's procedure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from sybil.losslessness.evidence import Floats, Integers

POWER = 0.9  # the power at which every smallest detectable effect is given
EXPECTED = (
    25  # in a cell, at least: with the usual 5 a chi-square's far tail, where alpha lies, is several times too thin
)
LEAST = 1e-300  # p-values below have one spelling


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question put to the decoder, and its answer.

    p_value: None where the answer is certain, or the check was not made. adjusted: p_value after Holm's adjustment; the
    check fails if it is at most alpha. effect: the effect that was seen, in `unit`. detectable: the smallest effect, in
    `unit`, that `count` tokens show with power 0.9; infinite where the check was not made.

    For checks of pairs of tokens: residuals: by bin of the first and of the second token, in standard deviations.
    alone: the p-value of the pairs' dependence alone, however unevenly u is spread. echo: the check fails only because
    u is unevenly spread."""

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
    alone: float | None = None
    echo: bool = False

    @property
    def made(self) -> bool:
        return math.isfinite(self.detectable)


def shown(p_value: float) -> str:
    """A p-value in text, as all reports print it."""
    return f"{p_value:.2g}" if p_value >= LEAST else f"< {LEAST:g}"


def is_shown(p_value: float) -> str:
    """A p-value in text, with its relation sign, for a sentence."""
    return f"p = {shown(p_value)}" if p_value >= LEAST else f"p {shown(p_value)}"


def not_made(name: str, unit: str, count: int, why: str) -> Check:
    """A check that wasn't made because there was too little data. why: the words after "not made"."""
    return Check(name=name, p_value=None, statistic=0.0, effect=0.0, detectable=math.inf, unit=unit, count=count,
                 detail=f"not made: {why}")  # fmt: skip


def bins_for(count: int, most: int, least: int, of: int = 1) -> int:
    """The number of bins for count items, in each of `of` dimensions; 0 where there are too few items."""
    bins = min(most, math.floor((count / EXPECTED) ** (1 / of) + 1e-9))
    return bins if bins >= least else 0


def binned(u: Floats, bins: int) -> Integers:
    """The index of each u's bin."""
    return (u * bins).astype(np.int64)


def pearson(found: Integers) -> float:
    """Pearson's chi-square statistic of counts whose expected values are all equal."""
    expected = found.sum() / len(found)
    return float(((found - expected) ** 2).sum() / expected)


def chi_square(name: str, statistic: float, freedom: int, count: int, alpha: float, detail: str) -> Check:
    """A chi-square check. Its effect is the estimated noncentrality as Cohen's w, 0 for what chance alone gives."""
    return Check(
        name=name,
        p_value=float(special.chdtrc(freedom, statistic)),
        statistic=statistic,
        effect=math.sqrt(max(statistic - freedom, 0.0) / count),
        detectable=math.sqrt(noncentrality(freedom, alpha) / count),
        unit="Cohen's w",
        count=count,
        detail=f"{detail}, {freedom} degrees of freedom",
    )


@lru_cache
def noncentrality(freedom: int, alpha: float) -> float:
    """The noncentrality at which a chi-square check at level alpha has power POWER."""
    bound = float(special.chdtri(freedom, alpha))

    def missed(shift: float) -> float:
        return float(special.chndtr(bound, freedom, shift)) - (1 - POWER)

    return float(optimize.brentq(missed, 1e-6, 4 * bound + 100))


def adjust(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's step-down adjustment, to be compared with the error rate of all checks together."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses are rejected, if any false rejection among all of them may have at most probability alpha."""
    return [p_value <= alpha for p_value in adjust(p_values)]
