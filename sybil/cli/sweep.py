"""sybil sweep: a product of settings, measured cell by cell into one file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sybil.cli import options
from sybil.cli.terminal import make_console, make_progress, make_table, print_json
from sybil.cli.verdict import lines
from sybil.errors import InvalidSetting
from sybil.sweeping.plan import SweepPlan, plan, shipped
from sybil.sweeping.rays import LOCAL, ray_sweep
from sybil.sweeping.run import RunConfig
from sybil.sweeping.summary import table
from sybil.sweeping.sweep import Swept, Tell, told_of
from sybil.sweeping.sweep import sweep as measure

HEADINGS = ("drafter", "rule", "gamma", "temperature", "domain", "batch", "tokens/s", "over its baseline", "accepted")


def sweep(
    config: Annotated[
        str | None,
        typer.Argument(help="A YAML file of lists (docs/sweeping.md), or the name of one that --list shows."),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the sweeps that ship with Sybil, and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and list its cells, and measure nothing.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Measure cells that failed again. If left out: their rows stay.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar=f"{LOCAL}|ADDRESS",
            help=f"Measure cells as tasks of the Ray cluster at this address; {LOCAL}: of one that is started here.",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="The file of rows (JSONL). Rows that are there already aren't measured again. If left out: "
            "sybil-sweep/ and the config's name.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure a product of settings: pairs, drafters, rules, gammas, temperatures, domains and batches. A sweep that
    was cut off goes on when the same command is given again."""
    if listing:
        _list(as_json)
        return
    if config is None:
        raise InvalidSetting(f"there is no config: name a YAML file, or one of {', '.join(shipped())}")
    planned = plan(config, elsewhere=ray is not None)
    path = results or options.out_folder(None, "sweep") / f"{planned.name}.jsonl"
    if dry_run:
        _describe(planned, as_json)
        return
    console = make_console(stderr=as_json)
    for each in planned.left_out:
        typer.echo(f"left out: {each}", err=True)
    try:
        with _told(console) as tell:
            found = measure(planned, path, tell, again=again) if ray is None else ray_sweep(
                planned, path, ray, tell, again=again
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"interrupted: the same command goes on from {path}", err=True)
        raise typer.Exit(130) from None
    _show(planned, found, path, as_json)
    if found.failed:
        raise typer.Exit(1)


@contextmanager
def _told(console: Console) -> Iterator[Tell]:
    """A context manager that shows progress: a bar on a terminal, and elsewhere a line on standard error now and
    then."""
    if not console.is_terminal:
        yield lines(make_console(stderr=True))
        return
    with make_progress(console) as progress:
        bar = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(bar, description=what, completed=done, total=total)


def _list(as_json: bool) -> None:
    """Print the shipped sweeps, what each is for, and how many cells it has."""
    about = {name: path.read_text(encoding="utf-8").split("\n")[0].lstrip("# ") for name, path in shipped().items()}
    plans = {name: plan(name) for name in about}
    if as_json:
        print_json({name: {"about": about[name], "cells": len(each.cells)} for name, each in plans.items()})
        return
    console = make_console()
    shown = make_table(console, "sweep", "cells", "texts")
    shown.add_column("about")
    for name, each in plans.items():
        shown.add_row(name, str(len(each.cells)), str(each.texts), about[name])
    console.print(shown)


def _describe(planned: SweepPlan, as_json: bool) -> None:
    """Print the cells of a plan."""
    if as_json:
        cells = [{"hash": cell.hash, "label": cell.label, **cell.model_dump(mode="json")} for cell in planned.cells]
        print_json({"cells": cells, "texts": planned.texts, "left_out": planned.left_out})
        return
    console = make_console()
    shown = make_table(console, "pair", *HEADINGS[:6], "texts", "tokens, at most")
    for cell in planned.cells:
        texts = cell.prompts * cell.repeats
        shown.add_row(cell.pair, *_settings(cell.model_dump()), str(texts), str(texts * cell.new_tokens))
    console.print(shown)
    for each in planned.left_out:
        console.print(f"left out: {each}", soft_wrap=True)
    tokens = sum(cell.prompts * cell.repeats * cell.new_tokens for cell in planned.cells)
    console.print(
        f"{len(planned.cells)} cells, {planned.texts} texts, {tokens} tokens at most; "
        f"warm-ups a cell: {planned.warm_ups}",
        soft_wrap=True,
    )  # fmt: skip


def _settings(cell: dict[str, Any]) -> list[str]:
    return [str(cell[name]) if name != "temperature" else f"{cell[name]:g}" for name in HEADINGS[:6]]


def _show(planned: SweepPlan, found: Swept, path: Path, as_json: bool) -> None:
    """Print the table, the failures, and where the rows are."""
    cells = table(found.rows)
    counts = {"cells": len(cells), "known": found.known, "failed": len(found.failed)}
    if as_json:
        print_json({"out": str(path), **counts, "dropped": found.dropped, "left_out": planned.left_out, "rows": cells})
        return
    console = make_console()
    console.print(_table(console, [each for each in cells if "error" not in each]))
    if found.dropped:
        console.print(f"the last line of {path} was cut short, and was taken off", soft_wrap=True)
    for row in found.failed[:5]:
        console.print(f"failed: {told_of(row.config)}: {row.error}", soft_wrap=True, style="red", highlight=False)
    console.print(f"{len(cells)} cells, {found.known} of them from an earlier run: {path}", soft_wrap=True)
    if found.failed:
        console.print(
            f"{len(found.failed)} of {len(cells)} cells failed: their rows hold the error, and --again measures them "
            "again",
            soft_wrap=True,
            highlight=False,
        )  # fmt: skip


def _table(console: Console, cells: list[dict[str, Any]]) -> Table:
    """A table with a row for each measured cell. The interval is the 95 % interval, paired by text."""
    shown = make_table(console, "pair", *HEADINGS)
    for each in cells:
        over, accepted, settings = each["over_baseline"], each["acceptance_rate"], _settings(each)
        if RunConfig(pair=each["pair"], drafter=each["drafter"]).plain:
            settings[1:3] = "", ""  # settings that only speculation has
        shown.add_row(
            each["pair"],
            *settings,
            f"{each['tokens_per_second']:.1f}",
            "" if over is None else f"{over['value']:.2f} ({over['low']:.2f} to {over['high']:.2f})",
            "" if accepted is None else f"{accepted:.0%}",
        )
    return shown
