"""What asv's tracks vary, and where each value lies in the measured run."""

from __future__ import annotations

import inspect
import shutil
import types
from collections.abc import Callable
from statistics import median
from typing import Any, ClassVar, TypeVar

from benchmarks import measured, workloads
from benchmarks.measured import Cells, Sums
from benchmarks.workloads import ACCEPTANCES, AUTO, EMBEDDED, NAMED, REAL, REPLAY, SYNTHETIC, Case, accepted

VERSION = "1"
"""Of what is measured. asv keeps a track's points together by this: raise it where old points are no longer to be
compared with new ones. Left to itself asv hashes the track's code, and drops old points at every edit."""

DEVICES = ["cpu", "cuda"] if shutil.which("nvidia-smi") else ["cpu"]
REPLAY_NAME, REAL_NAME = "GPT-2 / GPT-2 Medium replay", "SmolLM2 in float32"
WORKLOADS = {**{domain: domain for domain in measured.DOMAINS}, REPLAY_NAME: "random", REAL_NAME: "english"}
DRAFTERS = {"draft model": "model", "lookup": "lookup"}
AUTO_DRAFTERS = {workloads.DRAFTERS[drafter]: drafter for drafter in ("model", *NAMED)}

Function = TypeVar("Function", bound=Callable[..., Any])


def setup_cache() -> Cells:
    """The measured run. asv knows a cache by where its function is written, so this is run once for all classes."""
    return measured.measure(DEVICES)


def track(unit: str, title: str) -> Callable[[Function], Function]:
    """Say what a track's numbers are."""

    def mark(function: Function) -> Function:
        function.unit, function.title, function.pretty_name = unit, title, title  # type: ignore[attr-defined]
        return function

    return mark


def samples(values: list[float]) -> dict[str, Any]:
    """What asv takes a median and an interval of, and tests for a difference."""
    return {"samples": [rounded(value) for value in values], "number": 1}


def rounded(value: float) -> float:
    """To six digits: asv prints all that there are."""
    return float(f"{value:.6g}")


class Tracks:
    """Ways to decode. A subclass has tracks, which read self.sums, a Sums a pass of the cell that asv asks for."""

    kind: ClassVar[str] = ""
    version: ClassVar[str] = VERSION
    params: ClassVar[list[list[Any]]]
    param_names: ClassVar[list[str]]

    def __init_subclass__(cls) -> None:
        """asv's names for the site are a function's, so a class that inherits tracks needs its own copies of them."""
        for name, function in inspect.getmembers(cls, inspect.isfunction):
            if cls.kind and hasattr(function, "title"):
                copy = types.FunctionType(
                    function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
                )
                copy.__dict__.update(function.__dict__, pretty_name=f"{cls.kind}: {function.title}")
                copy.__doc__, copy.__qualname__ = function.__doc__, f"{cls.__qualname__}.{name}"
                setattr(cls, name, copy)

    def case(self, **chosen: Any) -> Case:
        """The case that asv's parameters stand for."""
        raise NotImplementedError

    def text(self, workload: str, **_: Any) -> str:
        """The kind of text that asv's parameters stand for."""
        return WORKLOADS[workload]

    def plain(self, case: Case) -> Case:
        """The same without a draft."""
        return Case(case.workload, "none")

    def setup(self, cells: Cells, *chosen: Any) -> None:
        """Find the cell. NotImplementedError, where the measured commit lacks it, is asv's word for no point."""
        names = dict(zip(self.param_names, chosen, strict=True))
        self._cells, self._kind, self._device = cells, self.text(**names), names["device"]
        self.chosen = self.case(**names)
        found = self._find(self.chosen)
        if isinstance(found, str):
            raise NotImplementedError(found)
        self.sums = found

    def _find(self, case: Case) -> list[Sums] | str:
        return self._cells.get(measured.key(case, self._kind, self._device), "never measured")

    def ratios(self, numerator: str, denominator: str, factor: float = 1.0) -> list[float]:
        """factor * numerator / denominator, a value a pass."""
        return [factor * each[numerator] / each[denominator] for each in self.sums]

    def share(self, numerator: str, denominator: str) -> float:
        """Their quotient, which is the same in every pass; NaN where the denominator is 0."""
        first = self.sums[0]
        return rounded(first[numerator] / first[denominator]) if first[denominator] else float("nan")

    def speed_up(self, over: Case) -> float:
        """The median over passes of that case's time over this one's, for the same prompts; NaN where there is none."""
        theirs = self._find(over)
        if isinstance(theirs, str):
            return float("nan")
        return rounded(median(a["seconds"] / b["seconds"] for a, b in zip(theirs, self.sums, strict=True)))


