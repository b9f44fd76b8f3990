"""What the tests of sweeps share: a bench without models, a config's file, and what two runs of a sweep must share.

    python tests/sweeping.py CONFIG OUT KILLS SHORTEST LONGEST

runs a config in processes that are killed at random moments, so many seconds after each began, and then in one that
isn't: for test_sweep.py. It only forks, for a process that has decoded can't be forked safely, and imports torch once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sybil.errors import SybilError
from sybil.sweeping.passes import Pass
from sybil.sweeping.plan import SweepPlan, plan
from sybil.sweeping.run import Phases, RunConfig, RunResult
from sybil.sweeping.sweep import sweep

ENVIRONMENT: dict[str, str | int] = {"processor": "none", "cores": 1, "threads": 1, "torch": "0"}
TIMES = ("seconds", "passes", "phases", "text_seconds", "joules", "memory")
QUANTILES = ("ms_per_token", "ms_per_round", "ms_to_first_token")


def planned(folder: Path, text: str) -> SweepPlan:
    """The plan of a configuration file with that text."""
    path = folder / "config.yaml"
    path.write_text(text)
    return plan(path)


def counts(row: RunResult) -> dict[str, Any]:
    """A row without its times, the memory's growth, and the machine."""
    found = row.model_dump(exclude={"environment", "finished"})
    if row.measured:
        found["measured"] = row.measured.model_dump(exclude=set(TIMES) | set(QUANTILES))
        found["samples"] = [getattr(row.measured, name).count for name in QUANTILES]
        found["repeats"] = len(row.measured.passes)
        found["weights"] = row.measured.memory.weights
    return found


class Desk:
    """In place of TargetBench: its cells decode nothing. log: every load, warm-up and pass, in order. failing: by a
    cell's name, the error that it raises. stop: after how many passes KeyboardInterrupt is raised."""

    log: list[tuple[str, str]]
    failing: dict[str, Exception]
    stop: int | None
    environment = ENVIRONMENT

    @classmethod
    def fresh(cls) -> type[Desk]:
        return type("FreshDesk", (cls,), {"log": [], "failing": {}, "stop": None})

    def __init__(self, any_cell: RunConfig) -> None:
        self.log.append(("load", any_cell.pair))
        self._raise(any_cell.pair)

    def cell(self, config: RunConfig) -> _Seat:
        return _Seat(self, config)

    def _raise(self, name: str) -> None:
        if name in self.failing:
            raise self.failing[name]


class _Seat:
    def __init__(self, desk: Desk, config: RunConfig) -> None:
        self.desk, self.config = desk, config

    def warm_up(self) -> None:
        self.desk.log.append(("warm up", self.config.hash))

    def measure(self) -> Pass:
        if self.desk.stop is not None and sum(what == "pass" for what, _ in self.desk.log) >= self.desk.stop:
            raise KeyboardInterrupt
        self.desk._raise(self.config.drafter)
        self.desk.log.append(("pass", self.config.hash))
        return made_up(self.config)


def made_up(config: RunConfig, ms: float = 10.0) -> Pass:
    """A pass whose rounds propose 2 tokens and keep 1, or propose none."""
    rounds = ((ms, 1, 0, 0),) * 4 if config.plain else ((ms, 2, 2, 1), (ms, 2, 2, 1))
    phases = Phases(prefill=0.0, draft=0.01, verify=0.02, sample=0.0, other=0.0)
    return Pass(
        batch=config.batch,
        seconds=(ms * len(rounds) / 1e3,) * (config.prompts // config.batch),
        ms_to_first_token=(ms,) * config.prompts,
        rounds=(rounds,) * config.prompts,
        phases=phases,
        weights=100,
        prefill=None,
        decode=None,
        joules=None,
    )


def forked(config: str, out: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        sweep(plan(config), out)
        os._exit(0)
    except SybilError as error:
        sys.stderr.write(f"{error}\n")
    finally:
        os._exit(1)


def main(config: str, out: Path, kills: int, shortest: float, longest: float) -> int:
    """Write how many processes were killed before they had ended; returns the exit status of the last process."""
    import transformers  # noqa: F401 - once, and not in each process

    moments, killed = random.Random(0), 0
    for _ in range(kills):
        pid = forked(config, out)
        time.sleep(moments.uniform(shortest, longest))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
    _, status = os.waitpid(forked(config, out), 0)
    sys.stdout.write(f"{killed}\n")
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])))
