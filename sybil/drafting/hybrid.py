"""Drafting by lookup where the text repeats itself, and by another drafter elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sybil.drafting.contract import Context, Drafter, DrafterFactory, Generating, Outcome, Proposal
from sybil.drafting.lookup import DraftLookup, LookupDrafter
from sybil.models import Model
from sybil.transfer import CPU, count_to, integers, upload

HOLDING = 0.7
"""Lookup proposes for a row where lookup's first token is at least this likely to be kept. Elsewhere the other drafter
proposes."""


@dataclass(frozen=True, slots=True)
class DraftHybrid(DrafterFactory):
    """Makes a HybridDrafter for each generation. Source 0 is the lookup; the other drafter's sources follow."""

    lookup: DraftLookup
    other: DrafterFactory

    @property
    def models(self) -> tuple[Model, ...]:
        return self.other.models

    @property
    def step_bytes(self) -> tuple[int, ...]:
        return (*self.lookup.step_bytes, *self.other.step_bytes)

    @property
    def weight_bytes(self) -> int:
        return self.other.weight_bytes

    def over(self, *models: Model) -> DraftHybrid:
        return replace(self, other=self.other.over(*models))

    def __call__(self, generating: Generating) -> HybridDrafter:
        return HybridDrafter(self.lookup(generating), self.other(generating))


class HybridDrafter(Drafter):
    """Proposes lookup's tokens for a row where matches like the row's have been right so far, and the other drafter's
    tokens elsewhere.

    The choice depends on the row's own kept tokens, and on nothing else."""

    def __init__(self, lookup: LookupDrafter, other: Drafter) -> None:
        self.lookup, self.other = lookup, other
        self._unused: list[tuple[int, int]] = []
        """(row, its number of tokens then) for each row whose last proposal was looked up."""

    def sources(self, context: Context) -> Sequence[int]:
        holding = self._holding(context)
        if all(holding):
            return [0] * len(holding)
        others = self.other.sources(context)
        return [0 if held else 1 + other for held, other in zip(holding, others, strict=True)]

    def propose(self, context: Context, gamma: int) -> Proposal:
        holding = self._holding(context)
        limits = context.limits or [gamma] * len(holding)
        found = self._part(self.lookup, context, [limit * held for limit, held in zip(limits, holding, strict=True)])
        made = self._part(
            self.other, context, [limit * (not held) for limit, held in zip(limits, holding, strict=True)]
        )
        lengths = context.lengths.tolist()
        self._unused = [(row, lengths[row]) for row, held in enumerate(holding) if held]
        return mixed(found, made, holding)

    def observe(self, outcome: Outcome) -> None:
        """Passes the outcome on. In rows where the other drafter's proposal wasn't used, it is told that none of its
        tokens were kept."""
        self.lookup.observe(outcome)
        accepted, lengths = list(outcome.accepted), outcome.lengths.clone()
        for row, length in self._unused:
            accepted[row] = 0
            lengths[row] = min(length + 1, int(lengths[row]))
        self._unused = []
        self.other.observe(Outcome(accepted, lengths))

    def _holding(self, context: Context) -> list[bool]:
        return [likelihood >= HOLDING for likelihood in self.lookup.likelihood(context)]

    @staticmethod
    def _part(drafter: Drafter, context: Context, limits: list[int]) -> Proposal:
        """A drafter's proposal for the rows that have limits above 0. It isn't asked where there are none."""
        if not any(limits):
            return Proposal.nothing(len(limits))
        return drafter.propose(replace(context, limits=limits), max(limits))


def mixed(looked_up: Proposal, other: Proposal, holding: Sequence[bool]) -> Proposal:
    """One proposal made of two: the rows that are True in `holding` come from looked_up, the others from the other.

    A deterministic token counts as drawn from a one-hot distribution. probs are None only where all tokens are
    deterministic."""
    counts = [one if held else two for one, two, held in zip(looked_up.counts, other.counts, holding, strict=True)]
    width = max(counts)
    if not any(other.counts):
        return Proposal(looked_up.tokens[:, :width], None, counts)
    first, device = torch.tensor(holding, dtype=torch.bool, device=CPU)[:, None], other.tokens.device
    theirs, own = _wide(upload(looked_up.tokens, device), width), _wide(other.tokens, width)
    tokens = torch.where(upload(first, device), theirs, own)
    if other.probs is None:
        return Proposal(tokens, None, counts)
    probs = torch.zeros(*tokens.shape, other.probs.shape[-1], dtype=other.probs.dtype, device=other.probs.device)
    probs[:, : other.probs.shape[1]] = other.probs[:, :width]
    determined = first | (count_to(width) >= integers(counts)[:, None])
    rows, places = (upload(each, device) for each in determined.nonzero(as_tuple=True))
    probs[rows, places] = 0
    probs[rows, places, tokens[rows, places]] = 1
    return Proposal(tokens, probs, counts)


def _wide(tokens: Tensor, width: int) -> Tensor:
    """The tokens cut, or padded with zeros, to (batch, width)."""
    return torch.nn.functional.pad(tokens, (0, width - tokens.shape[1]))
