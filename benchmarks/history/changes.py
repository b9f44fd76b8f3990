"""Finds where and how a row of numbers changes its level, by apache-otava's E-divisive and a t-test. Pure and
deterministic.

A step is caused by one commit. A slide goes over several commits, each of which changes little. E-divisive finds one or
several steps in a slide. So a piecewise line is fitted as well, and replaces the step where it fits far better.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

PROPOSED = 1e-3
"""The p-value that a change point may have at most. The changes made of change points must have a far smaller one."""
BESIDE = 10
"""Change points in one direction that are at most so far apart may be one slide."""
SHORTEST = 3
"""The fewest commits of a slide."""
BETTER = 10.0
"""How much better than a step a slide must fit: n log(residuals of the step / of the slide); 1 in 600 by chance."""


@dataclass(frozen=True, slots=True)
class Change:
    """first, last: the places in the row where the level changes, the same for a step; before and after: the means of
    what lies before first, and from last on. chance: how likely noise alone is to make it, by the t-test."""

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
    """The changes that still hold at the row's end. Each has a smaller p-value than `chance`, is larger than `least`,
    and was not undone later."""
    row = np.asarray(values, dtype=float)
    if len(row) < 3 or np.ptp(row) == 0:
        return []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a row without noise divides by a variance of 0, rightly
        steps = _weeded(row, _proposed(row), least / 2)
        found = [change for group in _beside(steps) for change in _joined(row, steps, group)]
    return _standing([each for each in found if each.chance < chance and abs(each.relative) > least], least)


def _proposed(row: np.ndarray) -> list[int]:
    """E-divisive's change points. otava's own second half, which weeds them, is not asked: of a point that goes 0.8
    leaves the one before it with its old sides, and so misses slides."""
    from otava.analysis import split

    return [int(point.index) for point in split(row.tolist(), 2 * len(row), 10 * PROPOSED)]


def _step(row: np.ndarray, start: int, place: int, end: int) -> Change:
    """The step at a place, beside what lies between two others; its chance by Student's t-test."""
    before, after = row[start:place], row[place:end]
    return Change(place, place, float(before.mean()), float(after.mean()), float(stats.ttest_ind(before, after).pvalue))


def _weeded(row: np.ndarray, places: list[int], least: float) -> list[Change]:
    """The steps at these places, without the likeliest that noise may have made, then the smallest that is too small,
    one at a time: the neighbours' sides reach farther then."""
    edges = [0, *places, len(row)]
    steps = [_step(row, *edges[number : number + 3]) for number in range(len(places))]
    if not steps:
        return []
    worst = max(steps, key=lambda step: np.nan_to_num(step.chance, nan=1.0))
    if worst.chance < PROPOSED:
        worst = min(steps, key=lambda step: abs(step.relative))
        if abs(worst.relative) > least:
            return steps
    return _weeded(row, [place for place in places if place != worst.first], least)


def _beside(steps: Sequence[Change]) -> list[list[Change]]:
    """Steps by ones, but for neighbours in the same direction."""
    groups: list[list[Change]] = []
    for step in steps:
        last = groups[-1][-1] if groups else None
        if last and (last.relative > 0) == (step.relative > 0) and step.first - last.first <= BESIDE:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _joined(row: np.ndarray, steps: Sequence[Change], group: list[Change]) -> list[Change]:
    """The group as one slide, if it is one. Its chance is that of a step in its middle, so that the slide's own commits
    are on both sides: to leave them out would be to choose the numbers."""
    start = max((step.first for step in steps if step.first < group[0].first), default=0)
    end = min((step.first for step in steps if step.first > group[-1].first), default=len(row))
    places = _slide(row[start:end])
    if places is None:
        return group
    first, last = (start + place for place in places)
    chance = _step(row, start, (first + last + 1) // 2, end).chance
    return [Change(first, last, float(row[start:first].mean()), float(row[last:end].mean()), chance)]


def _slide(segment: np.ndarray) -> tuple[int, int] | None:
    """The straight way from one level to another that fits best, as (the first place off the old level, the first on
    the new one); None where a step fits as well."""
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
    return int(low[best]) + 1, int(high[best])


def _standing(found: list[Change], least: float) -> list[Change]:
    """The changes without those that a later change has undone, and without the changes that undid them."""
    for number, (one, other) in enumerate(itertools.pairwise(found)):
        opposite = (one.after > one.before) != (other.after > other.before)
        if opposite and abs(other.after - one.before) <= least * abs(one.before):
            return _standing(found[:number] + found[number + 2 :], least)
    return found
