"""Has Sybil become slower, in a step or bit by bit? `nox -s history`, over what asv has stored.

Exit: 0 no, 1 a regression, 2 there is no history to look at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.history import report, stored, verdict
from benchmarks.history.stored import HistoryError

ROOT = Path(__file__).resolve().parents[2]


def main(
    results: Annotated[Path | None, typer.Option(help="asv's results: those of asv.conf.json.")] = None,
    root: Annotated[Path, typer.Option(help="The checkout, whose asv.conf.json is read.")] = ROOT,
    branch: Annotated[str | None, typer.Option(help="The branch whose commits are looked at: asv's first.")] = None,
    machine: Annotated[str | None, typer.Option(help="One machine alone, by asv's name for it.")] = None,
    last: Annotated[int, typer.Option(min=3, help="How many measured commits are looked at.")] = 50,
    least: Annotated[float, typer.Option(help="The smallest change that is told: 0.05 for 5 %.")] = 0.05,
    markdown: Annotated[Path | None, typer.Option(help="A file for the report.")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="A file for what is said of every cell.")] = None,
) -> None:
    """Has Sybil become slower? Exit: 0 no, 1 yes, 2 there is no history to look at."""
    try:
        if not 0 < least < 1:
            raise HistoryError(f"least is {least}: use a share from 0 to 1, as 0.05 for 5 %")
        for path in (out, markdown):
            if path and not path.absolute().parent.is_dir():
                raise HistoryError(f"{path} is in no folder that is there: name another file")
        limits = verdict.HistoryLimits(least=least, last=last)
        known = verdict.unstable()
        histories = [each for each in stored.read(root, results, branch) if machine in (None, each.machine)]
        if not histories:
            raise HistoryError(f"no machine {machine!r} has results: leave --machine out to see which have")
    except HistoryError as error:
        Console(stderr=True).print(f"history: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    judged = [(history, verdict.judge(history, limits, known)) for history in histories]
    said = report.markdown(judged, limits)
    if markdown:
        markdown.write_text(said)
    if out:
        out.write_text(json.dumps([report.plainly(*each) for each in judged], indent=1) + "\n")
    console = Console()
    console.print(Markdown(said) if console.is_terminal else said, markup=False, soft_wrap=True, highlight=False)
    regressed = any(finding.verdict == "regression" for _, findings in judged for finding in findings)
    raise typer.Exit(1 if regressed else 0)


if __name__ == "__main__":
    typer.run(main)
