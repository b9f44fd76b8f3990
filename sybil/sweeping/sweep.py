"""The cells of a plan measured in turn, into the rows of a file that a killed sweep goes on with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sybil.errors import SybilError, one_line, told
from sybil.measuring.memory import release
from sybil.sweeping.cells import Bench, Cell
from sybil.sweeping.passes import folded
from sybil.sweeping.plan import Plan
from sybil.sweeping.rows import Kept, Rows
from sybil.sweeping.run import RunConfig, RunResult

Environment = dict[str, str | int]
Tell = Callable[[str, int, int], None]
"""What is being done, how many repeats of cells are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """rows: of the plan's cells, in its order. known: how many cells the file had already. dropped: whether the file
    had a last line that was cut short."""

    rows: tuple[RunResult, ...]
    known: int
    dropped: bool

    @property
    def failed(self) -> tuple[RunResult, ...]:
        """The rows that are errors."""
        return tuple(row for row in self.rows if row.error is not None)


def sweep(plan: Plan, path: Path, tell: Tell = lambda *_: None, *, again: bool = False) -> Outcome:
    """Measure what the file doesn't have. again: cells that failed, too.

    The cells of one target are interleaved: each pass goes through all of them in an order of its own, drawn by the
    plan's seed, so that a machine which slows down does so for all. A cell's row is written when its last repeat is
    done. Its earlier repeats lie in a journal beside the file. A cell that fails becomes a row with its error. Raises
    ResultsMismatch and ResultsUnwritable."""
    with Rows(path) as rows:
        known = begin(plan, rows, again)
        state = _Progress(tell, plan, rows)
        for number, group in enumerate(plan.groups):
            _measure(group, random.Random(f"{plan.seed} {number}"), plan.warm_ups, rows, state)
            release()
        rows.tidy()
        return Outcome(tuple(rows.rows[cell.hash] for cell in plan.cells), known, rows.dropped)


def begin(plan: Plan, rows: Rows, again: bool) -> int:
    """Forget the failed rows that are asked for again; how many of the plan's cells the file has then."""
    wanted = {cell.hash for cell in plan.cells}
    if again:
        rows.forget({each for each, row in rows.rows.items() if each in wanted and row.error is not None})
    return len(wanted & rows.rows.keys())


class _Progress:
    """Repeats of cells that are done; those of a row are all done."""

    def __init__(self, tell: Tell, plan: Plan, rows: Rows) -> None:
        self._tell, self._plan, self._rows = tell, plan, rows
        self._total = sum(cell.repeats for cell in plan.cells)
        self(plan.name)

    def __call__(self, what: str) -> None:
        done = 0
        for cell in self._plan.cells:
            done += cell.repeats if cell.hash in self._rows.rows else len(self._rows.passes.get(cell.hash, ()))
        self._tell(what, min(done, self._total), self._total)


def _measure(group: Sequence[RunConfig], order: random.Random, warm_ups: int, rows: Rows, state: _Progress) -> None:
    """The cells of one target, in turn. Its models are gone when this returns."""
    left = [cell for cell in group if cell.hash not in rows.rows]
    if not left:
        return
    state(f"{left[0].pair}: loading")
    try:
        bench = Bench(left[0])
    except Exception as error:  # whatever a model's files make of loading them
        for cell in left:
            rows.add(failed(cell, error, {}))
        state(f"{left[0].pair}: failed")
        return
    environment = dict(bench.environment)
    for cell in left:
        rows.passes[cell.hash] = _usable(rows.passes.get(cell.hash, ()), cell, environment)
    ready: dict[str, Cell] = {}
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


def _usable(kept: Sequence[Kept], cell: RunConfig, environment: Environment) -> list[Kept]:
    """The passes that were measured as this process measures, each repeat once and in order, all but the last."""
    found = {each.repeat: each for each in kept if each.environment == environment}
    return [found[repeat] for repeat in range(cell.repeats - 1) if repeat in found]


def _pass(
    bench: Bench, config: RunConfig, ready: dict[str, Cell], repeat: int, warm_ups: int, environment: Environment
) -> Kept | RunResult:
    """A pass, or the row of a cell that failed."""
    try:
        if config.hash not in ready:
            cell = ready[config.hash] = bench.cell(config)
            for _ in range(warm_ups):
                cell.warm_up()
        measured = ready[config.hash].measure()
        return Kept(hash=config.hash, repeat=repeat, environment=environment, measured=measured)
    except Exception as error:  # whatever a model makes of a text: the other cells go on
        return failed(config, error, environment)


def measured(config: RunConfig, bench: Bench, warm_ups: int) -> RunResult:
    """One cell from its first repeat to its last: a row, whatever happens."""
    environment, ready, passes = dict(bench.environment), dict[str, Cell](), list[Kept]()
    for repeat in range(config.repeats):
        found = _pass(bench, config, ready, repeat, warm_ups, environment)
        if isinstance(found, RunResult):
            return found
        passes.append(found)
    return _done(config, passes, environment)


def _done(config: RunConfig, passes: Sequence[Kept], environment: Environment) -> RunResult:
    return RunResult(
        hash=config.hash,
        label=config.label,
        config=config,
        measured=folded(config, [each.measured for each in passes]),
        environment=environment,
        finished=_now(),
    )


def failed(config: RunConfig, error: BaseException, environment: Environment) -> RunResult:
    """The row of a cell that can't be measured."""
    said = one_line(str(error), 500) if isinstance(error, SybilError) else f"{type(error).__name__}: {told(error)}"
    return RunResult(
        hash=config.hash, label=config.label, config=config, error=said, environment=environment, finished=_now()
    )


def told_of(config: RunConfig) -> str:
    """A cell in a few words."""
    return f"{config.pair}, {config.drafter}, {config.label}, {config.domain}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
