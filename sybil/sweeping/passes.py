"""One pass of a cell over its texts, and the combination of several passes into the cell's row. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sybil.results import Step
from sybil.sweeping.run import Bytes, Count, Measured, Memory, Phases, Quantiles, RunConfig, Seconds
from sybil.verification import RULES

Milliseconds = Annotated[float, Field(ge=0)]
Round = tuple[Milliseconds, Count, Count, Count]
"""A round of one text: (milliseconds without the prompt's, new tokens, proposed tokens, accepted tokens)."""


class Pass(BaseModel):
    """seconds: of each batch. Of each text: ms_to_first_token, and its rounds. phases: of all of them.

    weights, prefill, decode: bytes, as Memory has them. joules: None where nothing tells."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    batch: Annotated[int, Field(ge=1)]
    seconds: tuple[Seconds, ...]
    ms_to_first_token: tuple[Milliseconds, ...]
    rounds: tuple[tuple[Round, ...], ...]
    phases: Phases
    weights: Bytes
    prefill: Bytes | None
    decode: Bytes | None
    joules: float | None

    @property
    def text_seconds(self) -> tuple[float, ...]:
        """Those of each text's whole batch."""
        return tuple(each for each in self.seconds for _ in range(self.batch))

    @property
    def tokens_per_second(self) -> float:
        return sum(tokens for text in self.rounds for _, tokens, _, _ in text) / sum(self.seconds)


def rounds_of(steps: Sequence[Step], batch: int) -> tuple[tuple[Round, ...], ...]:
    """The rounds of each text of a batch, until the text ended."""
    found: list[list[Round]] = [[] for _ in range(batch)]
    for step in steps:
        milliseconds = 1e3 * max(step.timings.total - step.timings.prefill, 0.0)
        for row, counts in enumerate(zip(step.tokens, step.proposed, step.accepted, strict=True)):
            tokens, proposed, accepted = counts
            if tokens:
                found[row].append((milliseconds, len(tokens), proposed, accepted))
    return tuple(map(tuple, found))


def phases_of(steps: Iterable[Step]) -> Phases:
    """The seconds of all rounds, by phase."""
    known = [step.timings for step in steps]
    return Phases(**{name: sum(getattr(each, name) for each in known) for name in Phases.model_fields})


def folded(config: RunConfig, passes: Sequence[Pass]) -> Measured:
    """All passes of a cell combined."""
    texts = [text for each in passes for text in each.rounds]
    rounds = list(chain.from_iterable(texts))
    proposed, accepted = [each[2] for each in rounds], [each[3] for each in rounds]
    joules = [each.joules for each in passes if each.joules is not None]
    deepest = max(proposed)
    return Measured(
        texts=len(texts),
        emitted=sum(tokens for _, tokens, _, _ in rounds),
        rounds=len(rounds),
        proposed=sum(proposed),
        accepted=sum(accepted),
        accepted_in_round=tuple(accepted.count(number) for number in range(max(accepted) + 1)),
        proposed_at=tuple(sum(each > place for each in proposed) for place in range(deepest)),
        accepted_at=tuple(sum(each > place for each in accepted) for place in range(deepest)),
        seconds=sum(chain.from_iterable(each.seconds for each in passes)),
        passes=tuple(each.tokens_per_second for each in passes),
        phases=Phases(**{name: sum(getattr(each.phases, name) for each in passes) for name in Phases.model_fields}),
        ms_per_token=_quantiles([ms / tokens for ms, tokens, _, _ in rounds for _ in range(tokens)]),
        ms_per_round=_quantiles([ms for ms, _, _, _ in rounds]),
        ms_to_first_token=_quantiles([ms for each in passes for ms in each.ms_to_first_token]),
        text_seconds=tuple(chain.from_iterable(each.text_seconds for each in passes)),
        text_tokens=tuple(sum(tokens for _, tokens, _, _ in text) for text in texts),
        text_acceptance=tuple(map(_acceptance, texts)),
        memory=Memory(
            weights=passes[-1].weights,
            prefill=largest(each.prefill for each in passes),
            decode=largest(each.decode for each in passes),
        ),
        joules=sum(joules) if len(joules) == len(passes) else None,
        lossless=config.rule in RULES,
    )


def largest(sizes: Iterable[int | None]) -> int | None:
    """The largest of the known sizes; None where none is known."""
    return max((size for size in sizes if size is not None), default=None)


def _acceptance(text: Sequence[Round]) -> float | None:
    proposed = sum(each[2] for each in text)
    return sum(each[3] for each in text) / proposed if proposed else None


def _quantiles(samples: Sequence[float]) -> Quantiles:
    return Quantiles(count=len(samples), at=tuple(np.percentile(samples, range(101)).tolist()))
