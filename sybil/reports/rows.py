"""The rows of a sweep's file, checked, and each beside the plain decoding that its speed-up is measured against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sybil.errors import ResultsMismatch, one_line, shown
from sybil.measuring.timing import Interval, speed_up
from sybil.sweeping.run import NONE, VERSION, Measured, Quantiles, RunConfig, RunResult

MOST_BYTES = 256 << 20
"""Of a results file that is read: tens of thousands of rows."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell that was measured. plain: its baseline, None where the file has none; speed_up: over it, with the 95 %
    interval over texts, None without a baseline and of a baseline itself."""

    row: RunResult
    measured: Measured
    plain: Measured | None
    speed_up: Interval | None

    @property
    def config(self) -> RunConfig:
        return self.row.config

    @property
    def is_plain(self) -> bool:
        return self.config.drafter == NONE


@dataclass(frozen=True, slots=True)
class Results:
    """A results file. rows: one a cell, the latest of each; torn: whether a broken last line was left out."""

    path: Path
    rows: tuple[RunResult, ...]
    cells: tuple[Cell, ...]
    torn: bool

    @property
    def failed(self) -> tuple[RunResult, ...]:
        return tuple(row for row in self.rows if row.measured is None)

    @property
    def drafted(self) -> tuple[Cell, ...]:
        """The cells that speculate."""
        return tuple(cell for cell in self.cells if not cell.is_plain)

    @property
    def unpaired(self) -> tuple[Cell, ...]:
        """The cells that speculate and have no baseline to be compared with."""
        return tuple(cell for cell in self.drafted if cell.speed_up is None)


def read(path: Path) -> Results:
    """The rows of the file, which is left as it is; raises ResultsMismatch where it isn't a sweep's, or a line can't be
    believed. A last line without an end is one that a killed sweep was writing: it is left out."""
    *lines, rest = _text(path).split("\n")
    rows: dict[str, RunResult] = {}
    for number, line in enumerate(lines, start=1):
        row = _row(line, f"{path}, line {number}")
        before = rows.get(row.hash)
        if before is None or row.measured is not None or before.measured is None:
            rows[row.hash] = row
    if not rows:
        raise ResultsMismatch(f"{path} holds no whole row of a sweep: name the JSONL file that `sybil sweep` wrote")
    kept = tuple(rows.values())
    return Results(path, kept, tuple(_cell(row, row.measured, rows) for row in kept if row.measured), bool(rest))


def _text(path: Path) -> str:
    remedy = "name the JSONL file that `sybil sweep` wrote"
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ResultsMismatch(f"{path} has {size:,} bytes, more than the {MOST_BYTES:,} that are read: {remedy}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultsMismatch(f"{path} can't be read ({error.strerror}): {remedy}") from None
    except UnicodeDecodeError:
        raise ResultsMismatch(f"{path} is no text file: {remedy}") from None


def _row(line: str, where: str) -> RunResult:
    """One line as a row; raises ResultsMismatch, naming the place."""
    try:
        said: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise ResultsMismatch(f"{where}, is no JSON: name the file that `sybil sweep` wrote") from None
    if not isinstance(said, dict) or "config" not in said:
        raise ResultsMismatch(f"{where}, is no row of a sweep: name the file that `sybil sweep` wrote")
    version = said.get("version", VERSION)
    if type(version) is int and version > VERSION:
        raise ResultsMismatch(f"{where}, is of version {shown(version)}, and this Sybil reads {VERSION}: update Sybil")
    try:
        row = RunResult.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the row"
        raise ResultsMismatch(f"{where}: {shown(place)}: {one_line(first['msg'])}: measure the cell again") from None
    if wrong := _wrong(row):
        raise ResultsMismatch(f"{where}: {wrong}: measure the cell again")
    return row


def _wrong(row: RunResult) -> str:
    """What is at odds within a row, or ""."""
    if row.hash != row.config.hash:
        return f"hash is {shown(row.hash)}, and that of its config {row.config.hash}"
    found = row.measured
    if found is None:
        return "" if row.error else "neither measured nor an error"
    lengths = {len(each) for each in (found.text_seconds, found.text_tokens, found.text_acceptance)}
    if lengths != {found.texts} or found.texts % row.config.repeats:
        return f"{found.texts} texts in {row.config.repeats} passes, and lists of {sorted(lengths)}"
    if len(found.proposed_at) != len(found.accepted_at):
        return f"{len(found.proposed_at)} places proposed, {len(found.accepted_at)} accepted"
    if any(kept > asked for kept, asked in zip(found.accepted_at, found.proposed_at, strict=True)):
        return "more accepted than proposed at a place"
    if found.accepted > found.proposed or not found.emitted or not found.rounds or not found.seconds:
        return f"{found.emitted} tokens in {found.rounds} rounds and {found.seconds:g} s, {found.accepted} accepted"
    quantiles = (found.ms_per_token, found.ms_per_round, found.ms_to_first_token)
    return "" if all(map(_is_whole, quantiles)) else "quantiles that aren't 101 rising numbers"


def _is_whole(found: Quantiles) -> bool:
    if not found.count:
        return True
    rising = all(low <= high for low, high in pairwise(found.at))
    return len(found.at) == 101 and found.at[0] >= 0 and rising


def _cell(row: RunResult, measured: Measured, rows: dict[str, RunResult]) -> Cell:
    base = None if row.config.drafter == NONE else rows.get(row.config.baseline.hash)
    plain = base.measured if base else None
    if base is None or plain is None:
        return Cell(row, measured, plain, None)
    return Cell(row, measured, plain, _over(_ms(base.config, plain), _ms(row.config, measured)))


def _over(plain: Sequence[float | None], drafted: Sequence[float | None]) -> Interval | None:
    """The speed-up over texts that both have; None where they aren't the same texts."""
    if len(plain) != len(drafted):
        return None
    pairs = [(before, now) for before, now in zip(plain, drafted, strict=True) if before and now]
    return speed_up(*zip(*pairs, strict=True)) if pairs else None


def _ms(config: RunConfig, found: Measured) -> list[float | None]:
    """Milliseconds a token of each text, its passes together; of texts that were decoded as rows of a batch, of the
    batch, for they share their seconds. None where no token came."""
    per_pass = found.texts // config.repeats
    spent: list[float | None] = []
    for start in range(0, per_pass, config.batch):
        rows = range(start, min(start + config.batch, per_pass))
        passes = range(0, found.texts, per_pass)
        seconds = sum(found.text_seconds[first + start] for first in passes)
        tokens = sum(found.text_tokens[first + row] for first in passes for row in rows)
        spent.append(1e3 * seconds / tokens if tokens else None)
    return spent
