"""Summarises the rows of a comparison: a summary for each contender, and speed-ups by kind of prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from sybil.measuring.contenders import AUTOREGRESSIVE, TRANSFORMERS
from sybil.measuring.task import Row
from sybil.measuring.timing import Interval, speed_up


def ms_per_token(row: Row) -> float:
    """Milliseconds that a row's run took for each new token."""
    return 1e3 * float(row["seconds"]) / len(row["tokens"])


def ms_after_first(row: Row) -> float:
    """Milliseconds for each token except the first, by the contender's own clock where it has one; NaN where there is
    only one token."""
    own, later = row.get("ms_after_first"), len(row["tokens"]) - 1
    if own is not None:
        return float(own)
    return 1e3 * (float(row["seconds"]) - float(row["time_to_first_token"])) / later if later else math.nan


@dataclass(frozen=True, slots=True)
class Summary:
    """One contender over all prompts. Times are medians over prompts, in ms. A field that doesn't apply is None."""

    contender: str
    ms_per_token: float
    tokens_per_second: float
    over_transformers: Interval
    over_autoregressive: Interval
    acceptance_rate: float | None
    tokens_per_round: float
    ms_to_first_token: float
    ms_after_first: float
    peak_memory: int | None
    weight_bytes: int
    prompts: int


def summarise(rows: list[Row], contenders: Sequence[str], plain: str = AUTOREGRESSIVE) -> list[Summary]:
    """A Summary for each contender, over the prompts that all contenders have finished. plain: the name of Sybil
    without a draft."""
    by_contender = {name: {row["prompt"]: row for row in rows if row["contender"] == name} for name in contenders}
    common = sorted(set.intersection(*(set(group) for group in by_contender.values())))
    if not common:
        return []
    ms = {name: [ms_per_token(group[prompt]) for prompt in common] for name, group in by_contender.items()}
    summaries = []
    for name, group in by_contender.items():
        chosen = [group[prompt] for prompt in common]
        emitted = sum(len(row["tokens"]) for row in chosen)
        proposed = sum(row["proposed"] or 0 for row in chosen)
        growth = [row["memory_growth"] for row in chosen if row["memory_growth"] is not None]
        summaries.append(
            Summary(
                contender=name,
                ms_per_token=median(ms[name]),
                tokens_per_second=emitted / sum(row["seconds"] for row in chosen),
                over_transformers=speed_up(ms[TRANSFORMERS], ms[name]),
                over_autoregressive=speed_up(ms[plain], ms[name]),
                acceptance_rate=sum(row["accepted"] or 0 for row in chosen) / proposed if proposed else None,
                tokens_per_round=emitted / sum(row["rounds"] for row in chosen),
                ms_to_first_token=1e3 * median([row["time_to_first_token"] for row in chosen]),
                ms_after_first=median(map(ms_after_first, chosen)),
                peak_memory=chosen[0]["weight_bytes"] + max(growth) if growth else None,
                weight_bytes=chosen[0]["weight_bytes"],
                prompts=len(common),
            )
        )
    return summaries


def by_domain(rows: Sequence[Row], contenders: Sequence[str], plain: str) -> dict[str, dict[str, Interval]]:
    """The speed-up of each contender over `plain`, by domain and contender, over the prompts of the domain that both
    have finished."""
    ms = {(row["contender"], row["prompt"]): ms_per_token(row) for row in rows}
    prompts = {row["prompt"]: row["domain"] for row in rows}
    found: dict[str, dict[str, Interval]] = {}
    for domain in dict.fromkeys(prompts.values()):
        for name in contenders:
            both = [
                (ms[plain, prompt], ms[name, prompt])
                for prompt, kind in prompts.items()
                if kind == domain and (plain, prompt) in ms and (name, prompt) in ms
            ]
            if both:
                found.setdefault(domain, {})[name] = speed_up(*zip(*both, strict=True))
    return found
