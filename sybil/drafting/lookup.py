"""Drafting from the text itself, without a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sybil.drafting.contract import Context, Drafter, DrafterFactory, Generating, Outcome, Proposal
from sybil.models import Model
from sybil.transfer import integers


@dataclass(frozen=True, slots=True)
class DraftLookup(DrafterFactory):
    """Makes a LookupDrafter for each generation."""

    @property
    def models(self) -> tuple[Model, ...]:
        return ()

    def over(self, *models: Model) -> DraftLookup:
        return self

    def __call__(self, generating: Generating) -> Drafter:
        return LookupDrafter()


class LookupDrafter(Drafter):
    """Prompt lookup (Saxena 2023): proposes what followed the last few tokens where they stood before.

    The longest ending that is found wins, and of its places the latest among those with most tokens behind them."""

    LONGEST = 3

    def propose(self, context: Context, gamma: int) -> Proposal:
        limits = context.limits or [gamma] * len(context.tokens)  # a row's own: its neighbours' room is none of its
        rows = zip(context.prefixes(), limits, strict=True)
        found = [_continuation(prefix.tolist(), self.LONGEST, limit) for prefix, limit in rows]
        counts = [len(tokens) for tokens in found]
        tokens = torch.zeros(len(found), max(counts), dtype=torch.int64, device="cpu")
        for row, continuation in enumerate(found):
            tokens[row, : len(continuation)] = integers(continuation)
        return Proposal(tokens, None, counts)

    def observe(self, outcome: Outcome) -> None: ...


def _continuation(known: list[int], longest: int, count: int) -> list[int]:
    """At most count tokens that followed the ending of known where it stood before; [] where it never did."""
    if not count:
        return []
    for size in range(min(longest, len(known) - 1), 0, -1):
        ending = known[-size:]
        places = [end for end in range(size, len(known)) if known[end - size : end] == ending]
        if places:
            best = max(places, key=lambda end: (min(len(known) - end, count), end))
            return known[best : best + count]
    return []
