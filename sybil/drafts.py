"""Parses the names that --draft takes, and makes the drafters that they stand for. A draft is a copy of the target,
some of the target's layers, lookup in the text itself, a mixture of these, or another model.

This is the grammar. BITS is 4, 5, 6 or 8; N is a number of layers; SOURCE is a model's name, folder or file:

    draft   = model | lookup | hybrid:lookup,model | hybrid:lookup,cascade | cascade
    cascade = cascade:lookup,model | cascade:self:BITS,self:BITS
    model   = self | self:BITS | skip | skip:N | skip:N:BITS | SOURCE

A hybrid proposes lookup's tokens where lookup's matches have been right so far, and its second part's tokens elsewhere.
In a cascade the first part drafts for the second, and the second drafts for the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from sybil.allocation import as_out_of_memory
from sybil.arguments import described
from sybil.decoding import Decoder
from sybil.drafting import DrafterFactory, DraftHybrid, DraftLookup, DraftModel, DraftNarrowed, DraftSelf
from sybil.errors import InvalidSetting
from sybil.models import Model, copies, skipping
from sybil.models.folders import Checkpoint
from sybil.models.storage import Bits
from sybil.text import encode
from sybil.transfer import integers

LOOKUP = "lookup"
BEGINNINGS = ("The", "def", "In", "How", "1")
"""The target continues each of these beginnings. The resulting text is used to choose layers and to fit roundings."""
NEW_TOKENS = 16
"""How many tokens the target adds to each beginning."""


@dataclass(frozen=True, slots=True)
class Self:
    """A copy of the target, rounded to `bits` bits a weight; None where Sybil chooses them."""

    bits: Bits | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """The target without some of its layers. layers: how many are left out; None where Sybil chooses. bits: the bits a
    weight of a rounded copy whose layers run; None where the target's own layers run."""

    layers: int | None = None
    bits: Bits | None = None


@dataclass(frozen=True, slots=True)
class Lookup:
    """Proposes the tokens that followed earlier occurrences of the text's last tokens."""


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A draft model: a hub id, a folder or a GGUF file."""

    name: str


@dataclass(frozen=True, slots=True)
class Hybrid:
    """Lookup where its matches have been right so far; the other draft elsewhere."""

    other: Self | Skip | Cascade | NamedModel


@dataclass(frozen=True, slots=True)
class Cascade:
    """The draft `helper` drafts for `draft`, and `draft` drafts for the target."""

    helper: Self | Lookup
    draft: Self | Skip | NamedModel


Draft = Self | Skip | Lookup | Hybrid | Cascade | NamedModel


def parse(name: str) -> Draft:
    """The tree that a draft's name stands for. A name that begins with none of the grammar's words is a model's source.
    Raises InvalidSetting."""
    try:
        return _parsed(name)
    except _Senseless as error:
        raise InvalidSetting(f"draft is {described(name)}: {error}") from None


def is_model(name: str) -> bool:
    """Whether a draft's name is a model's source. Raises InvalidSetting."""
    return isinstance(parse(name), NamedModel)


def looks_up(draft: Draft) -> bool:
    """Whether lookup is a part of the draft."""
    return isinstance(draft, Lookup | Hybrid) or (isinstance(draft, Cascade) and looks_up(draft.helper))


def model_of(draft: Draft) -> NamedModel | None:
    """The second model that is a part of the draft; None where there is none."""
    if isinstance(draft, Hybrid):
        return model_of(draft.other)
    if isinstance(draft, Cascade):
        return model_of(draft.draft)
    return draft if isinstance(draft, NamedModel) else None


def has_model(draft: Draft) -> bool:
    """Whether a second model is a part of the draft."""
    return model_of(draft) is not None


class _Senseless(Exception):
    """The message says what is wrong with a part of a draft's name."""


def _parsed(name: str, depth: int = 0) -> Draft:
    """The tree of a name. depth: how many mixtures contain this name."""
    word, colon, rest = name.partition(":")
    if word in ("hybrid", "cascade") and depth > 1:
        raise _Senseless("mixtures are two deep at most: hybrid:lookup,cascade:lookup,self")
    if word == "self":
        return Self(_bits(rest) if colon else None)
    if word == "skip":
        count, more, bits = rest.partition(":")
        return Skip(_count(count) if colon else None, _bits(bits) if more else None)
    if word == LOOKUP:
        if colon:
            raise _Senseless("lookup takes nothing more: lookup alone")
        return Lookup()
    if word == "hybrid":
        first, second = _two(word, rest, depth + 1)
        if not isinstance(first, Lookup):
            raise _Senseless("the first part of a hybrid must be lookup: hybrid:lookup,self")
        if isinstance(second, Lookup | Hybrid):
            raise _Senseless(
                "the second part of a hybrid drafts where lookup finds nothing: use self, skip, a cascade or a model"
            )
        return Hybrid(second)
    if word == "cascade":
        first, second = _two(word, rest, depth + 1)
        if not isinstance(first, Lookup | Self):
            raise _Senseless("the first part of a cascade must be lookup, or self with its bits: cascade:lookup,self")
        if not isinstance(second, Self | Skip | NamedModel):
            raise _Senseless("the second part of a cascade must be self, skip or a model: cascade:lookup,self")
        if isinstance(first, Self) and not (
            isinstance(second, Self) and first.bits and second.bits and first.bits < second.bits
        ):
            raise _Senseless("self with its bits drafts only for self with more bits: cascade:self:4,self:8")
        return Cascade(first, second)
    return NamedModel(name)


