"""The checked rows of a sweep's file, each with the plain decoding that its speed-up is measured against."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sybil.errors import ResultsMismatch
from sybil.measuring.timing import Interval
from sybil.sweeping import rows as kept
from sybil.sweeping.run import NONE, Measured, Quantiles, RunConfig, RunResult
from sybil.sweeping.summary import over_baseline


@dataclass(frozen=True, slots=True)
class MeasuredCell:
    """A cell that was measured. plain: its baseline; None where the file has none. speed_up: over the baseline, with
    the 95 % interval over texts; None without a baseline, and for a baseline itself."""

    row: RunResult
    measured: Measured
    plain: Measured | None
    speed_up: Interval | None

    @property
    def config(self) -> RunConfig:
        return self.row.config

    @property
    def is_plain(self) -> bool:
        """Whether the cell is a baseline only. Plain decoding without a cache counts among the cells that speculate: it
        is a baseline, too, but has a speed-up of its own over plain decoding with a cache."""
        return self.config.drafter == NONE


@dataclass(frozen=True, slots=True)
class Results:
    """A results file. rows: the latest row of each cell. torn: whether an incomplete last line was left out."""

    path: Path
    rows: tuple[RunResult, ...]
    cells: tuple[MeasuredCell, ...]
    torn: bool

    @property
    def failed(self) -> tuple[RunResult, ...]:
        return tuple(row for row in self.rows if row.measured is None)

    @property
    def drafted(self) -> tuple[MeasuredCell, ...]:
        """The cells that speculate."""
        return tuple(cell for cell in self.cells if not cell.is_plain)

    @property
    def unpaired(self) -> tuple[MeasuredCell, ...]:
        """The cells that speculate and have no baseline in the file."""
        return tuple(cell for cell in self.drafted if cell.speed_up is None)


def read(path: Path) -> Results:
    """The rows of the file, which isn't changed. An incomplete last line, which a killed sweep was writing, is left
    out. Raises ResultsMismatch for a file that isn't a sweep's, and for a row that contradicts itself."""
    rows: dict[str, RunResult] = {}
    for row in kept.read(path):
        if wrong := _wrong(row):
            raise ResultsMismatch(f"{path}, cell {row.hash}: {wrong}: take its row off the file and measure it again")
        before = rows.get(row.hash)
        if before is None or row.measured is not None or before.measured is None:
            rows[row.hash] = row
    if not rows:
        raise ResultsMismatch(f"{path} holds no whole row: name the JSONL file that `sybil sweep` wrote")
    cells = tuple(_cell(row, row.measured, rows) for row in rows.values() if row.measured)
    return Results(path, tuple(rows.values()), cells, _is_torn(path))


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _wrong(row: RunResult) -> str:
    """The contradiction within a row, in words; "" where there is none."""
    found, config = row.measured, row.config
    if found is None:
        return ""
    lengths = {len(each) for each in (found.text_seconds, found.text_tokens, found.text_acceptance)}
    if lengths != {found.texts} or found.texts != config.prompts * config.repeats:
        return (
            f"{found.texts} texts of {config.prompts} prompts in {config.repeats} passes, in lists of {sorted(lengths)}"
        )
    if not (found.emitted and found.rounds and found.seconds and all(found.text_tokens) and all(found.text_seconds)):
        return f"{found.emitted} tokens in {found.rounds} rounds and {found.seconds:g} s, or a text without tokens"
    if len(found.proposed_at) != len(found.accepted_at):
        return f"{len(found.proposed_at)} places proposed, {len(found.accepted_at)} accepted"
    if any(more > asked for more, asked in zip(found.accepted_at, found.proposed_at, strict=True)):
        return "more accepted than proposed at a place"
    if found.accepted > found.proposed or any(asked > found.rounds for asked in found.proposed_at):
        return f"{found.proposed} proposed and {found.accepted} accepted in {found.rounds} rounds"
    quantiles = (found.ms_per_token, found.ms_per_round, found.ms_to_first_token)
    return "" if all(map(_rises, quantiles)) else "quantiles that fall, or are less than 0"


def _rises(found: Quantiles) -> bool:
    return found.at[0] >= 0 and all(low <= high for low, high in pairwise(found.at))


def _cell(row: RunResult, measured: Measured, rows: Mapping[str, RunResult]) -> MeasuredCell:
    speed_up = over_baseline(row, rows)
    base = rows[row.config.baseline.hash].measured if speed_up else None
    return MeasuredCell(row, measured, base, speed_up)
