"""The parts of every statistical check: its answer, counts in bins, chi-square, and Holm's procedure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from sybil.losslessness.evidence import Floats, Integers

POWER = 0.9  # of every smallest detectable effect
EXPECTED = (
    25  # in a cell, at least: with the usual 5 a chi-square's far tail, where alpha lies, is several times too thin
)
LEAST = 1e-300  # p-values below have one spelling


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question put to the decoder.

    p_value: None where the answer is certain, or the check was not made; adjusted: p_value after Holm, which fails
    the check from alpha downwards. effect and detectable are in `unit`: what was seen, and the smallest that as many
    tokens as `count` show with power 0.9, infinite where the check was not made. residuals: of pairs of tokens, by
    bin of the first and of the second, in standard deviations. alone: of pairs, the p-value of their dependence by
    itself, however unevenly u is spread; echo: the check fails, and only because u is unevenly spread."""

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
    """A p-value as it is printed everywhere."""
    return f"{p_value:.2g}" if p_value >= LEAST else f"< {LEAST:g}"


def is_shown(p_value: float) -> str:
    """The same in a sentence."""
    return f"p = {shown(p_value)}" if p_value >= LEAST else f"p {shown(p_value)}"


def not_made(name: str, unit: str, count: int, why: str) -> Check:
    """A check that wasn't made because there was too little for it; why: stands after "not made"."""
    return Check(name=name, p_value=None, statistic=0.0, effect=0.0, detectable=math.inf, unit=unit, count=count,
                 detail=f"not made: {why}")  # fmt: skip


def bins_for(count: int, most: int, least: int, of: int = 1) -> int:
    """How many bins count things may fall into, in each of `of` dimensions; 0 where there are too few of them."""
    bins = min(most, math.floor((count / EXPECTED) ** (1 / of) + 1e-9))
    return bins if bins >= least else 0


def binned(u: Floats, bins: int) -> Integers:
    """The number of each u's bin."""
    return (u * bins).astype(np.int64)


def pearson(found: Integers) -> float:
    """Pearson's statistic of counts whose expectations are equal."""
    expected = found.sum() / len(found)
    return float(((found - expected) ** 2).sum() / expected)


def chi_square(name: str, statistic: float, freedom: int, count: int, alpha: float, detail: str) -> Check:
    """The effect is the estimate of the noncentrality, as Cohen's w: 0 where the statistic is what chance gives."""
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
    """The noncentrality at which a chi-square check at alpha has the wanted power."""
    bound = float(special.chdtri(freedom, alpha))

    def missed(shift: float) -> float:
        return float(special.chndtr(bound, freedom, shift)) - (1 - POWER)

    return float(optimize.brentq(missed, 1e-6, 4 * bound + 100))


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
