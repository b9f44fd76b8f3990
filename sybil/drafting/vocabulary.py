"""Drafts whose tokens aren't the target's, by two ways of Timor et al. 2025 (arXiv 2502.05202).

In token-level intersection the draft draws among the tokens that both vocabularies have. In string-level exact match
the draft writes a text in its own tokens, and the text is proposed in the target's tokens. In both ways the draft reads
the committed text in its own tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from sybil.drafting.contract import Context, Drafter, DrafterFactory, Generating, Outcome, Proposal
from sybil.drafting.model import DraftModel, ModelDrafter
from sybil.drafting.reader import ReaderCache, RetokenizingReader
from sybil.drafting.surfaces import Vocabulary, same_ends, shared
from sybil.models import Model
from sybil.sampling import GREEDY
from sybil.transfer import drawn_at, integers, padded, upload


@dataclass(frozen=True, slots=True)
class DraftIntersection(DraftModel):
    """Token-level intersection (Algorithm 4): a ModelDrafter over the tokens of both vocabularies.

    model: an Intersection, which gives a draft logits over the target's vocabulary. So every setting, processor and
    rule applies as to any other draft, and the proposal's probs are those that the tokens were drawn from."""

    way: ClassVar[str] = "intersection"


class Intersection(RetokenizingReader):
    """A draft's logits over the target's vocabulary: -inf for tokens that only one vocabulary has. Their softmax is
    q'(x) = q(x) [x in I] / sum over I of q, where I is the intersection."""

    def __init__(self, model: Model, target: Vocabulary, draft: Vocabulary, like: Model) -> None:
        """model: the draft. target, draft: the vocabularies. like: the target's model."""
        super().__init__(model, target, draft, like.context)
        pairs = zip(*shared(target, draft), strict=True)
        kept = [(theirs, own) for theirs, own in pairs if theirs < like.vocab_size and own < model.vocab_size]
        self.vocab_size = like.vocab_size
        self._theirs, self._own = upload(integers(kept).T, drawn_at(model.device))

    def forward(self, tokens: Tensor, cache: ReaderCache) -> Tensor:
        """See RetokenizingReader; (batch, n, the target's vocabulary)."""
        logits = super().forward(tokens, cache)
        over = logits.new_full((*logits.shape[:2], self.vocab_size), float("-inf"))
        return over.index_copy_(-1, self._theirs, logits.index_select(-1, self._own))


@dataclass(frozen=True, slots=True)
class DraftStrings(DrafterFactory):
    """String-level exact match (Algorithm 2): makes a StringDrafter for each generation."""

    model: RetokenizingReader
    way: ClassVar[str] = "strings"

    @property
    def models(self) -> tuple[Model, ...]:
        return (self.model,)

    def over(self, *models: Model) -> Self:
        (model,) = models
        return replace(self, model=cast(RetokenizingReader, model))

    def __call__(self, generating: Generating) -> Drafter:
        return StringDrafter(self.model, generating)


class StringDrafter(Drafter):
    """Proposes the text that a draft writes in its own tokens, encoded in the target's tokens.

    The draft decodes greedily, even where the target samples. So the proposal is a deterministic function of the
    committed tokens."""

    def __init__(self, reader: RetokenizingReader, generating: Generating) -> None:
        self._reader, self._cache = reader, reader.new_cache(generating.batch, generating.capacity)
        self._size = generating.vocab_size
        self._ends = {own: theirs for theirs, own in same_ends(reader.target, reader.draft).items()}
        own = replace(generating, capacity=1, vocab_size=reader.model.vocab_size, sampling=GREEDY)
        self._writer = ModelDrafter(reader.model, own)  # it drafts in the reader's cache

    def propose(self, context: Context, gamma: int) -> Proposal:
        """The draft writes as many of its own tokens as the row's limit says. The text in the target's tokens is cut to
        the limit."""
        cache, limits = self._cache, context.limits or [gamma] * len(context.tokens)
        held = cache.lengths.tolist()
        cache.write([row[start:].tolist() for row, start in zip(context.prefixes(), held, strict=True)])
        cache.lengths = context.lengths
        cache.make_room(int(cache.ends.max()) + gamma)
        cache.own.lengths = torch.minimum(cache.own.lengths, cache.ends - 1)
        self._writer.cache = cache.own
        least = context.least_confidence
        told = Context(cache.ids, cache.ends, context.noise, least_confidence=least, limits=limits)
        written = self._writer.propose(told, gamma)
        own = written.tokens.tolist()
        cache.expect([row[:-1] for row in own])
        found = [
            self._spelled(row[:count])[:limit] for row, count, limit in zip(own, written.counts, limits, strict=True)
        ]
        return Proposal(padded(found), None, [len(tokens) for tokens in found])

    def observe(self, outcome: Outcome) -> None: ...

    def _spelled(self, own: Sequence[int]) -> list[int]:
        """The target's tokens for a text of the draft's own tokens, up to the first special token. The draft's end
        token becomes the target's. An incomplete character at the end is left out."""
        target, draft = self._reader.target, self._reader.draft
        length = next((place for place, token in enumerate(own) if token in draft.special), len(own))
        text = b"".join(draft.surfaces[token] for token in own[:length] if token < len(draft.surfaces))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(text)
        half, _ = decoder.getstate()
        ids, _ = target.spelled(text[: len(text) - len(half)])
        ids += [self._ends[token] for token in own[length : length + 1] if token in self._ends]
        return [*takewhile(lambda token: token < self._size, ids)]
