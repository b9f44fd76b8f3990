"""Measures the cells of a plan, and writes their rows to a file. A sweep that was killed continues with that file."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sybil.errors import SybilError, one_line, told
from sybil.measuring.memory import release
from sybil.sweeping.cells import ReadyCell, TargetBench
from sybil.sweeping.passes import folded
from sybil.sweeping.plan import SweepPlan
from sybil.sweeping.rows import KeptPass, SweepFile
from sybil.sweeping.run import RunConfig, RunResult

Environment = dict[str, str | int]
Tell = Callable[[str, int, int], None]
"""Called with what is being done, the number of finished repeats of cells, and the number of all repeats."""


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep's result. rows: of the plan's cells, in the plan's order. known: how many cells the file had already.
    dropped: whether the file had an incomplete last line."""

    rows: tuple[RunResult, ...]
    known: int
    dropped: bool

    @property
    def failed(self) -> tuple[RunResult, ...]:
        """The rows that are errors."""
        return tuple(row for row in self.rows if row.error is not None)


def sweep(plan: SweepPlan, path: Path, tell: Tell = lambda *_: None, *, again: bool = False) -> Swept:
    """Measure the cells that the file doesn't have. again: whether cells that failed are measured again.

    The cells of one target are interleaved. Each pass goes through all of them in another order, drawn by the plan's
    seed, so that a machine that slows down does so for all cells. A cell's row is written when its last repeat is done;
    its earlier repeats are kept in a journal beside the file. A cell that fails gets a row with its error. Raises
    ResultsMismatch and ResultsUnwritable."""
    with SweepFile(path) as rows:
        known = begin(plan, rows, again)
        state = _Progress(tell, plan, rows)
        for number, group in enumerate(plan.groups):
            _measure(group, random.Random(f"{plan.seed} {number}"), plan.warm_ups, rows, state)
            release()
        rows.tidy()
        return Swept(tuple(rows.rows[cell.hash] for cell in plan.cells), known, rows.dropped)


def begin(plan: SweepPlan, rows: SweepFile, again: bool) -> int:
    """Remove the failed rows if `again` is set. Returns how many of the plan's cells the file has then."""
    wanted = {cell.hash for cell in plan.cells}
    if again:
        rows.forget({each for each, row in rows.rows.items() if each in wanted and row.error is not None})
    return len(wanted & rows.rows.keys())


class _Progress:
    """Counts finished repeats of cells. A cell with a row has all repeats finished."""

    def __init__(self, tell: Tell, plan: SweepPlan, rows: SweepFile) -> None:
        self._tell, self._plan, self._rows = tell, plan, rows
        self._total = sum(cell.repeats for cell in plan.cells)
        self(plan.name)

    def __call__(self, what: str) -> None:
        done = 0
        for cell in self._plan.cells:
            done += cell.repeats if cell.hash in self._rows.rows else len(self._rows.passes.get(cell.hash, ()))
        self._tell(what, min(done, self._total), self._total)


def _measure(
    group: Sequence[RunConfig], order: random.Random, warm_ups: int, rows: SweepFile, state: _Progress
) -> None:
    """Measure the cells of one target in turn. The target's models are freed when this returns."""
    left = [cell for cell in group if cell.hash not in rows.rows]
    if not left:
        return
    state(f"{left[0].pair}: loading")
    try:
        bench = TargetBench(left[0])
    except Exception as error:  # loading a model's files may raise anything
        for cell in left:
            rows.add(failed(cell, error, {}))
        state(f"{left[0].pair}: failed")
        return
    environment = dict(bench.environment)
    for cell in left:
        rows.passes[cell.hash] = _usable(rows.passes.get(cell.hash, ()), cell, environment)
    ready: dict[str, ReadyCell] = {}
    for repeat in range(max(cell.repeats for cell in left)):
        turn = [cell for cell in left if cell.repeats > repeat]
        order.shuffle(turn)
        for cell in turn:
            earlier = rows.passes.get(cell.hash, [])
            if cell.hash in rows.rows or any(each.repeat == repeat for each in earlier):
                continue
            state(told_of(cell))
            found = _pass(bench, cell, ready, repeat, warm_ups, environment)
            if isinstance(found, RunResult):
                rows.add(found)
            elif repeat < cell.repeats - 1:
                rows.keep(found)
            else:
                rows.add(_done(cell, [*earlier, found], environment))
            state(told_of(cell))


def _usable(kept: Sequence[KeptPass], cell: RunConfig, environment: Environment) -> list[KeptPass]:
    """The kept passes of the cell that were measured in this environment: each repeat once, in order, and without the
    cell's last repeat."""
    found = {each.repeat: each for each in kept if each.environment == environment}
    return [found[repeat] for repeat in range(cell.repeats - 1) if repeat in found]


def _pass(
    bench: TargetBench,
    config: RunConfig,
    ready: dict[str, ReadyCell],
    repeat: int,
    warm_ups: int,
    environment: Environment,
) -> KeptPass | RunResult:
    """Measure one pass. Returns the pass, or the row of a cell that failed."""
    try:
        if config.hash not in ready:
            cell = ready[config.hash] = bench.cell(config)
            for _ in range(warm_ups):
                cell.warm_up()
        measured = ready[config.hash].measure()
        return KeptPass(hash=config.hash, repeat=repeat, environment=environment, measured=measured)
    except Exception as error:  # a model may raise anything; the other cells go on
        return failed(config, error, environment)


def measured(config: RunConfig, bench: TargetBench, warm_ups: int) -> RunResult:
    """Measure one cell from its first repeat to its last. Returns its row, also where it fails."""
    environment, ready, passes = dict(bench.environment), dict[str, ReadyCell](), list[KeptPass]()
    for repeat in range(config.repeats):
        found = _pass(bench, config, ready, repeat, warm_ups, environment)
        if isinstance(found, RunResult):
            return found
        passes.append(found)
    return _done(config, passes, environment)


def _done(config: RunConfig, passes: Sequence[KeptPass], environment: Environment) -> RunResult:
    return RunResult(
        hash=config.hash,
        label=config.label,
        config=config,
        measured=folded(config, [each.measured for each in passes]),
        environment=environment,
        finished=_now(),
    )


def failed(config: RunConfig, error: BaseException, environment: Environment) -> RunResult:
    """The row of a cell that failed."""
    said = one_line(str(error), 500) if isinstance(error, SybilError) else f"{type(error).__name__}: {told(error)}"
    return RunResult(
        hash=config.hash, label=config.label, config=config, error=said, environment=environment, finished=_now()
    )


def told_of(config: RunConfig) -> str:
    """A cell in a few words."""
    return f"{config.pair}, {config.drafter}, {config.label}, {config.domain}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
