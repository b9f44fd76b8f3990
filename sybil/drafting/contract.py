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
    """The committed tokens that a proposal follows.

    tokens: (batch, capacity) int64, a row's first lengths[row] of them committed; lengths: (batch,).
    exponentials: where the rule is coupled, the noise of the next gamma + 1 positions, (batch, gamma + 1, vocab), with
    which the target is going to draw. least_confidence: a token that the draft gives less ends its row's proposal.
    limits: how many tokens each row may be offered, gamma where it is None. drafted: how many of each row's last tokens
    are a draft's that may yet be dropped, none where it is None: what keeps the tokens that it reads keeps none of
    these."""

    tokens: Tensor
    lengths: Tensor
    noise: Noise
    exponentials: Tensor | Exponentials | None = None
    least_confidence: float = 0.0
    limits: list[int] | None = None
    drafted: list[int] | None = None

    def uniforms(self, count: int, use: int) -> Tensor:
        """(batch, count) uniforms for the round that begins at these lengths."""
        return self.noise.uniforms(count_to(len(self.lengths)), self.lengths, count, use)

    def race_noise(self, count: int, vocab: int) -> Exponentials:
        """(batch, count, vocab) exponentials of the next count positions."""
        positions = self.lengths[:, None] + count_to(count)
        rows = count_to(len(self.lengths))[:, None].expand_as(positions)
        return Exponentials(self.noise, rows, positions, vocab)

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


@dataclass(frozen=True, slots=True)
class Generating:
    """What a drafter knows of the generation that it is made for.

    capacity: tokens a row; vocab_size: the target's. cache: the target's own. A drafter that runs the target's layers
    may write there beyond each row's length. It puts the lengths back before it hands its proposal over, and the
    target's forward writes the same places again. is_lossy: whether what is proposed can change the text under the
    rule."""

    batch: int
    capacity: int
    vocab_size: int
    sampling: Sampling
    cache: Cache
    is_lossy: bool = False


class Drafter(Protocol):
    """Lives as long as one generation. A proposal may be shorter than gamma, or empty, for each row."""

    def sources(self, context: Context) -> Sequence[int]:
        """The source that each row's next proposal comes from, numbered as in step_bytes. A window keeps a record for
        each source. Called before propose(), with the same context."""
        return [0] * len(context.tokens)

    def propose(self, context: Context, gamma: int) -> Proposal: ...

    def observe(self, outcome: Outcome) -> None: ...


class DrafterFactory(Protocol):
    """Makes a generation's drafter."""

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that its drafters run; empty where they need none."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of its models' weights beside the target's."""
        return sum(model.weight_bytes for model in self.models)

    @property
    def step_bytes(self) -> tuple[int, ...]:
        """The bytes of weights that each source reads to draft one token: 0 for one that runs no model."""
        return (sum(model.weight_bytes for model in self.models),)

    def over(self, *models: Model) -> DrafterFactory:
        """The same with other models in place of its own, in their order."""

    def __call__(self, generating: Generating) -> Drafter: ...
