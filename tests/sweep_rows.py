"""Rows of a sweep with made-up numbers, which follow from a cell's settings alone: what reports are tested on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sybil.sweeping.run import Measured, Memory, Phases, Quantiles, RunConfig, RunResult

TOKENS = 48
PLAIN_MS = 4.0
"""Plain decoding's milliseconds to verify a token."""
KEPT = {"pair": 0.7, "self": 0.85, "lookup": 0.35}
COSTS = {"pair": 0.12, "self": 0.4, "lookup": 0.01}
ENVIRONMENT: dict[str, str | int] = {"processor": "Made Up", "cores": 2, "torch": "2.13.0", "commit": "0123456"}


def cell(**settings: Any) -> RunConfig:
    return RunConfig(**{"pair": "stdlib", "prompts": 4, "new_tokens": TOKENS, "repeats": 2} | settings)


def product(**choices: Sequence[Any]) -> Iterator[RunConfig]:
    """The cells of a sweep, each baseline once."""
    made = [cell(**dict(zip(choices, chosen, strict=True))) for chosen in itertools.product(*choices.values())]
    plain = {each.baseline.hash: each.baseline for each in made}
    yield from plain.values()
    yield from made


def row(config: RunConfig, **changes: Any) -> RunResult:
    """The cell's row; changes: of its fields."""
    fields = {"hash": config.hash, "label": config.label, "config": config, "measured": measured(config)}
    return RunResult(**fields | {"environment": ENVIRONMENT, "finished": "2026-11-30T12:00:00Z"} | changes)


def failed(config: RunConfig, error: str = "OutOfMemory: 12 GB are asked for and 4 GB are free") -> RunResult:
    return row(config, measured=None, error=error)


def measured(config: RunConfig) -> Measured:
    """Rounds of K tokens, each of which is kept with the same probability; it falls as the temperature rises. Costs are
    linear in K, and the texts differ a little."""
    plain, texts = config.drafter == "none", config.prompts * config.repeats
    gamma = 0 if plain else 3 if config.gamma == "auto" else int(config.gamma)
    hot = 1 - 0.25 * min(config.temperature, 1.5) - (0.1 if config.domain == "conversation" else 0)
    chance, cost = KEPT.get(config.drafter, 0.6) * hot, COSTS.get(config.drafter, 0.2)
    survival = [chance**place for place in range(1, gamma + 1)]
    rounds = round(texts * TOKENS / (1 + sum(survival)))
    at = [round(rounds * kept) for kept in survival]
    per_batch = 1 / (0.4 + 0.6 / config.batch) * (0.4 + 0.6 / config.batch) ** 2
    verify, draft = (1e-3 * PLAIN_MS * rounds * share * per_batch for share in (1 + 0.05 * gamma, cost * gamma))
    phases = Phases(prefill=0.01 * texts, draft=draft, verify=verify, sample=0.04 * verify, other=0.02 * verify)
    seconds = sum(dict(phases).values())
    spread = [0.85 + 0.3 * (number % config.prompts) / max(config.prompts - 1, 1) for number in range(texts)]
    if plain:
        spread = [1 + (each - 1) / 4 for each in spread]
    shares = [each / sum(spread) for each in spread]
    text_seconds = [seconds * share * config.batch for share in shares]
    asked = rounds * gamma
    rate = sum(at) / asked if asked else None
    rates = [None if rate is None else min(max(rate * (2 - each), 0), 1) for each in spread]
    ms = 1e3 * seconds / (texts * TOKENS)
    tail = np.linspace(0.6, 1.4, 101) ** 3
    return Measured(
        texts=texts,
        emitted=texts * TOKENS,
        rounds=rounds,
        proposed=asked,
        accepted=sum(at),
        accepted_in_round=tuple(a - b for a, b in itertools.pairwise([rounds, *at, 0])),
        proposed_at=(rounds,) * gamma,
        accepted_at=tuple(at),
        seconds=seconds,
        passes=(texts * TOKENS / seconds,) * config.repeats,
        phases=phases,
        ms_per_token=Quantiles(count=texts * TOKENS, at=tuple(ms * tail)),
        ms_per_round=Quantiles(count=rounds, at=tuple(ms * tail * (1 + sum(survival)))),
        ms_to_first_token=Quantiles(count=texts, at=tuple(12 * tail)),
        text_seconds=tuple(text_seconds),
        text_tokens=(TOKENS,) * texts,
        text_acceptance=tuple(rates),
        memory=Memory(weights=45 << 20, prefill=8 << 20, decode=(6 + config.batch) << 20),
    )


def write(path: Path, rows: Iterable[RunResult]) -> Path:
    """Write rows as `sybil sweep` writes them."""
    path.write_text("".join(json.dumps(each.model_dump(mode="json")) + "\n" for each in rows))
    return path


def everything() -> list[RunResult]:
    """Rows that fill every chart, and a cell that failed."""
    made = {
        each.hash: each
        for each in itertools.chain(
            product(drafter=["pair"], gamma=[1, 2, 4, "auto"], temperature=[0.0, 0.8]),
            product(drafter=["pair", "self"], gamma=[2], domain=["code", "conversation"]),
            product(drafter=["pair"], gamma=[4], batch=[1, 4]),
        )
    }
    return [*map(row, made.values()), failed(cell(pair="opt", drafter="pair", gamma=4))]


def hostile(name: str) -> list[RunResult]:
    """Rows in which every string is `name`, to try what a report does with it."""
    made = product(pair=[name], drafter=[name, "self"], gamma=[1, "auto"], domain=[name, "code"])
    rows = [row(each, environment={name: name, "cores": 2}) for each in made]
    return [*rows, failed(cell(pair="other", drafter=name), error=name)]