def _bits(text: str) -> Bits:
    for bits in copies.BITS:
        if text == str(bits):
            return bits
    raise _Senseless(f"a copy has {', '.join(map(str, copies.BITS[:-1]))} or {copies.BITS[-1]} bits")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0 and len(text) < 9):
        raise _Senseless("skip takes how many layers are left out, 1 or more: skip:4, or skip alone")
    return int(text)


def _two(word: str, text: str, depth: int) -> tuple[Draft, Draft]:
    first, comma, second = text.partition(",")
    if not (first and comma and second):
        raise _Senseless(f"a {word} is made of two: {word}:lookup,self")
    return _parsed(first, depth), _parsed(second, depth)


@dataclass(frozen=True)
class DraftMaker:
    """Makes drafter factories for one target. checkpoint: what the target's model was built from. model: the target's.
    source: makes the factory of a draft model from its name. lookup: the factory that the name "lookup" stands for."""

    checkpoint: Checkpoint
    model: Model
    source: Callable[[Any], DrafterFactory]
    lookup: DraftLookup = field(default_factory=DraftLookup)
    _made: dict[Draft, DrafterFactory] = field(default_factory=dict)

    def make(self, draft: Draft) -> DrafterFactory:
        """The factory for a draft's tree. A part that several trees share, such as a copy, is made once. Raises the
        errors of sybil.errors."""
        if draft not in self._made:
            with as_out_of_memory("the draft takes more memory than there is", "take a smaller draft, or lookup"):
                self._made[draft] = self._make(draft)
        return self._made[draft]

    def _make(self, draft: Draft) -> DrafterFactory:
        if isinstance(draft, Lookup):
            return self.lookup
        if isinstance(draft, Hybrid):
            return DraftHybrid(self.lookup, self.make(draft.other))
        if isinstance(draft, Cascade):
            return _helped(self.make(draft.draft), self.make(draft.helper))
        if isinstance(draft, NamedModel):
            return self.source(draft.name)
        if isinstance(draft, Skip):
            return self._skipping(draft)
        if draft.bits is None:
            return self.make(Self(copies.best_bits(self.checkpoint)))
        return DraftSelf(self._rounded("self", draft.bits))

    def _rounded(self, name: str, bits: Bits) -> copies.Ours:
        model = copies.ours(self.model, self.checkpoint, name)
        return copies.rounded(self.checkpoint, model, bits, lambda: self.text)

    def _skipping(self, draft: Skip) -> DraftSelf:
        model = copies.ours(self.model, self.checkpoint, "skip")
        if (draft.layers or 1) >= model.shape.layers:
            raise InvalidSetting(
                f"draft is skip:{draft.layers or 1} and {self.checkpoint.name} has {model.shape.layers} layers: "
                "leave out fewer"
            )
        kept = skipping.kept(model, self.text, draft.layers)
        whole = model if draft.bits is None else self._rounded("skip", draft.bits)
        return DraftSelf(whole.with_layers(kept), shares=draft.bits is None)

    @cached_property
    def text(self) -> Tensor:
        """The target's greedy continuation of each of BEGINNINGS, (rows, tokens). It is made when a draft first needs
        it, and kept."""
        tokenizer, size = self.checkpoint.tokenizer, self.model.vocab_size
        spread = [index * size // len(BEGINNINGS) for index in range(len(BEGINNINGS))]
        begun = [] if tokenizer is None else [encode(tokenizer, text) for text in BEGINNINGS]
        firsts = [ids[0] for ids in begun] if begun and all(begun) else spread  # a small vocabulary may give none
        count = min(NEW_TOKENS, self.model.context - 1)
        said = Decoder(self.model).generate([[first] for first in firsts], max_new_tokens=count, eos_token_id=[])
        return torch.stack(
            [torch.cat([integers([first]), row]) for first, row in zip(firsts, said.tokens, strict=True)]
        )


def _helped(draft: DrafterFactory, helper: DrafterFactory) -> DrafterFactory:
    """The draft's factory, with the helper drafting for the draft. Raises InvalidSetting where the draft has a
    different tokenizer than the target."""
    if type(draft) not in (DraftModel, DraftNarrowed, DraftSelf):
        raise InvalidSetting(
            "draft is a cascade and its second part has another tokenizer than the target: name it alone"
        )
    return replace(cast(DraftModel, draft), helper=helper)
