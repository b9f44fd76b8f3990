"""The results of a generation. Counters are integers; rates are computed from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

FinishReason = Literal["eos", "stop_string", "criterion", "length", "context"]
"""Why a row ended: an end token ("eos"), a stop string, a StoppingCriteria ("criterion"), the row's own limit
(max_new_tokens or max_length: "length"), or the end of the model's context."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds by phase. The time that a caller spends between rounds isn't counted."""

    prefill: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    sample: float = 0.0
    other: float = 0.0

    @property
    def total(self) -> float:
        return self.prefill + self.draft + self.verify + self.sample + self.other

    def __add__(self, more: Timings) -> Timings:
        return Timings(
            self.prefill + more.prefill,
            self.draft + more.draft,
            self.verify + more.verify,
            self.sample + more.sample,
            self.other + more.other,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One round: a proposal and a target forward. Every field but `timings` has an entry for each row.

    - tokens: the row's new token ids, () once the row has ended.
    - accepted: how many of the new tokens, counted from the first, the draft proposed.
    - proposed: how many tokens the draft proposed for the row.
    - finished: why the row ended; None while it goes on.
    - timings: the round's seconds by phase.
    - prefilled: how many prompt tokens the target read for the row; () after the first round.
    """

    tokens: tuple[tuple[int, ...], ...]
    accepted: tuple[int, ...]
    proposed: tuple[int, ...]
    finished: tuple[FinishReason | None, ...]
    timings: Timings
    prefilled: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stats:
    """The counters of a generation, summed over its rows.

    - rounds: target forwards, counted once for each row that hadn't ended.
    - emitted: new tokens.
    - accepted_in_round: its entry n is the number of rounds in which n proposed tokens were kept.
    - prefilled: prompt tokens that the target read. In a conversation's later turns these are the tokens that weren't
      in the target's cache.
    """

    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    emitted: int = 0
    accepted_in_round: tuple[int, ...] = ()
    time_to_first_token: float = 0.0
    timings: Timings = field(default_factory=Timings)
    prefilled: int = 0

    @classmethod
    def of(cls, steps: Iterable[Step]) -> Stats:
        rounds = proposed = accepted = emitted = prefilled = 0
        histogram: list[int] = []
        first = 0.0
        timings = Timings()
        for step in steps:
            timings = timings + step.timings
            prefilled += sum(step.prefilled)
            first = first or timings.total
            for tokens, kept, asked in zip(step.tokens, step.accepted, step.proposed, strict=True):
                if not tokens:
                    continue
                rounds, emitted = rounds + 1, emitted + len(tokens)
                proposed, accepted = proposed + asked, accepted + kept
                histogram += [0] * (kept + 1 - len(histogram))
                histogram[kept] += 1
        return cls(rounds, proposed, accepted, emitted, tuple(histogram), first, timings, prefilled)

    @property
    def acceptance_rate(self) -> float:
        """accepted / proposed; 0 where nothing was proposed."""
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def tokens_per_round(self) -> float:
        """emitted / rounds, which papers call block efficiency."""
        return self.emitted / self.rounds if self.rounds else 0.0

    @property
    def seconds(self) -> float:
        return self.timings.total

    @property
    def tokens_per_second(self) -> float:
        return self.emitted / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation. tokens, text and finish_reasons have an entry for each row, which holds the new tokens
    only, without the prompt. lossless: False if a lossy rule was used."""

    tokens: list[Tensor]
    text: list[str]
    finish_reasons: tuple[FinishReason, ...]
    stats: Stats
    lossless: bool = True
