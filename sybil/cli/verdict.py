"""How `sybil verify` shows what it does and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TaskID

from sybil.cli.terminal import make_table

if TYPE_CHECKING:
    from sybil.losslessness.chisquare import Check
    from sybil.losslessness.report import Report


def bars(progress: Progress) -> Callable[[str, int, int], None]:
    """A bar a phase, as the phases come."""
    tasks: dict[str, TaskID] = {}

    def report(phase: str, done: int, total: int) -> None:
        if phase not in tasks:
            tasks[phase] = progress.add_task(phase, total=total)
        progress.update(tasks[phase], completed=done)

    return report


def show(console: Console, report: Report) -> None:
    """The checks, the drift, the whole verdict, and under it those that it follows from, a line each with its
    reasons."""
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
