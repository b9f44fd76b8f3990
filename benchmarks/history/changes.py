"""Where a row of numbers changes its level, by apache-otava's E-divisive with a t-test, and how. Pure, without chance.

A step is one commit's doing. A slide goes on over several commits, none of which moves far by itself: E-divisive finds
a step in its middle, or several, so a piecewise line is laid beside the step, and is kept where it fits far better.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BESIDE = 10
"""Change points in one direction that are no farther apart are one slide."""
SHORTEST = 3
"""Commits that a slide takes at least."""
BETTER = 10.0
"""How much better than a step a slide must fit: n log(residuals of the step / of the slide); 1 in 600 by chance."""


@dataclass(frozen=True, slots=True)
class Change:
    """first, last: the places in the row where the level changes, the same for a step; from last on it is `after`.
    chance: how likely noise alone is to make it, by the t-test."""

    first: int
    last: int
    before: float
    after: float
    chance: float

    @property
    def relative(self) -> float:
        """By how much it changed, 0.08 for 8 %; infinite from zero."""
        return self.after / self.before - 1 if self.before else float("inf")


def changes(values: Sequence[float], chance: float, least: float) -> list[Change]:
    """The changes that stand at the row's end: rarer by chance than that, larger than the least, none mended later."""
    from otava.analysis import compute_change_points

    row = np.asarray(values, dtype=float)
    if len(row) < 3 or np.ptp(row) == 0:
        return []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a row without noise divides by a variance of 0, rightly
        points, _ = compute_change_points(row.tolist(), window_len=2 * len(row), max_pvalue=chance, min_magnitude=least)
    groups = _together(points)
    starts = [0, *(int(group[-1].index) for group in groups)]
    ends = [*(int(group[0].index) for group in groups), len(row)]
    found = [
        _change(row[starts[number] : ends[number + 1]], starts[number], group) for number, group in enumerate(groups)
    ]
    return _standing([each for each in found if abs(each.relative) > least], least)


def _together(points: Sequence[Any]) -> list[list[Any]]:
    """Change points by ones, but for neighbours in the same direction."""
    groups: list[list[Any]] = []
    for point in points:
        last = groups[-1][-1] if groups else None
        if last is not None and _rises(last) == _rises(point) and point.index - last.index <= BESIDE:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _rises(point: Any) -> bool:
    return bool(point.stats.mean_2 > point.stats.mean_1)


def _change(segment: np.ndarray, start: int, group: Sequence[Any]) -> Change:
    """What change points in one direction are; the segment reaches to the changes before and after them."""
    chance = min(float(point.stats.pvalue) for point in group)
    slide = _slide(segment)
    if slide:
        first, last, before, after = slide
        return Change(start + first, start + last, before, after, chance)
    first, last = group[0], group[-1]
    return Change(int(first.index), int(last.index), float(first.stats.mean_1), float(last.stats.mean_2), chance)


def _slide(segment: np.ndarray) -> tuple[int, int, float, float] | None:
    """The straight way from one level to another that fits best, as (first place that is higher or lower, place where
    the new level is reached, both levels); None where a step fits as well."""
    count = len(segment)
    low, high = np.triu_indices(count, 1)  # the last place of the old level, the first of the new one
    ramps = np.clip((np.arange(count) - low[:, None]) / (high - low)[:, None], 0.0, 1.0)
    centred, row = ramps - ramps.mean(1, keepdims=True), segment - segment.mean()
    slopes = centred @ row / (centred**2).sum(1)
    left = ((row - slopes[:, None] * centred) ** 2).sum(1)
    steps = high - low == 1
    slides = np.where(high - low >= SHORTEST, left, np.inf)
    best = int(slides.argmin())
    if not np.isfinite(slides[best]) or left[steps].min() <= 0:
        return None
    if count * np.log(left[steps].min() / max(slides[best], np.finfo(float).tiny)) < BETTER:
        return None
    before = float(segment.mean() - slopes[best] * ramps[best].mean())
    return int(low[best]) + 1, int(high[best]), before, before + float(slopes[best])


def _standing(found: list[Change], least: float) -> list[Change]:
    """Without what a later change has undone, and without what undid it."""
    for number, (one, other) in enumerate(itertools.pairwise(found)):
        opposite = (one.after > one.before) != (other.after > other.before)
        if opposite and abs(other.after - one.before) <= least * abs(one.before):
            return _standing(found[:number] + found[number + 2 :], least)
    return found