class GreedyTracks(Tracks):
    """The embedded pair, greedy."""

    kind = "greedy"
    params: ClassVar = [list(measured.DOMAINS), list(DRAFTERS), list(measured.GAMMAS), DEVICES]
    param_names: ClassVar = ["workload", "drafter", "gamma", "device"]

    def case(self, drafter: str, gamma: int, **_: Any) -> Case:
        return Case(drafter=DRAFTERS[drafter], gamma=gamma)


class SampledTracks(Tracks):
    """The embedded pair, sampled, by the rule that judges."""

    kind = "sampled"
    params: ClassVar = [list(measured.DOMAINS), list(measured.RULES), DEVICES]
    param_names: ClassVar = ["workload", "rule", "device"]

    def case(self, rule: str, **_: Any) -> Case:
        return Case(rule=rule)

    def plain(self, case: Case) -> Case:
        return measured.PLAIN_SAMPLING


class RandomWeightsTracks(Tracks):
    """Real forwards of GPT-2 and GPT-2 Medium with random weights, words put in the draft's mouth."""

    kind = "replay"
    params: ClassVar = [[REPLAY_NAME], list(measured.GAMMAS), DEVICES]
    param_names: ClassVar = ["workload", "gamma", "device"]

    def case(self, gamma: int, **_: Any) -> Case:
        return Case(REPLAY, gamma=gamma)


class AutoTracks(Tracks):
    """The embedded pair, greedy, each drafter at gamma auto."""

    kind = "auto"
    params: ClassVar = [list(measured.DOMAINS), list(AUTO_DRAFTERS), DEVICES]
    param_names: ClassVar = ["workload", "drafter", "device"]

    def case(self, drafter: str, **_: Any) -> Case:
        return Case(drafter=AUTO_DRAFTERS[drafter], gamma=AUTO)


class RealTracks(Tracks):
    """SmolLM2 in float32, greedy, without a draft and with what needs no second model, at gamma auto."""

    kind = "SmolLM2 in float32"
    params: ClassVar = [[REAL_NAME], [workloads.DRAFTERS[each] for each in ("none", *NAMED)], ["cpu"]]
    param_names: ClassVar = ["workload", "drafter", "device"]

    def case(self, drafter: str, **_: Any) -> Case:
        chosen = AUTO_DRAFTERS.get(drafter)
        return Case(REAL, "none") if chosen is None else Case(REAL, chosen, gamma=AUTO)


class SyntheticTracks(Tracks):
    """The embedded pair, greedy, at gamma 4, where what is proposed is kept by a fixed share: what a round costs, apart
    from what the draft has learnt."""

    kind = "synthetic acceptance"
    params: ClassVar = [list(ACCEPTANCES), DEVICES]
    param_names: ClassVar = ["acceptance", "device"]

    def case(self, **_: Any) -> Case:
        return Case(drafter=SYNTHETIC)

    def text(self, acceptance: float, **_: Any) -> str:
        return accepted(acceptance)


class AutoregressiveTracks(Tracks):
    """Sybil without a draft, greedy."""

    kind = "autoregressive"
    params: ClassVar = [[*measured.DOMAINS, REPLAY_NAME], DEVICES]
    param_names: ClassVar = ["workload", "device"]

    def case(self, workload: str, **_: Any) -> Case:
        return Case(REPLAY if workload == REPLAY_NAME else EMBEDDED, "none")
