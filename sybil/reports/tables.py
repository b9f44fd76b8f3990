"""A report's tables: cells, theory beside measurement, the best drafter of each domain, failures, and machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sybil.errors import one_line
from sybil.reports import theory
from sybil.reports.grouping import FIELDS, OF_DRAFTS, split, varying, word
from sybil.reports.rows import MeasuredCell, Results
from sybil.reports.style import Value

HEADINGS = {"gamma": "K", "dtype": "kept in", "draft_dtype": "draft kept in"}
ALWAYS = ("pair", "drafter", "gamma", "temperature", "domain")


@dataclass(frozen=True, slots=True)
class Table:
    """A table. name: its anchor on the page. rows: each with as many values as there are headings; None for unknown."""

    name: str
    title: str
    about: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Fastest:
    """The fastest cell of a pair's domain. against: how many cells were measured there."""

    pair: str
    domain: str
    cell: MeasuredCell
    against: int


@dataclass(frozen=True, slots=True)
class Agreeing:
    """For how many cells the theory predicts a speed-up, and for how many it is within theory.BAND."""

    cells: int
    within: int

    @property
    def share(self) -> float | None:
        return self.within / self.cells if self.cells else None


def best(results: Results) -> list[Fastest]:
    """The cell with the largest speed-up for each pair and domain."""
    known = [cell for cell in results.drafted if cell.speed_up and not cell.config.plain]
    apart = [field for field in FIELDS if field not in ("pair", "domain")]
    return [
        Fastest(group[0].config.pair, group[0].config.domain, max(group, key=_value), len(group))
        for group in split(known, *apart).values()
    ]


def _value(cell: MeasuredCell) -> float:
    return cell.speed_up.value if cell.speed_up else 0.0


def agreement(results: Results) -> Agreeing:
    """The agreement of the theory with the measurements."""
    told = [found for cell in results.drafted if (found := theory.predict(cell))]
    return Agreeing(len(told), sum(found.agrees for found in told))


def tables(results: Results) -> list[Table]:
    """The tables that have rows."""
    found = [_best(results), _cells(results), _theory(results), _failed(results), _environments(results)]
    return [table for table in found if table.rows]


def _shown(cells: Sequence[MeasuredCell]) -> list[str]:
    """The settings in which cells differ, and those that a reader expects."""
    different = varying(cells)
    return [field for field in FIELDS if field in different or field in ALWAYS]


def _settings(cell: MeasuredCell, shown: Sequence[str]) -> tuple[Value, ...]:
    values: dict[str, Value] = dict(cell.config)
    plain = cell.config.plain
    return tuple(None if plain and name in OF_DRAFTS and name != "drafter" else values[name] for name in shown)


def _headings(shown: Sequence[str]) -> tuple[str, ...]:
    return tuple(HEADINGS.get(name, name.replace("_", " ")) for name in shown)


def _best(results: Results) -> Table:
    rows = tuple(
        (
            each.pair,
            each.domain,
            word("drafter", each.cell.config),
            each.cell.config.gamma,
            *_interval(each.cell),
            each.against,
        )
        for each in best(results)
    )
    headings = ("pair", "domain", "drafter", "K", "speed-up", "low", "high", "out of")
    told = (
        "The largest median speed-up of each domain, with its 95 % interval over texts, out of so many cells. The best "
        "of many is likely to be a little lucky: where intervals overlap, another may be as good."
    )
    return Table("best", "Best drafter of each domain", told, headings, rows)


def _interval(cell: MeasuredCell) -> tuple[Value, ...]:
    found = cell.speed_up
    return (_round(found.value), _round(found.low), _round(found.high)) if found else (None, None, None)


def _cells(results: Results) -> Table:
    shown = _shown(results.cells)
    measures = ("tokens/s", "speed-up", "low", "high", "acceptance", "tokens a round")
    latencies = ("ms a token p50", "p95", "p99", "ms to first token p50", "joules a token")
    rows = tuple((*_settings(cell, shown), *_numbers(cell)) for cell in results.cells)
    told = (
        "A row a cell. Speed-up: the median over texts, over plain decoding of the same texts, with its 95 % bootstrap "
        "interval. Acceptance: accepted over proposed tokens."
    )
    return Table("cells", "All cells", told, (*_headings(shown), *measures, *latencies), rows)


def _numbers(cell: MeasuredCell) -> tuple[Value, ...]:
    found = cell.measured
    token, first = found.ms_per_token, found.ms_to_first_token
    latencies = (token.p50, token.p95, token.p99) if token.count else (None,) * 3
    joules = None if found.joules is None else found.joules / found.emitted
    return (
        _round(found.tokens_per_second),
        *_interval(cell),
        _round(found.acceptance_rate),
        _round(found.tokens_per_round),
        *map(_round, latencies),
        _round(first.p50 if first.count else None),
        _round(joules),
    )


def _round(value: float | None, digits: int = 4) -> float | None:
    """The value rounded to so many significant digits."""
    if value is None or not value:
        return value
    return round(value, max(digits - 1 - math.floor(math.log10(abs(value))), 0))


def _theory(results: Results) -> Table:
    told = [(cell, found) for cell in results.drafted if (found := theory.predict(cell))]
    shown = _shown(results.drafted)
    rows = tuple(
        (
            *_settings(cell, shown),
            *map(_round, (found.formula, found.rounds, found.whole, found.measured)),
            _round(100 * found.off, 3),
            "yes" if found.agrees else "no",
            found.reason or None,
        )
        for cell, found in told
    )
    asked = agreement(results)
    about = (
        f"{asked.within} of {asked.cells} cells are within 15 %. Formula: drafting and verifying alone, at the cell's "
        "own survival. Rounds: with sampling and all else of a round. Whole: tokens a second over those of plain "
        "decoding, with prompts read. Measured: the median over texts. Where a cell is off, the last column names the "
        "step that takes the formula farthest towards what was measured."
    )
    headings = (*_headings(shown), "formula", "rounds", "whole", "measured", "off %", "within 15 %", "mostly for")
    return Table("theory", "Predicted and measured speed-up", about, headings, rows)


def _failed(results: Results) -> Table:
    configs = [row.config for row in results.failed]
    names = [name for name in FIELDS if name in ALWAYS or len({getattr(each, name) for each in configs}) > 1]
    rows = tuple(
        (*(dict(row.config)[name] for name in names), one_line(row.error or "", 2000)) for row in results.failed
    )
    about = "These cells were tried, and have no numbers. The same sweep tries them again where it is given --again."
    return Table("failed", "Failed cells", about, (*_headings(names), "error"), rows)


def _environments(results: Results) -> Table:
    """A table with a column for each machine, from the machine's description."""
    kinds: list[dict[str, str | int]] = []
    for row in results.rows:
        if row.environment not in kinds:
            kinds.append(row.environment)
    names = list(dict.fromkeys(name for each in kinds for name in each))
    counts = [sum(row.environment == each for row in results.rows) for each in kinds]
    rows = tuple((one_line(name), *(one_line(str(each.get(name, ""))) for each in kinds)) for name in names)
    headings = ("what", *(f"{count} {'row' if count == 1 else 'rows'}" for count in counts))
    return Table("environment", "Where it was measured", "", headings, rows)
