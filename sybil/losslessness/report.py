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
    """What is tried, and how sure a verdict is to be.

    request: what sampled sequences are asked for; repeats: of them for each prompt; greedy: prompts decoded
    greedily; stopping: prompts on which stops are tried (stop_strings: strings among them); widths: greedy prompts
    asked again with more or fewer tokens verified at once, where the decoder lets one choose (0 leaves each out).
    alpha: the probability that a lossless decoder fails. near_tie: by how much target and decoder may differ by
    rounding alone; doubtful: by how much if the decoder's precision is not known, so that no verdict can be built on
    such a difference. resolution (nats a token) and uniformity (Cohen's w): a PASS would have seen a drift and an
    uneven u as large, with power 0.9."""

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
    """The verdict on one question, and why. distribution: is each sampled token drawn from the target? tokens: is each
    greedy one its likeliest? endings: do sequences end where plain decoding does? width: are greedy tokens the same
    however many are verified at once? by_rounding: it is INCONCLUSIVE, and rounding alone leaves it open."""

    question: Question
    verdict: Verdict
    reasons: tuple[str, ...]
    by_rounding: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """verdict: what follows from the rulings, one a question that was put; reasons: theirs, the worst first, and what
    was left out. tokens, sequences: sampled ones that were judged; evidence: theirs, None where there is none;
    speculation: what was drafted and accepted, None where nothing tells. control: of a second decoder that was judged
    beside this one."""

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
        """By question."""
        return {ruling.question: ruling.verdict for ruling in self.rulings}

    @property
    def lines(self) -> tuple[str, ...]:
        """The whole verdict, and under it those that it follows from, each with its reasons, and the notes."""
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
    """A second decoder, plain where the first speculates. told: whose fault is whose, as the two reports together say
    it."""

    report: Report
    told: tuple[str, ...]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
