"""Judges each cell's history: regression, improvement, suspicious, too little data, or steady. Pure.

The null hypothesis is that a cell's numbers are independent and normal around one level. The limits for the smallest
change and for the p-value are chosen so that thirty commits of noise alone raise no alarm over all cells together, see
docs/benchmarks.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from scipy import stats

from benchmarks.history.changes import BESIDE, Change, changes
from benchmarks.history.stored import History, HistoryError, Series

Verdict = Literal["regression", "improvement", "suspicious", "too little data", "steady"]
UNSTABLE = Path(__file__).with_name("unstable.json")
NEAR = 5
"""How far apart cells of one track may have the change that is one, for each has its own noise."""


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """least: the smallest change that is reported, 0.05 for 5 %. promised: where a step of this size could not be seen,
    the verdict is too little data. chance: the largest p-value of the t-test. after: how many commits must confirm a
    change. last: how many commits are looked at."""

    least: float = 0.05
    promised: float = 0.08
    chance: float = 1e-6
    after: int = 3
    last: int = 50


@dataclass(frozen=True, slots=True)
class Unstable:
    """Tracks that are known to vary between commits of the same speed: by so much, and why."""

    pattern: str
    spread: float
    why: str


@dataclass(frozen=True, slots=True)
class HistoryFinding:
    """One cell's verdict, or one of its changes. first, last: the places in History.commits of the commits that made
    the change. seen: the smallest step that could be seen with half of the numbers on either side of it."""

    series: Series
    verdict: Verdict
    why: str = ""
    change: Change | None = None
    first: int = 0
    last: int = 0
    seen: float = 0.0


def unstable(file: Path = UNSTABLE) -> list[Unstable]:
    """The list of a file: {pattern: {"spread": 0.1, "why": "..."}}; raises HistoryError."""
    try:
        found = [
            Unstable(pattern, float(each["spread"]), str(each["why"]))
            for pattern, each in json.loads(file.read_text()).items()
        ]
        for each in found:
            re.compile(each.pattern)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise HistoryError(f"{file} is no list of unstable tracks ({error!r}): give each a spread and a why") from None
    return found


def judge(history: History, limits: HistoryLimits, known: Sequence[Unstable]) -> list[HistoryFinding]:
    """The findings of every cell, at least one for each."""
    found = [finding for series in history.series for finding in of_cell(series, history, limits, known)]
    return [placed for group in _together(found) for placed in _placed(group, limits)]


def _together(findings: Sequence[HistoryFinding]) -> list[list[HistoryFinding]]:
    """Changes of one track that have one verdict, and are beside each other; and all else by ones."""
    groups: list[list[HistoryFinding]] = []
    chosen = sorted(findings, key=lambda each: (each.series.track, each.verdict, each.first))
    for finding in chosen:
        last = groups[-1][-1] if groups else None
        is_same = last and last.change and finding.change and last.verdict == finding.verdict
        if is_same and last.series.track == finding.series.track and finding.first - last.first <= NEAR:
            groups[-1].append(finding)
        else:
            groups.append([finding])
    return groups


def _placed(group: list[HistoryFinding], limits: HistoryLimits) -> list[HistoryFinding]:
    """The same with the place of the change that all cells together show, whose noise is less than one cell's."""
    if len(group) == 1:
        return group
    rows = [{point.place: point.value for point in each.series.points} for each in group]
    places = sorted(set.intersection(*(set(row) for row in rows)))[-limits.last :]
    if any(row[place] <= 0 for row in rows for place in places):
        return group
    logs = np.array([[np.log(row[place]) for place in places] for row in rows])
    pooled = np.exp((logs - logs.mean(1, keepdims=True)).mean(0))
    own = fmean(each.first for each in group)
    rises = group[0].change is not None and group[0].change.relative > 0
    found = [change for change in changes(list(pooled), 1.0, limits.least / 2) if (change.relative > 0) == rises]
    near = min(found, key=lambda change: abs(places[change.first] - own), default=None)
    if near is None or abs(places[near.first] - own) > BESIDE:
        return group
    return [replace(each, first=places[near.first], last=places[near.last]) for each in group]


def of_cell(series: Series, history: History, limits: HistoryLimits, known: Sequence[Unstable]) -> list[HistoryFinding]:
    """A finding for each change that still holds; a single finding where there is none."""
    earliest = len(history.commits) - limits.last
    points = [point for point in series.points if point.place not in series.busy and point.place >= earliest]
    values, places = [point.value for point in points], [point.place for point in points]
    listed = next((each for each in known if re.search(each.pattern, series.track)), None)
    found = []
    for change in changes(values, limits.chance, limits.least):
        if listed and abs(change.relative) < 3 * listed.spread:
            continue
        why = "; ".join(_doubts(series, change, places, history, limits, listed))
        sure: Verdict = "regression" if change.after > change.before else "improvement"
        verdict: Verdict = "suspicious" if why else sure
        found.append(HistoryFinding(series, verdict, why, change, places[change.first], places[change.last]))
    if found:
        return found
    seen = smallest_step(values, limits.chance)
    if seen <= max(limits.promised, 3 * listed.spread if listed else 0.0):
        return [HistoryFinding(series, "steady", f"known to vary: {listed.why}" if listed else "", seen=seen)]
    shown = "no step" if seen == float("inf") else f"no step below {seen:.0%}"
    return [HistoryFinding(series, "too little data", f"{len(values)} commits show {shown}", seen=seen)]


def _doubts(
    series: Series,
    change: Change,
    places: Sequence[int],
    history: History,
    limits: HistoryLimits,
    listed: Unstable | None,
) -> list[str]:
    """Reasons why the change may not be caused by the commits."""
    found = []
    since = len(places) - change.first
    if since < limits.after and not series.is_counter:
        found.append(f"{since} commit{'s' if since > 1 else ''} since, {limits.after} would confirm it")
    if listed:
        found.append(f"known to vary by {listed.spread:.0%}: {listed.why}")
    if series.is_time:
        before = [history.control[place] for place in places[: change.first] if place in history.control]
        after = [history.control[place] for place in places[change.last :] if place in history.control]
        theirs = fmean(after) / fmean(before) - 1 if before and after else 0.0
        if theirs / change.relative > 0.5:
            found.append(f"transformers' own time changed by {theirs:+.1%} too: the machine")
    return found


def smallest_step(values: Sequence[float], chance: float) -> float:
    """The smallest step in the middle of equally many and equally noisy numbers for which the t-test's p-value is below
    `chance`. The noise is estimated from the differences of neighbours, which a change of the level affects little."""
    if len(values) < 4:
        return float("inf")
    mean, spread = fmean(values), float(np.mean(np.diff(values) ** 2) / 2) ** 0.5
    if not spread:
        return 0.0
    half = len(values) // 2
    reach = float(stats.t.isf(chance / 2, len(values) - 2))
    return reach * spread * (1 / half + 1 / (len(values) - half)) ** 0.5 / mean if mean else float("inf")


def busy_commits(history: History) -> Mapping[int, float]:
    """By place, the share of a commit's cells whose spread says that the machine was busy; none of them left out."""
    sampled = [0] * len(history.commits)
    busy = [0] * len(history.commits)
    for series in history.series:
        marked = series.busy
        for point in series.points:
            sampled[point.place] += point.spread is not None
            busy[point.place] += point.place in marked
    return {place: busy[place] / sampled[place] for place in range(len(sampled)) if busy[place]}
