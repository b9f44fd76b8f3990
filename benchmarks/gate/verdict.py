"""What pairs of measurements say of a change: slower, not slower, or too noisy to tell. Pure."""

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
class Limits:
    """bound: how much slower is a regression, 0.05 for 5 %; confidence: that of each end of an interval by itself."""

    bound: float = 0.05
    confidence: float = 0.99


@dataclass(frozen=True, slots=True)
class Finding:
    """new / base, in milliseconds a token: above 1 is slower. The true ratio is above low, and below high, each with
    the confidence asked for."""

    ratio: float
    low: float
    high: float
    pairs: int

    def verdict(self, limits: Limits) -> Verdict:
        """regression: surely slower than the bound; pass: surely not; inconclusive: the interval holds the bound."""
        if self.low > 1 + limits.bound:
            return "regression"
        return "pass" if self.high <= 1 + limits.bound else "inconclusive"


def find(log_ratios: Sequence[float], limits: Limits) -> Finding:
    """log_ratios: log(new / base), one a pair of processes. A pair is the unit that is drawn again: two processes of
    the same code differ too, by where their memory lies.

    Percentile bootstrap of the mean, 9,999 resamples, fixed seed. Of few values its ends lie too near (those of eight
    hold 96 % where 99 are asked for), so they are taken as far out as Student's t is beyond the normal distribution
    (Hesterberg 2015, "expanded percentile interval")."""
    values, count = np.asarray(log_ratios, dtype=float), len(log_ratios)
    mean = float(values.mean())
    if count < 2 or np.ptp(values) == 0:
        return Finding(math.exp(mean), math.exp(mean), math.exp(mean), count)
    beyond = stats.norm.sf(math.sqrt(count / (count - 1)) * stats.t.isf(1 - limits.confidence, count - 1))
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=1 - 2 * beyond,  # each end has the confidence by itself
        method="percentile",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Finding(math.exp(mean), math.exp(found.low), math.exp(found.high), count)


def confirm(first: Sequence[float], again: Sequence[float], limits: Limits) -> tuple[Finding, Verdict]:
    """The verdict on a case that the first pairs did not pass, with those run again to confirm: all pairs together
    decide, so that a false alarm stays as rare as one look makes it, and where they say regression the new ones must
    lie beyond the bound by themselves: what befell the machine the first time has not befallen the code."""
    found = find([*first, *again], limits)
    verdict = found.verdict(limits)
    if verdict == "regression" and find(again, limits).ratio <= 1 + limits.bound:
        verdict = "inconclusive"
    return found, verdict


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of them."""
    return next((each for each in ("regression", "inconclusive") if each in verdicts), "pass")
