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
class GateLimits:
    """bound: how much slower is a regression, 0.05 for 5 %; confidence: that of each end of an interval by itself."""

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
        """regression: surely slower than the bound; pass: surely not; inconclusive: the interval holds the bound."""
        if self.low > 1 + limits.bound:
            return "regression"
        return "pass" if self.high <= 1 + limits.bound else "inconclusive"


def find(log_ratios: Sequence[float], limits: GateLimits) -> GateFinding:
    """log_ratios: log(new / base), one a pair of processes. A pair is the unit that is drawn again: two processes of
    the same code differ too, by where their memory lies.

    Percentile bootstrap of the mean, 9,999 resamples, fixed seed. It never reaches beyond the extremes of the sample,
    which all lie on one side of the truth once in 2^pairs: where Student's t has the end farther out, it is that."""
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
