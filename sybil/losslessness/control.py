"""Compares a decoder with a plain one. A fault that both have isn't due to speculation."""

from __future__ import annotations

import math
from collections.abc import Iterator

from scipy import special

from sybil.losslessness.checks import Drift
from sybil.losslessness.report import Control, Question, Report

COUNTED: dict[Question, str] = {"tokens": "greedy", "endings": "stopping"}
"""For each question, the check whose faults are counted."""
INTERVAL = 1.96  # half the width of a 95 % interval, in standard errors


def beside(report: Report, plain: Report) -> Control:
    """The control of a report. plain: the report on the second decoder, by the same plan against the same target."""
    told = [line for ruling in plain.rulings for line in _on(ruling.question, report, plain)]
    return Control(plain, tuple(told or ["neither fails where the other doesn't"]))


def _on(question: Question, report: Report, plain: Report) -> Iterator[str]:
    first, second = report.verdicts.get(question), plain.verdicts[question]
    if first == "FAIL" and second == "PASS":
        yield (
            f"{question}: the control passes, so neither the target as it was imported nor the sampler is to blame: "
            "the fault is in what the first decoder does besides, its speculation"
        )
    elif first == second == "FAIL":
        yield (
            f"{question}: the control fails too, so speculation alone is not to blame: the target as it was imported, "
            f"or the sampler, differs from the target that was given{_apart(question, report, plain)}"
        )
    elif first == "FAIL":
        yield f"{question}: the control is INCONCLUSIVE, so whether speculation is to blame is open"
    elif first == second == "INCONCLUSIVE":
        yield f"{question}: open for the control too, so it isn't speculation alone that leaves it open"
    elif second == "FAIL":
        yield f"{question}: the control fails where the first decoder doesn't"


def _apart(question: Question, report: Report, plain: Report) -> str:
    """How far apart the two decoders are, where that can be said."""
    if question == "distribution" and report.drift and plain.drift:
        return _drifts(report.drift, plain.drift, report.alpha)
    name = COUNTED.get(question)
    counts = [f"{check.statistic:.0f} of {check.count}" for each in (report, plain) for check in each.checks
              if check.name == name]  # fmt: skip
    return f"; faults: {counts[0]}, the control {counts[1]}" if len(counts) == 2 else ""


def _drifts(first: Drift, second: Drift, alpha: float) -> str:
    """Whether the first decoder's drift differs from the control's."""
    apart = first.value - second.value
    error = math.hypot(first.high - first.low, second.high - second.low) / 2 / INTERVAL
    half = INTERVAL * error
    told = f"{apart:+.4f} nats a token (95 %: {apart - half:+.4f} to {apart + half:+.4f})"
    if abs(apart) > -float(special.ndtri(alpha / 2)) * error:
        return f"; speculation adds a fault of its own: its drift is apart from the control's by {told}"
    return f"; the two drifts are the same as far as can be seen, apart by {told}"
