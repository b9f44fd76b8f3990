"""Judges a change by pairs of measurements: slower, not slower, or too noisy to tell. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["pass", "regression", "inconclusive"]
RESAMPLES = 9_999


@dataclass(frozen=True, slots=True)
class GateLimits:
    """bound: how much slower counts as a regression, 0.05 for 5 %. confidence: of each end of an interval by itself."""

    bound: float = 0.05
    confidence: float = 0.99


@dataclass(frozen=True, slots=True)
class GateFinding:
    """new / base, in milliseconds a token: above 1 is slower. The true ratio is above low, and below high, each with
    the confidence asked for."""

    ratio: float
    low: float
    high: float
    pairs: int

    def verdict(self, limits: GateLimits) -> Verdict:
        """regression: the whole interval is slower than the bound. pass: the whole interval is faster than the bound.
        inconclusive: the bound is within the interval."""
        if self.low > 1 + limits.bound:
            return "regression"
        return "pass" if self.high <= 1 + limits.bound else "inconclusive"


def find(log_ratios: Sequence[float], limits: GateLimits) -> GateFinding:
    """log_ratios: log(new / base), one for each pair of processes. The bootstrap resamples pairs, because even two
    processes of the same code differ, by the place of their memory.

    The interval is a percentile bootstrap of the mean (9,999 resamples, fixed seed). A bootstrap never reaches beyond
    the extremes of the sample, but with probability 2^-pairs the whole sample is on one side of the true value. So
    where Student's t puts an end of the interval farther out, that end is used."""
    values, count = np.asarray(log_ratios, dtype=float), len(log_ratios)
    mean, error = float(values.mean()), float(stats.sem(values)) if count > 1 else 0.0
    if not error:
        return GateFinding(math.exp(mean), math.exp(mean), math.exp(mean), count)
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=2 * limits.confidence - 1,  # each end has the confidence by itself
        method="percentile",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    reach = error * stats.t.ppf(limits.confidence, count - 1)
    low, high = min(found.low, mean - reach), max(found.high, mean + reach)
    return GateFinding(math.exp(mean), math.exp(low), math.exp(high), count)


def confirm(first: Sequence[float], again: Sequence[float], limits: GateLimits) -> tuple[GateFinding, Verdict]:
    """The verdict on a case that didn't pass with the first pairs, from these and the pairs of a second run. All pairs
    together decide, so that a false alarm stays as rare as with one look. For a regression the second run's pairs must
    also be beyond the bound by themselves, so that a disturbance of the machine in the first run isn't blamed on the
    code."""
    found = find([*first, *again], limits)
    verdict = found.verdict(limits)
    if verdict == "regression" and find(again, limits).ratio <= 1 + limits.bound:
        verdict = "inconclusive"
    return found, verdict


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of the verdicts."""
    return next((each for each in ("regression", "inconclusive") if each in verdicts), "pass")
