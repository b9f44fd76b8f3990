"""Drafting by a smaller model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.drafting.auto import AutoWindow
from sybil.drafting.cascade import Drawn, NestedRounds
from sybil.drafting.contract import Context, Drafter, DrafterFactory, Generating, Outcome, Proposal
from sybil.drafting.costs import SizedCosts
from sybil.drafting.window import confidence
from sybil.models import Cache, Model, feed
from sybil.noise import Noise
from sybil.sampling import argmax, draw, probabilities, process, race
from sybil.transfer import drawn_at, stacked, upload

ASKED, ASKED_FOR_NOTHING = 4, 16
"""The most tokens that a helper is asked for at once: one that runs a model, and one whose tokens cost nothing."""
READ = 0.15
"""What each further token adds to a copy's forward over one token, as a share of it. The share is larger than the
target's, because with fewer bits the arithmetic costs more of the time."""
Draws = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True, slots=True)
class DraftModel(DrafterFactory):
    """Makes a ModelDrafter for each generation. model: the draft model. helper: makes the drafter that drafts for the
    draft model (a cascade); None for no cascade."""

    model: Model
    helper: DrafterFactory | None = field(default=None, kw_only=True)

    @property
    def models(self) -> tuple[Model, ...]:
        return (self.model, *(() if self.helper is None else self.helper.models))

    @property
    def weight_bytes(self) -> int:
        return self.model.weight_bytes + (0 if self.helper is None else self.helper.weight_bytes)

    @property
    def step_bytes(self) -> tuple[int, ...]:
        return (self.model.weight_bytes,)

    def over(self, *models: Model) -> Self:
        model, *rest = models
        return replace(self, model=model, helper=None if self.helper is None else self.helper.over(*rest))

    def __call__(self, generating: Generating) -> Drafter:
        return ModelDrafter(self.model, generating, self.helper)


class ModelDrafter(Drafter):
    """Proposes tokens by a smaller model, which draws from its own distribution under the target's sampling
    settings."""

    def __init__(self, model: Model, generating: Generating, helper: DrafterFactory | None = None) -> None:
        self.model, self.vocab_size, self.sampling = model, generating.vocab_size, generating.sampling
        self.cache = self.cache_for(generating)
        self.helper = None if helper is None else helper(replace(generating, cache=self.cache))
        if helper is not None:
            most = ASKED if any(helper.step_bytes) else ASKED_FOR_NOTHING
            costs = SizedCosts(most, self.model.weight_bytes, [max(helper.step_bytes)], READ)
            self.window = AutoWindow(generating.batch, costs, 0, together=True)

    def cache_for(self, generating: Generating) -> Cache:
        """The model's KV cache for a generation: a new one of its own."""
        cache: Cache = self.model.new_cache(generating.batch, generating.capacity)
        return cache

    def propose(self, context: Context, gamma: int) -> Proposal:
        limits = context.limits or [gamma] * len(context.tokens)
        counts = [
            min(max(self.model.context - length, 0), limit)
            for length, limit in zip(context.lengths.tolist(), limits, strict=True)
        ]
        gamma = max(counts)
        if not gamma:
            return Proposal.nothing(len(counts))
        if self.helper is not None:
            return self._helped(self.helper, context, counts)
        known = context.tokens
        if self.model.vocab_size < self.vocab_size:  # the target's padding may have more tokens
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
                # where there is no distribution to draw from, any token will do, because the rule can't keep it
                tokens.append(draws(probs[-1], index)[:, None].clamp(min=0))
            if context.least_confidence and index + 1 < gamma:
                sure = confidence(logits, tokens[-1][:, 0]) >= context.least_confidence
                counts = [n if go else min(n, index + 1) for n, go in zip(counts, sure.tolist(), strict=True)]
                if max(counts) == index + 1:
                    break
        return Proposal(torch.cat(tokens, 1), stacked(probs) if probs else None, counts)

    def _draws(self, context: Context, gamma: int, device: torch.device) -> Draws | None:
        """The function that draws tokens (batch,) from probs (batch, vocab) and the index in the round, an int or
        (batch,). None in greedy decoding, where nothing is drawn."""
        if self.sampling.greedy:
            return None
        rows = torch.arange(len(context.tokens), dtype=torch.int64, device=device)
        if context.exponentials is not None:
            shared = context.exponentials
            return lambda probs, index: race(probs, shared[rows, index])
        uniforms = upload(context.uniforms(gamma, Noise.PROPOSE), device)
        return lambda probs, index: draw(probs, uniforms[rows, index])

    def _helped(self, helper: Drafter, context: Context, counts: list[int]) -> Proposal:
        """The same as propose(), with a helper that drafts for the model. counts: the most tokens of each row."""
        gamma = max(counts)
        draws = self._draws(context, gamma, drawn_at(self.model.device))

        def draw_at(logits: Tensor, text: Context, places: Tensor) -> Drawn:
            logits = self._processed(logits, text, [])
            probs = None if draws is None else probabilities(logits, self.sampling)
            if draws is None or probs is None:
                tokens = argmax(logits)
            else:
                tokens = draws(probs, upload(places.clamp(max=gamma - 1), probs.device)).clamp(min=0)
            if not context.least_confidence:
                return tokens, probs, [True] * len(tokens)
            return tokens, probs, (confidence(logits, tokens) >= context.least_confidence).tolist()

        return NestedRounds(self.model, self.cache, helper, self.window, draw_at).propose(context, counts)

    def observe(self, outcome: Outcome) -> None:
        self.roll_back(outcome.lengths)
        if self.helper is not None:
            self.helper.observe(outcome)

    def roll_back(self, lengths: Tensor) -> None:
        """Set the cache's lengths to the committed tokens that it holds. The last proposed token was never written to
        it."""
        self.cache.lengths = torch.minimum(self.cache.lengths, lengths - 1)

    def _processed(self, logits: Tensor, context: Context, tokens: list[Tensor]) -> Tensor:
        """The logits over the target's vocabulary, after the processors. The draft's own vocabulary may have more or
        less padding."""
        surplus = self.vocab_size - logits.shape[-1]
        if surplus:
            logits = F.pad(logits, (0, surplus), value=float("-inf"))  # negative: cuts the padding off
        if not self.sampling.processors:
            return logits
        proposed = torch.cat(tokens, 1).cpu() if tokens else context.tokens[:, :0]
        prefixes = [torch.cat(pair) for pair in zip(context.prefixes(), proposed, strict=True)]
        everywhere = torch.ones(len(prefixes), 1, dtype=torch.bool, device="cpu")
        processed = process(logits[:, None], prefixes, everywhere, self.sampling.processors)[:, 0]
        # a processor may allow no token after an end token; no proposal there is ever judged
        allowed = processed.amax(-1, keepdim=True) > float("-inf")
        return torch.where(allowed, processed, logits.to(processed.dtype))
