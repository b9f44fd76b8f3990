"""What proposes tokens: the Drafter protocol and its implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.models import Model, feed
from sybil.sampling import Noise, Sampling, argmax, draw, probabilities, process, race
from sybil.transfer import upload
from sybil.window import confidence


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
        return self.noise.uniforms(torch.arange(len(self.lengths)), self.lengths, count, use)

    def race_noise(self, count: int, vocab: int) -> Tensor:
        """(batch, count, vocab) exponentials of the next count positions."""
        positions = self.lengths[:, None] + torch.arange(count)
        return self.noise.exponentials(torch.arange(len(self.lengths)), positions, vocab)

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
        draws = self._draws(context, gamma, logits.device)
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        for index in range(gamma):
            if index:
                logits = self.model.forward(tokens[-1], self.cache)[:, 0]
            logits = self._processed(logits, context, tokens)
            if draws is None:
                tokens.append(argmax(logits)[:, None])
            else:
                probs.append(probabilities(logits, self.sampling))
                # where there is nothing to draw from, any token will do: the rule can't keep it
                tokens.append(draws(probs[-1], index)[:, None].clamp(min=0))
            if context.least_confidence and index + 1 < gamma:
                sure = confidence(logits, tokens[-1][:, 0]) >= context.least_confidence
                counts = [n if go else min(n, index + 1) for n, go in zip(counts, sure.tolist(), strict=True)]
                if max(counts) == index + 1:
                    break
        return Proposal(torch.cat(tokens, 1), torch.stack(probs, 1) if probs else None, counts)

    def _draws(self, context: Context, gamma: int, device: torch.device) -> Callable[[Tensor, int], Tensor] | None:
        """What draws tokens (batch,) from (probs (batch, vocab), index in the round); None where nothing is drawn."""
        if self.sampling.greedy:
            return None
        if context.exponentials is not None:
            shared = context.exponentials
            return lambda probs, index: race(probs, shared[:, index])
        uniforms = upload(context.uniforms(gamma, Noise.PROPOSE), device)
        return lambda probs, index: draw(probs, uniforms[:, index])

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


@dataclass(frozen=True, slots=True)
class DraftLookup:
    """Makes a LookupDrafter for each generation."""

    weight_bytes: int = 0

    def __call__(self, batch: int, capacity: int, vocab_size: int, sampling: Sampling) -> Drafter:
        return LookupDrafter()


class LookupDrafter:
    """Prompt lookup (Saxena 2023): proposes what followed the last few tokens where they stood before.

    The longest ending that is found wins, and of its places the latest among those with most tokens behind them."""

    LONGEST = 3

    def propose(self, context: Context, gamma: int) -> Proposal:
        limits = context.limits or [gamma] * len(context.tokens)  # a row's own: its neighbours' room is none of its
        rows = zip(context.prefixes(), limits, strict=True)
        found = [_continuation(prefix.tolist(), self.LONGEST, limit) for prefix, limit in rows]
        counts = [len(tokens) for tokens in found]
        tokens = torch.zeros(len(found), max(counts), dtype=torch.int64)
        for row, continuation in enumerate(found):
            tokens[row, : len(continuation)] = torch.tensor(continuation, dtype=torch.int64)
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
