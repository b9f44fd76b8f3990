"""Two processes, one of each side, that take turns decoding one round on the same core.

docs/gating.md has the measurements of what that brings.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gate.sides import GateError, Side
from benchmarks.workloads import REAL, Case

START_SECONDS, ROUND_SECONDS = 600, 60
ORDERS = ("base", "new"), ("new", "base")


@dataclass(frozen=True, slots=True)
class GatePlan:
    """What a process decodes. passes: how often each prompt is decoded; a real model, whose rounds take ten times as
    long, decodes each prompt once. threads: of a process. It is one, because with two threads every forward would wait
    whenever another program takes one of the cores."""

    cases: tuple[Case, ...]
    prompts: int = 3
    new_tokens: int = 32
    passes: int = 3
    threads: int = 1
    device: str | None = None
    dtype: str | None = None

    def texts(self, case: Case) -> int:
        """How many texts of the case a process decodes."""
        return self.prompts * (1 if case.workload == REAL else self.passes)

    def request(self) -> dict[str, Any]:
        return {**asdict(self), "cases": [asdict(case) for case in self.cases]}


class Process:
    """A fresh process of a side, with everything loaded. measuring: a folder with the package benchmarks only.

    Raises GateError where the side's code can't be run."""

    def __init__(self, side: Side, plan: GatePlan, measuring: Path) -> None:
        self._side = side
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (close() closes it)
        self._process = subprocess.Popen(
            [str(side.python), "-P", "-m", "benchmarks.gate.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(measuring), "OMP_NUM_THREADS": str(plan.threads)},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        self._send(plan.request())

    def ready(self) -> dict[str, Any]:
        """Wait until the process is loaded and warm. Returns its description of the machine."""
        told: dict[str, Any] = self._receive(START_SECONDS)
        if not Path(told["sybil"]).is_relative_to(self._side.folder):
            raise GateError(f"{self._side} measured {told['sybil']}, which is not its own build: unset PYTHONPATH")
        self.prompts = str(told["prompts"])
        self.lacking: dict[str, str] = dict(told["lacking"])
        return dict(told["about"])

    def pin(self, core: int) -> None:
        """Pin the process to that core, where the system supports that."""
        threads = Path(f"/proc/{self._process.pid}/task")
        if hasattr(os, "sched_setaffinity") and threads.is_dir():
            for thread in threads.iterdir():
                with contextlib.suppress(ProcessLookupError):  # a thread that has ended since
                    os.sched_setaffinity(int(thread.name), {core})

    def round(self, case: Case, prompt: int) -> tuple[float, int] | None:
        """Seconds and new tokens of the next round; None after the last."""
        self._send([case.name, prompt])
        told = self._receive(ROUND_SECONDS)
        return None if told is None else (float(told[0]), int(told[1]))

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

    def _receive(self, seconds: float) -> Any:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self._fail(f"said nothing for {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._fail("ended")
        return json.loads(line)

    def _fail(self, how: str) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        raise GateError(f"{self._side} {how} ({lines[-1] if lines else 'and left no message'}): mend it, then gate it")


@dataclass(slots=True)
class Took:
    """What one process took for one case."""

    seconds: float = 0.0
    tokens: int = 0

    def add(self, seconds: float, tokens: int) -> None:
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens

    @property
    def ms_per_token(self) -> float:
        return 1e3 * self.seconds / self.tokens


@dataclass(slots=True)
class Measurements:
    """By case: log(new / base) and each side's milliseconds a token, each with an entry for every pair of processes; or
    the reason why the case could not be measured."""

    log_ratios: dict[str, list[float]] = field(default_factory=dict)
    ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case, took: Mapping[str, Took]) -> None:
        """Add the times of one pair of processes."""
        ratio = math.log(took["new"].ms_per_token / took["base"].ms_per_token)
        self.log_ratios.setdefault(case.name, []).append(ratio)
        for name, each in took.items():
            self.ms.setdefault(case.name, {}).setdefault(name, []).append(each.ms_per_token)


def measure(
    sides: Mapping[str, Side], plan: GatePlan, pairs: int, measuring: Path, into: Measurements
) -> Iterator[None]:
    """Measure `pairs` pairs of fresh processes, and add the times to `into`. Yields after each pair."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    for number in range(pairs):
        processes: dict[str, Process] = {}
        try:
            for name in ORDERS[number % 2]:  # the second finds more in the system's caches: neither is always that
                processes[name] = Process(sides[name], plan, measuring)
            for process in processes.values():
                into.about = process.ready()
            into.lacking = _lacking(processes, plan)
            if len({process.prompts for process in processes.values()}) > 1:
                raise GateError("the two commits have other prompts or tokens, so their times can't be compared")
            for process in processes.values():
                process.pin(cores[number % len(cores)])
            for case in (case for case in plan.cases if case.name not in into.lacking):
                took = {name: Took() for name in processes}
                for count in range(plan.texts(case)):
                    _decode(processes, case, count % plan.prompts, took)
                into.add(case, took)
        finally:
            for process in processes.values():
                process.close()
        yield


def _lacking(processes: Mapping[str, Process], plan: GatePlan) -> dict[str, str]:
    """The cases that can't be compared because base lacks something, and what it lacks. Raises GateError for a case
    that only new can't decode."""
    base, new = processes["base"].lacking, processes["new"].lacking
    for case in new.keys() - base.keys():
        raise GateError(f"new can't decode {case!r}, which base can ({new[case]}): mend it, then gate it")
    if len(base) == len(plan.cases):
        raise GateError(f"base can decode none of the cases ({next(iter(base.values()))}): name another base")
    return base


def _decode(processes: Mapping[str, Process], case: Case, prompt: int, took: Mapping[str, Took]) -> None:
    """Both processes decode the prompt, round by round, in the order ABBA. If one has more rounds, it decodes the
    rest."""
    going = set(processes)
    for count in itertools.count():
        for name in ORDERS[count % 2]:
            if name in going:
                told = processes[name].round(case, prompt)
                if told is None:
                    going.remove(name)
                else:
                    took[name].add(*told)
        if not going:
            return
