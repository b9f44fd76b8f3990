"""A sweep's rows as a table, each row compared with its baseline. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sybil.measuring.timing import Interval, speed_up
from sybil.sweeping.run import Measured, RunConfig, RunResult

MACHINE = ("processor", "cores", "threads", "torch")
"""The fields of the environment that two rows must share to be comparable."""


def over_baseline(row: RunResult, rows: Mapping[str, RunResult]) -> Interval | None:
    """The speed-up of a row over its baseline in milliseconds for each token, paired by text: the median over texts and
    its interval. None for a baseline itself, and where one of the two wasn't measured or was measured on another
    machine. rows: by hash."""
    base = rows.get(row.config.baseline.hash)
    if base is None or base is row or base.measured is None or row.measured is None:
        return None
    if any(base.environment.get(name) != row.environment.get(name) for name in MACHINE):
        return None
    return speed_up(_by_text(base.config, base.measured), _by_text(row.config, row.measured))


def _by_text(config: RunConfig, measured: Measured) -> list[float]:
    """The seconds for each token of each prompt, over all repeats."""
    shape = (config.repeats, config.prompts)
    seconds, tokens = (np.reshape(each, shape).sum(0) for each in (measured.text_seconds, measured.text_tokens))
    return list(map(float, seconds / tokens))


def table(rows: Iterable[RunResult]) -> list[dict[str, Any]]:
    """The shown values of each row."""
    known = {row.hash: row for row in rows}
    return [_line(row, known) for row in known.values()]


def _line(row: RunResult, rows: Mapping[str, RunResult]) -> dict[str, Any]:
    names = ("pair", "drafter", "rule", "gamma", "temperature", "domain", "batch")
    about = {"label": row.label, **{name: getattr(row.config, name) for name in names}, "hash": row.hash}
    if row.measured is None:
        return about | {"error": row.error}
    over = over_baseline(row, rows)
    return about | {
        "tokens_per_second": row.measured.tokens_per_second,
        "over_baseline": None if over is None else {"value": over.value, "low": over.low, "high": over.high},
        "acceptance_rate": row.measured.acceptance_rate,
        "tokens_per_round": row.measured.tokens_per_round,
    }
