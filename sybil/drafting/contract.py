"""What the loop and whatever proposes tokens say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sybil.models import Model
from sybil.sampling import Noise, Sampling
from sybil.transfer import count_to


@dataclass(slots=True)
class Context:
    """The committed tokens that a proposal follows.

    tokens: (batch, capacity) int64, a row's first lengths[row] of them committed; lengths: (batch,).
    exponentials: where the rule is coupled, the noise of the next gamma + 1 positions, (batch, gamma + 1, vocab), with
    which the target is going to draw. least_confidence: a token that the draft gives less ends its row's proposal.
    limits: how many tokens each row may be offered, gamma where it is None."""

    tokens: Tensor
    lengths: Tensor
    noise: Noise
    exponentials: Tensor | None = None
    least_confidence: float = 0.0
    limits: list[int] | None = None

    def uniforms(self, count: int, use: int) -> Tensor:
        """(batch, count) uniforms for the round that begins at these lengths."""
        return self.noise.uniforms(count_to(len(self.lengths)), self.lengths, count, use)

    def race_noise(self, count: int, vocab: int) -> Tensor:
        """(batch, count, vocab) exponentials of the next count positions."""
        positions = self.lengths[:, None] + count_to(count)
        return self.noise.exponentials(count_to(len(self.lengths)), positions, vocab)

    def prefixes(self) -> list[Tensor]:
        """The committed tokens of each row, 1-d."""
        return [row[:length] for row, length in zip(self.tokens, self.lengths.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Proposal:
    """tokens: (batch, gamma); probs: (batch, gamma, vocab), those the tokens were really drawn from,
    after every processor, or None where they were determined; counts: how many of each row's tokens are
    proposed (the rest is padding)."""

    tokens: Tensor
    probs: Tensor | None
    counts: list[int]

    @classmethod
    def nothing(cls, batch: int) -> Proposal:
        """No token for any row."""
        return cls(torch.empty(batch, 0, dtype=torch.int64, device="cpu"), None, [0] * batch)


@dataclass(frozen=True, slots=True)
class Outcome:
    """accepted: of each row's proposed tokens; lengths: (batch,) tokens committed now."""

    accepted: list[int]
    lengths: Tensor


class Drafter(Protocol):
    """Lives as long as one generation. A proposal may be shorter than gamma, or empty, for each row."""

    def propose(self, context: Context, gamma: int) -> Proposal: ...

    def observe(self, outcome: Outcome) -> None: ...


class DrafterFactory(Protocol):
    """Makes a generation's drafter."""

    @property
    def models(self) -> tuple[Model, ...]:
        """Those that every drafter runs; none where it needs none."""

    def over(self, *models: Model) -> DrafterFactory:
        """The same with other models in place of its own, in their order."""

    def __call__(self, batch: int, capacity: int, vocab_size: int, sampling: Sampling) -> Drafter:
        """capacity: tokens a row; vocab_size: the target's."""
