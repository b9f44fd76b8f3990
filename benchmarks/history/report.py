"""The Markdown report of `nox -s history`: for each machine a table of its changes, by the commit that made them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.history.stored import Commit, History
from benchmarks.history.verdict import HistoryFinding, HistoryLimits, Verdict, busy_commits

ORDER: tuple[Verdict, ...] = ("regression", "suspicious", "improvement")
MOST_ROWS, LONGEST = 60, 72
BUSY_SHARE = 0.2
"""A commit is named as measured on a busy machine if at least this share of its cells was."""


@dataclass(frozen=True, slots=True)
class TrackRow:
    """The changes of one track that have the same verdict about the same commit. findings: of the track's cells, the
    surest first."""

    verdict: Verdict
    track: str
    findings: tuple[HistoryFinding, ...]


def markdown(histories: Sequence[tuple[History, Sequence[HistoryFinding]]], limits: HistoryLimits) -> str:
    """The whole report."""
    parts = [section(history, findings, limits) for history, findings in histories]
    return f"## Speed by commit: {headline([each for _, found in histories for each in found])}\n\n" + "\n".join(parts)


def headline(findings: Sequence[HistoryFinding]) -> str:
    """How many findings have which verdict."""
    counted = Counter(finding.verdict for finding in findings)
    said = [f"{counted[verdict]} {verdict}" for verdict in (*ORDER, "too little data", "steady") if counted[verdict]]
    return ", ".join(said) or "no cells"


def section(history: History, findings: Sequence[HistoryFinding], limits: HistoryLimits) -> str:
    """The report's part about one machine."""
    commits = history.commits
    span = f"{len(commits)} commits of {plain(history.branch)}"
    if commits:
        span += f", {name(commits[0])} to {name(commits[-1])}"
    lines = [f"### {plain(history.machine)}", "", f"{span}; cells: {headline(findings)}.", ""]
    rows = list(rows_of(findings))
    if rows:
        lines += ["| verdict | commit | track | cells | change | by chance | |", "|---|---|---|---:|---:|---:|---|"]
        lines += [f"| {' | '.join(_columns(row, history))} |" for row in rows[:MOST_ROWS]]
        lines += [f"\n{len(rows) - MOST_ROWS} rows more are left out."] if len(rows) > MOST_ROWS else []
        lines.append("")
    lines += [f"- {note}" for note in _notes(history, findings, limits)]
    return "\n".join(lines) + "\n"


def rows_of(findings: Sequence[HistoryFinding]) -> Iterator[TrackRow]:
    """The rows of the table, by verdict and then by commit."""
    rows: dict[tuple[int, int, str, Verdict, int], list[HistoryFinding]] = defaultdict(list)
    for finding in findings:
        if finding.change:
            rows[
                ORDER.index(finding.verdict), finding.first, finding.series.track, finding.verdict, finding.last
            ].append(finding)
    for _, row in sorted(rows.items()):
        surest = sorted(row, key=lambda each: each.change.chance if each.change else 1.0)
        yield TrackRow(row[0].verdict, row[0].series.track, tuple(surest))


def _columns(row: TrackRow, history: History) -> list[str]:
    first = row.findings[0]
    moved = [finding.change.relative for finding in row.findings if finding.change]
    change = f"{median(moved):+.1%}" + (f" ({min(moved):+.1%} to {max(moved):+.1%})" if len(moved) > 1 else "")
    cells = sum(series.track == row.track for series in history.series)
    why = Counter(finding.why for finding in row.findings).most_common(1)[0][0]
    title = f"{plain(first.series.title)} (`{plain(row.track)}`)"
    chance = max(finding.change.chance for finding in row.findings if finding.change)
    return [
        row.verdict,
        _place(first, history),
        title,
        f"{len(moved)} of {cells}",
        change,
        f"{chance:.0e}",
        plain(why, 300),
    ]


def _place(finding: HistoryFinding, history: History) -> str:
    """The commit of a change, or the first and last commits of a slide. Commits before it that weren't measured may
    have made the change instead, so their number is named."""
    first, last = history.commits[finding.first], history.commits[finding.last]
    before = history.commits[finding.first - 1].number if finding.first else -1
    unmeasured = first.number - before - 1
    said = name(first) + (f", or one of the {unmeasured} before it" if unmeasured else "")
    return f"a slide from {said} to {name(last)}" if last != first else said


def _notes(history: History, findings: Sequence[HistoryFinding], limits: HistoryLimits) -> Iterator[str]:
    """Notes below the table: busy commits, cells without a verdict, commits off the branch, and the limits."""
    busy = {place: share for place, share in busy_commits(history).items() if share >= BUSY_SHARE}
    if busy:
        named = ", ".join(f"{name(history.commits[place], short=True)} ({share:.0%})" for place, share in busy.items())
        yield f"Busy while these were measured, by the spread of so many of their cells, which are left out: {named}."
    for verdict, said in (("too little data", "Too little data"), ("steady", "Known to vary")):
        told = [finding for finding in findings if finding.verdict == verdict and finding.why]
        if told:
            worst = max(told, key=lambda each: each.seen)
            cell = f"{worst.series.track}({worst.series.cell})"
            yield f"{said}: {len(told)} of {len(findings)} cells; of these `{plain(cell)}`: {plain(worst.why, 300)}."
    if history.elsewhere:
        yield f"{history.elsewhere} measured commits are not on {plain(history.branch)}, and are left out."
    yield (
        f"Told are changes above {limits.least:.0%} that the t-test gives a chance below {limits.chance:.0e}, in the "
        f"last {limits.last} commits that were measured, and that no later one has undone; environment "
        f"`{plain(history.environment)}`."
    )


def name(commit: Commit, short: bool = False) -> str:
    """A commit by its short hash and its subject."""
    return f"`{commit.hash[:9]}`" + ("" if short else f" {plain(commit.subject)}")


def plain(text: str, most: int = LONGEST) -> str:
    """Text on one line that Markdown shows unchanged: nothing in it can mention a person or break a table."""
    text = " ".join(text.split())
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    for mark, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "'"), ("@", "@\u200b"), ("[", "&#91;")):
        text = text.replace(mark, shown)
    return text


def plainly(history: History, findings: Sequence[HistoryFinding]) -> dict[str, Any]:
    """The same as data that a program can read."""
    return {
        "machine": history.machine,
        "environment": history.environment,
        "commits": [commit.hash for commit in history.commits],
        "cells": [
            {
                "track": finding.series.track,
                "cell": finding.series.cell,
                "verdict": finding.verdict,
                "why": finding.why,
                "change": finding.change and asdict(finding.change),
                "commits": [history.commits[place].hash for place in (finding.first, finding.last)]
                if finding.change
                else None,
                "seen": None if finding.seen == float("inf") else finding.seen,
            }
            for finding in findings
        ],
    }
