"""The plan of a judgement, and its report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sybil.agreement import FLOAT32, Tolerance
from sybil.arguments import integer
from sybil.errors import InvalidSetting
from sybil.losslessness.checks import Drift
from sybil.losslessness.chisquare import Check
from sybil.losslessness.evidence import Evidence
from sybil.losslessness.samples import Request
from sybil.losslessness.speculation import UNKNOWN, Speculation

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Question = Literal["distribution", "tokens", "endings", "width"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is tried, and how sure a verdict is to be. Raises InvalidSetting for a field that is out of range.

    - `request`: the request for sampled sequences
    - `repeats`: sampled sequences for each prompt
    - `greedy`: the number of prompts that are decoded greedily
    - `stopping`: the number of prompts on which stops are tried. `stop_strings`: whether stop strings are among them.
    - `widths`: the number of greedy prompts that are asked again with more or fewer tokens verified at once, where the
      decoder lets one choose. 0 leaves a phase out, as it does for `repeats`, `greedy` and `stopping`.
    - `alpha`: the probability that a lossless decoder fails
    - `seed`: of the judge's random choices and of the sampled sequences
    - `near_tie`: by how much target and decoder may differ through rounding alone
    - `doubtful`: by how much they may differ if the decoder's precision is not known. No verdict is built on a smaller
      difference than that.
    - `resolution` (nats a token): for a PASS there must be enough tokens to detect such a drift with power 0.9
    - `uniformity` (Cohen's w): for a PASS there must be enough tokens to detect such an uneven u with power 0.9"""

    request: Request
    repeats: int = 2
    greedy: int = 16
    stopping: int = 8
    stop_strings: bool = True
    widths: int = 4
    alpha: float = 1e-6
    seed: int = 0
    near_tie: Tolerance = FLOAT32
    doubtful: Tolerance | None = None
    resolution: float = 0.1
    uniformity: float = 0.2

    def __post_init__(self) -> None:
        for name in ("repeats", "greedy", "stopping", "widths"):
            integer(name, getattr(self, name), least=0, remedy=" (0 leaves this phase out)")
        integer("seed", self.seed, least=0)
        if not (self.repeats or self.greedy or self.stopping):
            raise InvalidSetting("repeats, greedy and stopping are all 0: leave at least one phase in")
        _ = self.request.sampling  # refuses what is out of range
        if self.repeats and not self.request.temperature > 0:
            raise InvalidSetting(
                f"temperature is {self.request.temperature:g}: sample above 0, or leave sampling out (repeats 0)"
            )
        integer("max_new_tokens", self.request.max_new_tokens, least=1)
        if not 0 < self.alpha < 1:
            raise InvalidSetting(f"alpha is {self.alpha:g}: use a probability between 0 and 1, as 1e-6")
        for name in ("resolution", "uniformity"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidSetting(f"{name} is {getattr(self, name):g}: use a number above 0")


@dataclass(frozen=True, slots=True)
class Ruling:
    """The verdict on one question, and the reasons for it. The questions are:

    - "distribution": is each sampled token drawn from the target's distribution?
    - "tokens": is each greedy token the target's likeliest?
    - "endings": do sequences end where plain decoding ends them?
    - "width": are greedy tokens the same, however many tokens are verified at once?

    `by_rounding`: the verdict is INCONCLUSIVE, and only rounding leaves it open."""

    question: Question
    verdict: Verdict
    reasons: tuple[str, ...]
    by_rounding: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """The judge's report on a decoder. `print(report)` shows it.

    - `subject`: the decoder's name
    - `verdict`: the verdict that follows from all rulings
    - `rulings`: one for each question that was put
    - `reasons`: those of the rulings, the worst first, and then what was left out
    - `checks`: the statistical checks
    - `plan`: what was tried
    - `drift`: how far the sampled tokens drift from the target, None where there are none
    - `tokens`, `sequences`: how many sampled tokens and sequences were judged
    - `evidence`: of the sampled tokens, None where there are none
    - `control`: what a second decoder, judged beside this one, shows; None without one
    - `speculation`: the tokens that were drafted and accepted, None where they are unknown"""

    subject: str
    verdict: Verdict
    rulings: tuple[Ruling, ...]
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    plan: Plan
    drift: Drift | None = None
    tokens: int = 0
    sequences: int = 0
    evidence: Evidence | None = field(default=None, repr=False)
    control: Control | None = None
    speculation: Speculation | None = None

    @property
    def alpha(self) -> float:
        return self.plan.alpha

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """The verdict on each question."""
        return {ruling.question: ruling.verdict for ruling in self.rulings}

    @property
    def lines(self) -> tuple[str, ...]:
        """The report in lines: the whole verdict, then each question's verdict with its reasons, then notes."""
        told, lines = set[str](), [f"{self.verdict}: {self.subject}"]
        for ruling in self.rulings:
            lines.append(f"  {ruling.question}: {ruling.verdict}")
            lines += [f"    {reason}" for reason in ruling.reasons if reason not in told]
            told |= set(ruling.reasons)
        lines += [f"  {note}" for note in self.reasons if note not in told]
        lines.append(self.speculated)
        if self.control is not None:
            lines.append(f"control: {self.control.report.verdict}: {self.control.report.subject}")
            lines += [f"  {line}" for line in self.control.told]
        return tuple(lines)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def speculated(self) -> str:
        """A line that says whether speculation was observed."""
        return UNKNOWN if self.speculation is None else self.speculation.told

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON. Infinite numbers and NaN become None. The evidence is left out."""
        plain: dict[str, Any] = _plain({
            "subject": self.subject, "verdict": self.verdict, "verdicts": self.verdicts,
            "reasons": self.reasons, "alpha": self.alpha,
            "tokens": self.tokens, "sequences": self.sequences, "drift": self.drift and asdict(self.drift),
            "checks": [asdict(check) for check in self.checks], "plan": asdict(self.plan),
            "control": self.control and {"told": self.control.told, **self.control.report.as_dict()},
            "speculation": self.speculation and self.speculation.as_dict(),
        })  # fmt: skip
        return plain


@dataclass(frozen=True, slots=True)
class Control:
    """A second, plain decoder that was judged beside the first. `report`: its own report. `told`: lines that say
    whether speculation is to blame for the first decoder's faults."""

    report: Report
    told: tuple[str, ...]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
