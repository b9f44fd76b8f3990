"""Checks whether the u of two tokens depend on each other: in one sequence, and in neighbouring sequences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy import special

from sybil.losslessness.chisquare import EXPECTED, Check, binned, bins_for, chi_square, not_made
from sybil.losslessness.evidence import Evidence, Floats, Integers

BINS, LAGS = 5, 4


def lag(evidence: Evidence, steps: int, alpha: float) -> Check:
    """Whether a token's u depends on the u of the token `steps` before it, however unevenly u is spread."""
    key = _keys(evidence)
    return _pairs(evidence, key, key + steps, f"lag {steps}", "tokens of a sequence, one after the other", alpha)


def rows(evidence: Evidence, alpha: float) -> Check:
    """Whether two sequences that were asked for one after the other share noise at the same place."""
    key = _keys(evidence)
    return _pairs(evidence, key, key + _stride(evidence), "rows", "the same place of neighbouring sequences", alpha)


def _stride(evidence: Evidence) -> int:
    """A number larger than any index plus any lag, so that keys of two sequences never coincide."""
    return int(evidence.index.max(initial=0)) + LAGS + 1


def _keys(evidence: Evidence) -> Integers:
    keys: Integers = evidence.sequence * _stride(evidence) + evidence.index
    return keys


def _pairs(evidence: Evidence, firsts: Integers, partners: Integers, name: str, what: str, alpha: float) -> Check:
    """Tests the interaction in the table of pairs of u, whose margins are known: r = O - row/B - column/B + n/B^2.

    The statistic sum r^2 * B^2 / n is chi-square with (B - 1)^2 degrees of freedom. r is the sum, over the pairs, of
    the products of both tokens' centred bin indicators. Pairs overlap, but given everything before its later token a
    product has mean zero. So the products of two pairs are uncorrelated, as if the pairs were independent."""
    _, later, earlier = np.intersect1d(firsts, partners, assume_unique=True, return_indices=True)
    count = len(later)
    bins = bins_for(count, BINS, 2, of=2)
    if not bins:
        return not_made(name, "Cohen's w", count, f"{count} pairs of tokens are too few, it needs {EXPECTED * 4}")
    cells = binned(evidence.u, bins)
    table = _table(cells[earlier], cells[later], bins)
    r = table - table.sum(1, keepdims=True) / bins - table.sum(0) / bins + count / bins**2
    statistic = float((r**2).sum()) * bins**2 / count
    check = chi_square(name, statistic, (bins - 1) ** 2, count, alpha, f"{what}, in {bins} x {bins} bins")
    residuals = r * bins / (math.sqrt(count) * (1 - 1 / bins))
    alone = _dependence(evidence.u[earlier], evidence.u[later], bins)
    return replace(check, residuals=tuple(tuple(map(float, row)) for row in residuals), alone=alone)


def _dependence(earlier: Floats, later: Floats, bins: int) -> float:
    """The p-value of the pairs' dependence alone, by Pearson's chi-square. Each side is binned by its ranks, so the
    bins are equally full however u is spread."""
    table = _table(_ranked(earlier, bins), _ranked(later, bins), bins)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return float(special.chdtrc((bins - 1) ** 2, float(((table - expected) ** 2 / expected).sum())))


def _ranked(u: Floats, bins: int) -> Integers:
    ranks: Integers = u.argsort(kind="stable").argsort(kind="stable")
    return ranks * bins // len(u)


def _table(earlier: Integers, later: Integers, bins: int) -> Integers:
    return np.bincount(earlier * bins + later, minlength=bins**2).reshape(bins, bins)
