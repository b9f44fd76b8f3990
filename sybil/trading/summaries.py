"""What the rows of a tradeoff come to: a point a candidate, and the front of those that nothing beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from sybil.losslessness.checks import Drift, drift_of
from sybil.measuring.timing import Interval, speed_up
from sybil.trading import metrics
from sybil.trading.candidates import PLAIN, Candidate
from sybil.trading.rows import GREEDY, SAMPLED, Row


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate over all prompts.

    Of sampled texts, at temperature 1: tokens_per_second, the median over prompts, and over_plain, how many times
    plain decoding's; drift in nats a token and perplexity, both under the float target; distinct and repetition as
    metrics.py has them; acceptance_rate, None without a draft. Of greedy ones: greedy_tokens_per_second,
    greedy_over_plain, and agreement and same_texts, how far and how often its text is plain decoding's."""

    candidate: Candidate
    prompts: int
    tokens: int
    tokens_per_second: float
    over_plain: Interval
    acceptance_rate: float | None
    drift: Drift
    perplexity: float
    distinct: tuple[float, float, float]
    repetition: float
    greedy_tokens_per_second: float
    greedy_over_plain: Interval
    agreement: float
    same_texts: int

    @property
    def distance(self) -> float:
        """How far from the float target its output stands, in nats a token: the drift's size. A lossless decoder's is
        0: that is proved, and what is measured of it is chance."""
        return 0.0 if self.candidate.lossless else abs(self.drift.value)


def summarise(rows: Sequence[Row], candidates: Mapping[str, Candidate]) -> list[Point]:
    """A Point a candidate, in their order, over the prompts that all of them have finished in both modes."""
    found: dict[tuple[str, str, str], Row] = {(row.candidate, row.mode, row.prompt): row for row in rows}
    prompts = [
        prompt
        for prompt in dict.fromkeys(row.prompt for row in rows)
        if all((name, mode, prompt) in found for name in candidates for mode in (GREEDY, SAMPLED))
    ]
    if not prompts:
        return []

    def of(name: str, mode: str) -> list[Row]:
        return [found[name, mode, prompt] for prompt in prompts]

    plain = {mode: [row.ms_per_token for row in of(PLAIN, mode)] for mode in (GREEDY, SAMPLED)}
    references = [row.tokens for row in of(PLAIN, GREEDY)]
    points = []
    for name, candidate in candidates.items():
        greedy, drawn = of(name, GREEDY), of(name, SAMPLED)
        certain, texts = [row.tokens for row in greedy], [row.tokens for row in drawn]
        said = [row.said for row in drawn if row.said is not None]
        judged, log_prob = sum(each.judged for each in said), sum(each.log_prob for each in said)
        excess = log_prob + sum(each.entropy for each in said)
        proposed = sum(row.proposed or 0 for row in drawn)
        greedy_ms, ms = [row.ms_per_token for row in greedy], [row.ms_per_token for row in drawn]
        points.append(
            Point(
                candidate=candidate,
                prompts=len(prompts),
                tokens=sum(map(len, texts)),
                tokens_per_second=1e3 / median(ms),
                over_plain=speed_up(plain[SAMPLED], ms),
                acceptance_rate=sum(row.accepted or 0 for row in drawn) / proposed if proposed else None,
                drift=drift_of(excess, sum(each.variance for each in said), judged),
                perplexity=math.exp(min(-log_prob / judged, 700.0)),
                distinct=(metrics.distinct(texts, 1), metrics.distinct(texts, 2), metrics.distinct(texts, 3)),
                repetition=metrics.repetition(texts),
                greedy_tokens_per_second=1e3 / median(greedy_ms),
                greedy_over_plain=speed_up(plain[GREEDY], greedy_ms),
                agreement=metrics.agreement(certain, references),
                same_texts=sum(one == other for one, other in zip(certain, references, strict=True)),
            )
        )
    return points


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front, fastest first: those that no other one beats in speed (sampled) without being farther from the
    float target, or in distance without being slower."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (-each.tokens_per_second, each.distance)):
        if not best or point.distance < best[-1].distance:
            best.append(point)
    return best
