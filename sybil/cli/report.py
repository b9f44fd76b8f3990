"""sybil report: a sweep's rows as figures, tables, and one page that holds all of them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sybil.cli import options
from sybil.cli.terminal import make_console, make_progress, make_table, print_json
from sybil.measuring import files
from sybil.reports.grouping import word
from sybil.reports.report import formats_named, write
from sybil.reports.rows import read
from sybil.reports.style import FORMATS
from sybil.reports.tables import Fastest, agreement, best


def report(
    results: Annotated[Path, typer.Argument(help="The JSONL file that `sybil sweep` wrote.")],
    out: options.OutOption = None,
    formats: Annotated[
        str,
        typer.Option(
            help="What each figure is written as, separated by commas: svg, png, and csv, the numbers that it shows.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = ",".join(FORMATS),
    as_json: options.JsonOption = False,
) -> None:
    """Draw a sweep's figures, and write one page with them and with tables that sort and filter."""
    chosen = formats_named(formats)
    found = read(results)
    folder = out or options.out_folder(out, "report") / results.stem
    files.check_folder(folder)
    if found.torn:
        typer.echo(
            f"{results}: the last line is broken off and left out: `sybil sweep` measures its cell again", err=True
        )
    console = make_console(stderr=as_json)
    with make_progress(console) as progress:
        bar = progress.add_task("reading", total=None)
        made = write(
            found,
            folder,
            chosen,
            shlex.join(["sybil", "report", str(results), "--out", str(folder)]),
            lambda chart, count: progress.update(bar, advance=1, total=count + 1, description=chart.name),
        )
    ways, theory = best(found), agreement(found)
    if as_json:
        print_json(
            {
                "cells": len(found.cells),
                "failed": len(found.failed),
                "best": [_best_record(each) for each in ways],
                "theory": {"cells": theory.cells, "within_15_percent": theory.within, "share": theory.share},
                "page": str(made[0]),
                "files": [str(file) for file in made],
            }
        )
        return
    if ways:
        console.print(_table(make_table(console, "pair, domain", "drafter", "K", "speed-up", "95 % interval"), ways))
    if theory.share is not None:
        agreeing = f"{theory.within} of {theory.cells} cells ({theory.share:.0%})"
        console.print(f"the theory is within 15 % of what was measured in {agreeing}")
    if found.failed:
        console.print(f"{_cells(len(found.failed))} failed: the page has their errors")
    if found.unpaired:
        console.print(f"{_cells(len(found.unpaired))} without plain decoding to be compared with")
    console.print(f"figures: {len(made) - 1} files in {folder}   page: {made[0]}", soft_wrap=True)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _best_record(each: Fastest) -> dict[str, object]:
    speed_up = each.cell.speed_up
    interval = [] if speed_up is None else [speed_up.value, speed_up.low, speed_up.high]
    config = each.cell.config
    return {
        "pair": each.pair,
        "domain": each.domain,
        "drafter": config.drafter,
        "gamma": config.gamma,
        "temperature": config.temperature,
        "speed_up": interval,
        "cells": each.against,
    }


def _table(table: Table, ways: list[Fastest]) -> Table:
    """Fill the table with a row for each pair and domain."""
    for each in ways:
        config, found = each.cell.config, each.cell.speed_up
        place = f"{word('pair', config)}, {word('domain', config)}"
        numbers = ("", "") if found is None else (f"{found.value:.2f}x", f"{found.low:.2f} to {found.high:.2f}")
        table.add_row(place, word("drafter", config), str(config.gamma), *numbers)
    return table
