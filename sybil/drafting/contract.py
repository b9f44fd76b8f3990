"""The interface between the loop and drafters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sybil.models import Cache, Model
from sybil.noise import Exponentials, Noise
from sybil.sampling import Sampling
from sybil.transfer import count_to


@dataclass(slots=True)
class Context:
    """The committed tokens that a proposal follows, and what the drafter may draw with.

    - tokens: (batch, capacity) int64; the first lengths[row] tokens of a row are committed.
    - lengths: (batch,).
    - noise: the generation's random numbers.
    - exponentials: by the rule `coupled`, the noise of the next gamma + 1 positions, (batch, gamma + 1, vocab), with
      which the target is going to draw; None by other rules.
    - least_confidence: a token to which the draft gives a lower probability is the last of its row's proposal.
    - limits: the most tokens that may be proposed for each row; gamma where it is None.
    - drafted: how many of each row's last tokens are a draft's and may still be dropped; 0 where it is None. A drafter
      that keeps a record of the tokens it reads must leave these out."""

    tokens: Tensor
    lengths: Tensor
    noise: Noise
    exponentials: Tensor | Exponentials | None = None
    least_confidence: float = 0.0
    limits: list[int] | None = None
    drafted: list[int] | None = None

    def uniforms(self, count: int, use: int) -> Tensor:
        """Uniforms (batch, count) for the round that begins at these lengths. use: what they are for, see Noise."""
        return self.noise.uniforms(count_to(len(self.lengths)), self.lengths, count, use)

    def race_noise(self, count: int, vocab: int) -> Exponentials:
        """Exponentials (batch, count, vocab) of the next `count` positions."""
        positions = self.lengths[:, None] + count_to(count)
        rows = count_to(len(self.lengths))[:, None].expand_as(positions)
        return Exponentials(self.noise, rows, positions, vocab)

    def prefixes(self) -> list[Tensor]:
        """The committed tokens of each row, 1-d."""
        return [row[:length] for row, length in zip(self.tokens, self.lengths.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A drafter's proposal.

    - tokens: (batch, gamma).
    - probs: (batch, gamma, vocab), the distributions that the tokens were really drawn from, after every processor;
      None where no token was drawn at random.
    - counts: how many of each row's tokens are proposed. The rest is padding."""

    tokens: Tensor
    probs: Tensor | None
    counts: list[int]

    @classmethod
    def nothing(cls, batch: int) -> Proposal:
        """A proposal without a token for any row."""
        return cls(torch.empty(batch, 0, dtype=torch.int64, device="cpu"), None, [0] * batch)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a round. accepted: how many of each row's proposed tokens were accepted. lengths: (batch,), the
    numbers of committed tokens now."""

    accepted: list[int]
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Generating:
    """What a drafter knows about the generation that it is made for.

    - batch: the number of rows; capacity: the most tokens of a row; vocab_size: the target's.
    - sampling: how the target's tokens are sampled.
    - cache: the target's own KV cache. A drafter that runs the target's layers may write there beyond each row's
      length. It restores the lengths before it returns its proposal, and the target's forward writes the same places
      again.
    - is_lossy: whether the rule is lossy, so that the proposal can change the text's distribution."""

    batch: int
    capacity: int
    vocab_size: int
    sampling: Sampling
    cache: Cache
    is_lossy: bool = False


class Drafter(Protocol):
    """Proposes tokens. A drafter lives as long as one generation. For each row its proposal may be shorter than gamma,
    or empty."""

    def sources(self, context: Context) -> Sequence[int]:
        """The number of the source from which each row's next proposal comes, by the order of step_bytes. A window
        keeps a record for each source. It is called before propose(), with the same context."""
        return [0] * len(context.tokens)

    def propose(self, context: Context, gamma: int) -> Proposal: ...

    def observe(self, outcome: Outcome) -> None: ...


class DrafterFactory(Protocol):
    """Makes a drafter for each generation."""

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that the drafters run; empty where they run none."""

    @property
    def weight_bytes(self) -> int:
        """The bytes that the models' weights take in addition to the target's."""
        return sum(model.weight_bytes for model in self.models)

    @property
    def step_bytes(self) -> tuple[int, ...]:
        """The bytes of weights that each source reads to draft one token; 0 for a source that runs no model."""
        return (sum(model.weight_bytes for model in self.models),)

    def over(self, *models: Model) -> DrafterFactory:
        """The same factory with these models in place of `models`, in the same order."""

    def __call__(self, generating: Generating) -> Drafter: ...
