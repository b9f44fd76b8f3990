"""A sweep's report: its charts, and the page that holds them and its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sybil.errors import InvalidSetting, one_line
from sybil.measuring import files
from sybil.reports import distributions, resources, speeds
from sybil.reports.page import page
from sybil.reports.rows import Results
from sybil.reports.style import FORMATS, Chart
from sybil.reports.tables import tables

PAGE = "index.html"


def charts(results: Results) -> list[Chart]:
    """The charts for which the rows have data, in the order of the page."""
    return [chart for kind in (speeds, distributions, resources) for chart in kind.charts(results.cells)]


def formats_named(names: str) -> tuple[str, ...]:
    """The formats in a comma-separated list. Raises InvalidSetting."""
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    if wrong := [name for name in chosen if name not in FORMATS]:
        raise InvalidSetting(f"formats has {one_line(wrong[0])!r}: use some of {','.join(FORMATS)}")
    return chosen


def write(
    results: Results,
    folder: Path,
    formats: Sequence[str] = FORMATS,
    command: str = "",
    drawn: Callable[[Chart, int], None] | None = None,
) -> list[Path]:
    """Write every chart in these formats, and the page, into the folder. Returns the files, the page first. Each file
    is written completely or not at all. drawn: called before each chart with the number of charts."""
    files.folder(folder)
    wanted, found = charts(results), []
    inline: list[tuple[Chart, bytes]] = []
    for chart in wanted:
        if drawn:
            drawn(chart, len(wanted))
        made = chart.render(tuple({*formats, "svg"}))
        inline.append((chart, made["svg"]))
        for name in formats:
            found.append(folder / f"{chart.name}.{name}")
            files.replace(found[-1], made[name])
    files.replace(folder / PAGE, page(_title(results), _about(results, command), tables(results), inline))
    return [folder / PAGE, *found]


def _title(results: Results) -> str:
    return f"Sweep {one_line(results.path.stem, 80)}"


def _about(results: Results, command: str) -> list[str]:
    """The page's introduction."""
    finished = sorted(one_line(row.finished, 40) for row in results.rows)
    counts = f"{len(results.cells)} cells were measured and {len(results.failed)} failed"
    told = [
        f"{counts}. The first was done at {finished[0]}, the last at {finished[-1]}. All numbers on this page are from "
        f"{one_line(results.path.name, 80)}."
    ]
    if results.unpaired:
        told.append(f"{len(results.unpaired)} cells have no speed-up: the file has no plain decoding of their texts.")
    if any(not cell.measured.lossless for cell in results.cells):
        told.append("Some cells decode by rules that are not lossless: their texts aren't the target's.")
    if command:
        told.append(f"Made by: {command}")
    return told
