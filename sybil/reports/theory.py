"""The speed-up that the formula of docs/theory.md predicts for a cell, beside the measured one. Pure.

A round emits 1 + s_1 + ... + s_K tokens and costs d(K) + v(K + 1), in forwards of plain decoding. So the speed-up over
plain decoding is S = (1 + s_1 + ... + s_K) / (d(K) + v(K + 1))."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sybil.reports.rows import MeasuredCell
from sybil.sweeping.run import Measured, Phases

BAND = 0.15
"""How far a prediction may be off, as a share of the measured speed-up."""
AGREES, ROUND, PROMPT, TEXTS = "", "sampling and the rest of a round", "reading prompts", "how texts differ"


@dataclass(frozen=True, slots=True)
class Prediction:
    """Speed-ups of one cell. formula: by the costs of drafting and verifying alone. rounds: by all costs of a round.
    whole: with the reading of prompts and the tokens that were really emitted, the quotient of both tokens a second.
    measured: the median over texts."""

    formula: float
    rounds: float
    whole: float
    measured: float

    @property
    def off(self) -> float:
        """How far the formula is off, as a share of the measured speed-up."""
        return self.formula / self.measured - 1

    @property
    def agrees(self) -> bool:
        return abs(self.off) <= BAND

    @property
    def reason(self) -> str:
        """Why the formula is off: the step between it and the measured number that changes the speed-up most."""
        if self.agrees:
            return AGREES
        steps = {ROUND: self.rounds / self.formula, PROMPT: self.whole / self.rounds, TEXTS: self.measured / self.whole}
        towards = {name: -np.sign(self.off) * np.log(step) for name, step in steps.items()}
        return max(towards, key=lambda name: float(towards[name]))


def predict(cell: MeasuredCell) -> Prediction | None:
    """The prediction for a cell. None without a draft or a baseline, and where phases weren't measured."""
    plain, found = cell.plain, cell.measured
    if (
        cell.config.plain
        or plain is None
        or cell.speed_up is None
        or not _judging(plain.phases)
        or not _judging(found.phases)
    ):
        return None
    tokens = 1 + sum(kept / found.rounds for kept in found.accepted_at)
    own, base = _judging(found.phases) / found.rounds, _verified(plain)
    own_round, base_round = (_round(each.phases) / each.rounds for each in (found, plain))
    return Prediction(
        formula=tokens * base / own,
        rounds=tokens * base_round / own_round,
        whole=found.tokens_per_second / plain.tokens_per_second,
        measured=cell.speed_up.value,
    )


def curve(cells: Sequence[MeasuredCell]) -> list[float]:
    """S by the number of proposed tokens, from 0 on. The cells differ in gamma only, and each gamma is a number.
    Survival is taken from the largest gamma, and costs are lines fitted to the measurements of all gammas. So the
    predictions for the other gammas aren't copies of their own measurements. [] without baselines or phases."""
    known = [(int(cell.config.gamma), cell.measured, cell.plain) for cell in cells if cell.config.gamma != "auto"]
    usable = [(k, found, plain) for k, found, plain in known if plain and _judging(found.phases)]
    if not usable or not (base := _verified(usable[0][2])):
        return []
    most, farthest, _ = max(usable, key=lambda each: each[0])
    kept = [share / farthest.rounds for share in farthest.accepted_at[:most]]
    tokens = 1 + np.cumsum([0.0, *kept, *[0.0] * (most - len(kept))])
    draft = _line([(0, 0.0), *((k, found.phases.draft / found.rounds / base) for k, found, _ in usable)])
    verify = _line([(1, 1.0), *((k + 1, _verified(found) / base) for k, found, _ in usable)])
    costs = [draft(k) + verify(k + 1) for k in range(1, most + 1)]
    return [1.0, *(float(each / cost) for each, cost in zip(tokens[1:], costs, strict=True) if cost > 0)]


def _judging(phases: Phases) -> float:
    """The seconds of drafting and verifying."""
    return phases.draft + phases.verify


def _round(phases: Phases) -> float:
    """The seconds of whole rounds."""
    return phases.draft + phases.verify + phases.sample + phases.other


def _verified(found: Measured | None) -> float:
    """The seconds of a round's verification."""
    return found.phases.verify / found.rounds if found else 0.0


def _line(points: Sequence[tuple[int, float]]) -> np.poly1d:
    """The line through points, by least squares."""
    places, values = zip(*points, strict=True)
    return np.poly1d(np.polyfit(places, values, 1))
