"""The results that asv stored, as histories: for each machine and environment the numbers of each cell, in the order of
a branch's commits. A cell is a track with one choice of its parameters.

asv reads its own files. It skips what it can't read with a warning; results that are no numbers are skipped here."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

USUAL = 0.02, 0.08
"""The least and the greatest usual spread of a cell. The first is that of a run on an idle machine, the second that of
a run on a busy one."""
BUSY = 3.0
"""A number was measured on a busy machine if its spread is more than this many times the cell's usual spread."""
SPEED, OVER_TRANSFORMERS = (
    "rates.Autoregressive.track_tokens_per_second",
    "rates.Autoregressive.track_over_transformers",
)


class HistoryError(Exception):
    """There is no history to look at. The message is one line that names the remedy."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that was measured. number: its place among all commits of the branch."""

    hash: str
    subject: str
    number: int


@dataclass(frozen=True, slots=True)
class Point:
    """One number. place: the place of its commit in History.commits. spread: the interquartile range of its samples
    divided by their median; None if there is only one number, as for a counter."""

    place: int
    value: float
    spread: float | None


@dataclass(frozen=True, slots=True)
class Series:
    """The numbers of one cell. cell: its parameters as asv writes them, "" if the track has none."""

    track: str
    cell: str
    title: str
    unit: str
    points: tuple[Point, ...]

    @property
    def is_time(self) -> bool:
        """Whether its numbers are times, which a slower machine makes larger."""
        return self.unit == "s" or self.unit.startswith("ms")

    @property
    def is_counter(self) -> bool:
        """Whether its numbers are counted, and so have no noise."""
        return all(point.spread is None for point in self.points)

    @property
    def busy(self) -> frozenset[int]:
        """The places whose spread says that the machine was busy."""
        spreads = [point.spread for point in self.points if point.spread is not None]
        if not spreads:
            return frozenset()
        usual = min(max(median(spreads), USUAL[0]), USUAL[1])
        return frozenset(point.place for point in self.points if point.spread and point.spread > BUSY * usual)


@dataclass(frozen=True, slots=True)
class History:
    """One machine's history. commits: the measured ones, oldest first. series: the cells that may regress. control: by
    place, the milliseconds a token of transformers itself in the same run. elsewhere: how many measured commits are not
    on the branch."""

    machine: str
    environment: str
    branch: str
    commits: tuple[Commit, ...]
    series: tuple[Series, ...]
    control: Mapping[int, float]
    elsewhere: int


def read(root: Path, results: Path | None = None, branch: str | None = None) -> list[History]:
    """The histories of a checkout that has an asv.conf.json; raises HistoryError. results: the folder of the results;
    if it is None, the one that asv.conf.json names. branch: if it is None, the first branch that asv.conf.json
    names."""
    from asv.benchmarks import Benchmarks
    from asv.config import Config
    from asv.results import iter_results
    from asv.util import UserError

    try:
        conf = Config.load(str(root / "asv.conf.json"))
        conf.results_dir = str(results or root / conf.results_dir)
        benchmarks = Benchmarks.load(conf)
    except UserError as error:
        told = str(error).splitlines()[0]
        raise HistoryError(f"{told} Run `nox -s asv` first, or give --results a folder of asv's results") from None
    branch = branch or conf.branches[0] or "main"
    order = _commits(root, branch)
    named = [pattern for pattern, first in conf.regressions_first_commits.items() if first is None]
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for result in iter_results(conf.results_dir):
        found[str(result.params.get("machine", "")), result.env_name].append(result)
    if not found:
        raise HistoryError(f"{conf.results_dir} holds no results: run `nox -s asv` first")
    return [
        _history(machine, environment, branch, order, each, benchmarks, named)
        for (machine, environment), each in sorted(found.items())
    ]


def _commits(root: Path, branch: str) -> dict[str, Commit]:
    """The branch's commits, oldest first, as asv follows them: a merge counts as one commit."""
    command = ["git", "-C", str(root), "log", "--first-parent", "--reverse", "--format=%H%x09%s", branch, "--"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise HistoryError(
            f"{root} has no branch {branch!r}: name one by --branch, or make it: git branch {branch} HEAD"
        )
    lines = (line.split("\t", 1) for line in done.stdout.splitlines())
    return {digest: Commit(digest, subject, number) for number, (digest, subject) in enumerate(lines)}


def _history(
    machine: str,
    environment: str,
    branch: str,
    order: Mapping[str, Commit],
    results: Sequence[Any],
    benchmarks: Mapping[str, Any],
    read_only: Sequence[str],
) -> History:
    """read_only: patterns of the tracks that can't regress."""
    measured = sorted(
        (each for each in results if each.commit_hash in order), key=lambda each: order[each.commit_hash].number
    )
    points: dict[tuple[str, str], list[Point]] = defaultdict(list)
    control: dict[int, float] = {}
    for place, result in enumerate(measured):
        values: dict[str, dict[str, float]] = defaultdict(dict)
        for track in result.get_result_keys(benchmarks):
            for cell, value, spread in _cells(result, track, benchmarks[track]["params"]):
                values[track][cell] = value
                if not any(re.match(pattern, track) for pattern in read_only):
                    points[track, cell].append(Point(place, value, spread))
        speeds, overs = values[SPEED], values[OVER_TRANSFORMERS]
        theirs = [1e3 * overs[cell] / speeds[cell] for cell in speeds if speeds[cell] > 0 and overs.get(cell, 0) > 0]
        if theirs:
            control[place] = geometric_mean(theirs)
    series = tuple(
        Series(track, cell, benchmarks[track].get("pretty_name") or track, benchmarks[track]["unit"], tuple(found))
        for (track, cell), found in sorted(points.items())
    )
    commits = tuple(order[each.commit_hash] for each in measured)
    return History(machine, environment, branch, commits, series, control, len(results) - len(measured))


def _cells(result: Any, track: str, params: list[list[str]]) -> Iterator[tuple[str, float, float | None]]:
    """Each cell of a track that has a number: its parameters, the number, and its spread."""
    values, stats = result.get_result_value(track, params), result.get_result_stats(track, params)
    chosen = itertools.product(*params) if params else [()]
    for cell, value, stat in zip(chosen, values or (), stats or itertools.repeat(None), strict=False):
        if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
            yield ", ".join(cell), float(value), _spread(value, stat)


def _spread(value: float, stat: Mapping[str, Any] | None) -> float | None:
    ends = [(stat or {}).get(end) for end in ("q_25", "q_75")]
    if value <= 0 or not all(isinstance(end, int | float) and math.isfinite(end) for end in ends):
        return None
    return abs(ends[1] - ends[0]) / value  # type: ignore[operator]
