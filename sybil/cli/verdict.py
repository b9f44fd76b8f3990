"""The output of `sybil verify`: its progress and its findings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TaskID

from sybil.cli.terminal import make_console, make_progress, make_table

if TYPE_CHECKING:
    from sybil.losslessness.chisquare import Check
    from sybil.losslessness.report import Report

EVERY = 15.0  # seconds between two lines of progress
Phases = Callable[[str, int, int], None]
"""A function that is called with a phase's name, the work done and the whole work."""


@contextmanager
def progress_on(console: Console) -> Iterator[Phases]:
    """A context manager that shows progress: bars on a terminal, and elsewhere a line on standard error now and
    then."""
    if not console.is_terminal:
        yield lines(make_console(stderr=True))
        return
    with make_progress(console) as progress:
        yield bars(progress)


def lines(console: Console, clock: Callable[[], float] = time.monotonic) -> Phases:
    """Prints a line every EVERY seconds, and none if everything takes less time."""
    began = told = clock()

    def report(phase: str, done: int, total: int) -> None:
        nonlocal told
        if clock() - told >= EVERY:
            told = clock()
            console.print(f"{phase}: {done} of {total}, after {told - began:.0f} s", soft_wrap=True, highlight=False)

    return report


def bars(progress: Progress) -> Phases:
    """Shows a bar for each phase when the phase begins."""
    tasks: dict[str, TaskID] = {}

    def report(phase: str, done: int, total: int) -> None:
        if phase not in tasks:
            tasks[phase] = progress.add_task(phase, total=total)
        progress.update(tasks[phase], completed=done)

    return report


def show(console: Console, report: Report) -> None:
    """Print the checks, the drift and the whole verdict. Below it are the verdicts from which it follows, one on each
    line with its reasons."""
    if report.checks:
        _table(console, report)
    for check in report.checks:
        if not check.made:
            console.print(f"{check.name}: {check.detail}", style="dim", soft_wrap=True)
    if report.drift is not None:
        drift = report.drift
        console.print(
            f"drift: {drift.value:+.4f} nats a token (95 %: {drift.low:+.4f} to {drift.high:+.4f}); below 0 its "
            "text is degraded, above 0 too greedy",
            soft_wrap=True,
        )
    for line in report.lines:
        console.print(line, style=None if line.startswith(" ") else "bold", soft_wrap=True)


def _table(console: Console, report: Report) -> None:
    from sybil.losslessness.chisquare import shown

    table = make_table(console, "check", "result", "p-value", "effect", "smallest effect seen", "unit", "counted")
    for check in report.checks:
        table.add_row(
            check.name,
            _result(check),
            "" if check.adjusted is None else shown(check.adjusted),
            f"{check.effect:.3g}" if check.made else "",
            f"{check.detectable:.2g}" if check.made else "",
            check.unit,
            str(check.count),
        )
    console.print(table)


def _result(check: Check) -> str:
    if check.failed:
        return "echoes uniform" if check.echo else "FAIL"
    return "pass" if check.made else "not made"
