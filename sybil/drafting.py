"""What proposes tokens: the Drafter protocol and its implementations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.models import Model, feed
from sybil.sampling import Noise, Sampling, argmax, draw, probabilities, process
from sybil.transfer import upload


@dataclass(slots=True)
class Context:
    """The committed tokens that a proposal follows.

    tokens: (batch, capacity) int64, a row's first lengths[row] of them committed; lengths: (batch,)."""

    tokens: Tensor
    lengths: Tensor
    noise: Noise

    def uniforms(self, count: int, use: int) -> Tensor:
        """(batch, count) uniforms for the round that begins at these lengths."""
        return self.noise.uniforms(torch.arange(len(self.lengths)), self.lengths, count, use)

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
        return cls(torch.empty(batch, 0, dtype=torch.int64), None, [0] * batch)


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
    """Makes a generation's drafter. weight_bytes: what its weights take, all generations together."""

    @property
    def weight_bytes(self) -> int: ...

    def __call__(self, batch: int, capacity: int, vocab_size: int, sampling: Sampling) -> Drafter:
        """capacity: tokens a row; vocab_size: the target's."""


@dataclass(frozen=True, slots=True)
class DraftModel:
    """Makes a ModelDrafter for each generation."""

    model: Model

    @property
    def weight_bytes(self) -> int:
        return self.model.weight_bytes

    def __call__(self, batch: int, capacity: int, vocab_size: int, sampling: Sampling) -> Drafter:
        return ModelDrafter(self.model, batch, capacity, vocab_size, sampling)


class ModelDrafter:
    """A smaller model that draws from its own distribution, under the target's sampling settings."""

    def __init__(self, model: Model, batch: int, capacity: int, vocab_size: int, sampling: Sampling) -> None:
        self.model, self.vocab_size, self.sampling = model, vocab_size, sampling
        self.cache = model.new_cache(batch, capacity)

    def propose(self, context: Context, gamma: int) -> Proposal:
        counts = [min(max(self.model.context - length, 0), gamma) for length in context.lengths.tolist()]
        gamma = max(counts)
        if not gamma:
            return Proposal.nothing(len(counts))
        known = context.tokens
        if self.model.vocab_size < self.vocab_size:  # the target's padding may hold a token more
            known = known.clamp(max=self.model.vocab_size - 1)
        logits = feed(self.model, self.cache, known, context.lengths)  # (batch, vocab)
        uniforms = None if self.sampling.greedy else upload(context.uniforms(gamma, Noise.PROPOSE), logits.device)
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        for index in range(gamma):
            if index:
                logits = self.model.forward(tokens[-1], self.cache)[:, 0]
            logits = self._processed(logits, context, tokens)
            if uniforms is None:
                tokens.append(argmax(logits)[:, None])
            else:
                probs.append(probabilities(logits, self.sampling))
                # where there is nothing to draw from, any token will do: the rule can't keep it
                tokens.append(draw(probs[-1], uniforms[:, index])[:, None].clamp(min=0))
        return Proposal(torch.cat(tokens, 1), torch.stack(probs, 1) if probs else None, counts)

    def observe(self, outcome: Outcome) -> None:
        """Keep what is committed and really in the cache: its last proposed token never went in."""
        self.cache.lengths = torch.minimum(self.cache.lengths, outcome.lengths - 1)

    def _processed(self, logits: Tensor, context: Context, tokens: list[Tensor]) -> Tensor:
        """The logits over the target's vocabulary (a padded one may be longer or shorter), processors applied."""
        surplus = self.vocab_size - logits.shape[-1]
        if surplus:
            logits = F.pad(logits, (0, surplus), value=float("-inf"))  # negative: cuts the padding off
        if not self.sampling.processors:
            return logits
        proposed = torch.cat(tokens, 1).cpu() if tokens else context.tokens[:, :0]
        prefixes = [torch.cat(pair) for pair in zip(context.prefixes(), proposed, strict=True)]
        everywhere = torch.ones(len(prefixes), 1, dtype=torch.bool)
        processed = process(logits[:, None], prefixes, everywhere, self.sampling.processors)[:, 0]
        # a processor may allow nothing after an end token: what is proposed there is never asked about
        allowed = processed.amax(-1, keepdim=True) > float("-inf")
        return torch.where(allowed, processed, logits.to(processed.dtype))
