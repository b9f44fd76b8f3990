"""Summarises the rows of a tradeoff: a point for each candidate, and the Pareto front of the points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from sybil.losslessness.checks import Drift, drift_of
from sybil.measuring.timing import Interval, speed_up
from sybil.trading import metrics
from sybil.trading.candidates import PLAIN, TradeoffCandidate
from sybil.trading.rows import GREEDY, SAMPLED, Mode, TradeoffRow


@dataclass(frozen=True, slots=True)
class TradeoffPoint:
    """One candidate over all prompts.

    For texts sampled at temperature 1: tokens_per_second, the median over prompts, and over_plain, its ratio to plain
    decoding; drift in nats a token and perplexity, both under the float target; distinct and repetition, see
    metrics.py; acceptance_rate, None without a draft. For greedy texts: greedy_tokens_per_second and greedy_over_plain;
    agreement, the share of tokens before a text's first difference from plain decoding's; same_texts, how many texts
    are the same."""

    candidate: TradeoffCandidate
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
        """The distance of the output from the float target's distribution, in nats a token: the absolute value of the
        drift. For a lossless decoder it is 0, because that is proved and a measured drift is chance."""
        return 0.0 if self.candidate.lossless else abs(self.drift.value)


def summarise(rows: Sequence[TradeoffRow], candidates: Mapping[str, TradeoffCandidate]) -> list[TradeoffPoint]:
    """A TradeoffPoint for each candidate, in the candidates' order, over the prompts that all candidates have finished
    in both modes."""
    found = {(row.candidate, row.mode, row.prompt): row for row in rows}
    prompts = [
        prompt
        for prompt in dict.fromkeys(row.prompt for row in rows)
        if all((name, mode, prompt) in found for name in candidates for mode in (GREEDY, SAMPLED))
    ]
    if not prompts:
        return []

    def of(name: str, mode: Mode) -> list[TradeoffRow]:
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
            TradeoffPoint(
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


def front(points: Sequence[TradeoffPoint]) -> list[TradeoffPoint]:
    """The Pareto front, fastest first: the points for which no other point is faster (sampled) without being farther
    from the float target, or nearer without being slower."""
    best: list[TradeoffPoint] = []
    for point in sorted(points, key=lambda each: (-each.tokens_per_second, each.distance)):
        if not best or point.distance < best[-1].distance:
            best.append(point)
    return best
