"""Two processes, one of each side, that decode by turns: what slows the machine down slows down both."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.gate.sides import GateError, Side
from benchmarks.workloads import Case

START_SECONDS, TURN_SECONDS = 600, 300
ABBA = ("base", "new", "new", "base"), ("new", "base", "base", "new")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a process decodes. prompts, new_tokens: of each turn; rounds: how often each side has two turns."""

    cases: tuple[Case, ...]
    prompts: int = 3
    new_tokens: int = 32
    rounds: int = 4
    device: str | None = None
    dtype: str | None = None

    def request(self) -> dict[str, Any]:
        return {**asdict(self), "cases": [asdict(case) for case in self.cases]}


class Process:
    """A fresh process of a side, with everything loaded. measuring: a folder that holds the benchmarks package alone.

    Raises GateError where the side's code can't be run."""

    def __init__(self, side: Side, plan: Plan, measuring: Path) -> None:
        self._side = side
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (close() closes it)
        self._process = subprocess.Popen(
            [str(side.python), "-P", "-m", "benchmarks.gate.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(measuring)},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        self._send(plan.request())

    def ready(self) -> dict[str, Any]:
        """Wait until it is loaded and warm; what it says of the machine."""
        told = self._receive(START_SECONDS)
        if not Path(told["sybil"]).is_relative_to(self._side.folder):
            raise GateError(f"{self._side} measured {told['sybil']}, which is not its own build: unset PYTHONPATH")
        about: dict[str, Any] = told["about"]
        return about

    def turn(self, case: Case) -> float:
        """Milliseconds a token."""
        self._send(case.name)
        return float(self._receive(TURN_SECONDS)["ms_per_token"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _send(self, what: object) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail("ended")

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self._fail(f"said nothing for {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._fail("ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _fail(self, how: str) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        raise GateError(f"{self._side} {how} ({lines[-1] if lines else 'and left no message'}): mend it, then gate it")


@dataclass(slots=True)
class Measurements:
    """By case: log(new / base) a pair of processes, and each side's milliseconds a token, a pair an entry."""

    log_ratios: dict[str, list[float]] = field(default_factory=dict)
    ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def measure(sides: Mapping[str, Side], plan: Plan, pairs: int, measuring: Path, into: Measurements) -> Iterator[None]:
    """So many pairs of fresh processes, added to into; yields after each."""
    for number in range(pairs):
        processes: dict[str, Process] = {}
        try:
            # the second to start finds more in the caches of the system: neither is always the second
            for name in ABBA[number % 2][:2]:
                processes[name] = Process(sides[name], plan, measuring)
            for process in processes.values():
                into.about = process.ready()
            for case in plan.cases:
                _take_turns(processes, plan, case, number, into)
        finally:
            for process in processes.values():
                process.close()
        yield


def _take_turns(processes: Mapping[str, Process], plan: Plan, case: Case, number: int, into: Measurements) -> None:
    ms: dict[str, list[float]] = {name: [] for name in processes}
    ratios = []
    for count in range(plan.rounds):
        turns: dict[str, list[float]] = {name: [] for name in processes}
        for name in ABBA[(number + count) % 2]:
            turns[name].append(processes[name].turn(case))
        logs = {name: fmean(map(math.log, took)) for name, took in turns.items()}
        ratios.append(logs["new"] - logs["base"])
        for name, took in turns.items():
            ms[name] += took
    into.log_ratios.setdefault(case.name, []).append(median(ratios))
    for name, took in ms.items():
        into.ms.setdefault(case.name, {}).setdefault(name, []).append(median(took))
