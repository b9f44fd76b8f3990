"""Whether a target fits in memory, which drafts could serve it, and what speed they promise: all before loading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from sybil import allocation, fit
from sybil.checking.alternatives import Alternative, alternatives
from sybil.checking.memory import Extent, MemoryNeed, Placed, Setup, memory, step_bytes, target_bytes
from sybil.checking.promise import Promise, promise, verified_in
from sybil.checking.sight import seen
from sybil.devices import choose_device, dtype_named
from sybil.drafts import Draft, Lookup, NamedModel, Self, has_model, model_of, parse
from sybil.errors import InvalidSetting
from sybil.loading import check_draft_dtype
from sybil.models import copies
from sybil.pairs import PAIRS
from sybil.storages import draft_kept, target_kept

CONTEXT = 2048
"""Tokens of a row where the caller gives no context. A model that takes fewer has its own limit."""
MOST_ROWS = 1 << 16
Tokens = Literal["same", "padded", "intersection", "strings"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that could draft. memory: what it and the target need together. promise: None where it is unknown."""

    name: str
    memory: MemoryNeed
    promise: Promise | None


@dataclass(frozen=True, slots=True)
class PairFacts:
    """What is known of a target and its draft before anything is loaded.

    target: its name. draft: its name, None for no draft. here: whether all weights are on this machine. free: free
    bytes on the device, None where they are unknown. alternatives: setups that fit; empty where this one fits or free
    is unknown. tokens: how the draft's vocabulary relates to the target's, None without a draft model. share: the share
    of an English text's tokens that the draft has too, None unless tokens is "intersection" or "strings". context: the
    most tokens that the target takes, None where its config doesn't say."""

    setup: Setup
    target: str
    draft: str | None
    here: bool
    memory: MemoryNeed
    free: int | None
    alternatives: tuple[Alternative, ...]
    tokens: Tokens | None
    share: float | None
    candidates: tuple[Candidate, ...]
    context: int | None

    @property
    def fits(self) -> bool | None:
        """Whether the memory's peak is at most `free`; None where `free` is unknown."""
        return None if self.free is None else self.memory.peak <= self.free


def check(
    target: str,
    draft: str | None = None,
    *,
    dtype: str | None = None,
    draft_dtype: str | None = None,
    device: str | None = None,
    batch: int = 1,
    context: int | None = None,
    revision: str | None = None,
) -> PairFacts:
    """What is known of a target and a draft, without loading their weights.

    target, draft, dtype, draft_dtype, device and revision mean what they mean in sybil.load. batch: the rows that are
    to be decoded. context: the tokens of each row, prompt included. Raises the errors of sybil.errors."""
    target, draft = _named(target, draft)
    tree = None if draft is None else parse(draft)
    asked_dtype, asked_draft = dtype_named(dtype), dtype_named(draft_dtype, draft=True)
    check_draft_dtype(draft, asked_draft)
    place = choose_device(device)
    source = None if tree is None else model_of(tree)
    main, is_here = seen(target, tokenizer=source is not None, revision=revision)
    kept, compute = target_kept(main, asked_dtype, place)
    part, helper = Placed(main, kept, compute, place), None
    if source is not None:
        other, other_is_here = seen(source.name, tokenizer=True)
        is_here = is_here and other_is_here
        helper = Placed(other, *draft_kept(other, asked_draft, compute, place), place)
    _check_copies(part, draft, tree)
    most = _context(part)
    extent = _extent(batch, context, most)
    tokens, share = (None, None) if helper is None else _relation(part, helper)
    free = allocation.free(place)
    setup = Setup(part, tree, helper, extent)
    found = memory(setup)
    return PairFacts(
        setup=setup,
        target=target,
        draft=draft,
        here=is_here,
        memory=found,
        free=free,
        alternatives=() if free is None or found.peak <= free else alternatives(setup, free),
        tokens=tokens,
        share=share,
        candidates=tuple(_candidates(setup, draft)),
        context=most,
    )


def _named(target: str, draft: str | None) -> tuple[str, str | None]:
    """The target and the draft that the names stand for: a pair's name stands for both of its models, and the target of
    a registered pair brings that pair's draft where none is given. Raises InvalidSetting for an empty name."""
    for name, value in (("target", target), ("draft", draft)):
        if value == "":
            raise InvalidSetting(f"{name} is '': give a pair's name, a hub id, a folder or a GGUF file")
    pair = PAIRS.get(target)
    if pair is not None:
        return pair.source, pair.draft if draft is None else draft
    of_target = next((each.draft for each in PAIRS.values() if each.target == target and each.draft), None)
    return target, of_target if draft is None else draft


def _check_copies(target: Placed, draft: str | None, tree: Draft | None) -> None:
    """Raises InvalidSetting where the draft is a copy of the target and transformers' own forward runs the target."""
    if tree is not None and target.checkpoint.known is None and not isinstance(tree, Lookup) and not has_model(tree):
        raise InvalidSetting(
            f"draft is {draft}, and {target.checkpoint.name} runs by transformers' own forward "
            f"({target.checkpoint.unknown}), which Sybil can't copy: give a draft model, or lookup"
        )


def _context(target: Placed) -> int | None:
    """The most tokens that a target takes; None where its config doesn't say."""
    shape = target.shape
    if shape is not None:
        return shape.context
    said = target.checkpoint.config.get("max_position_embeddings")
    return said if type(said) is int and said > 0 else None


def _extent(batch: int, context: int | None, most: int | None) -> Extent:
    """What is to be decoded. Raises InvalidSetting for a batch or a context that is out of range."""
    if not 1 <= batch <= MOST_ROWS:
        raise InvalidSetting(f"batch is {batch}: use an integer from 1 to {MOST_ROWS}")
    if context is not None and not 2 <= context <= (most or 1 << 24):
        raise InvalidSetting(f"context is {context}: use an integer from 2 to {most or 1 << 24}, what the target takes")
    return Extent(batch, context or min(CONTEXT, most or CONTEXT), torch.get_num_threads())


def _relation(target: Placed, helper: Placed) -> tuple[Tokens, float | None]:
    """PairFacts.tokens and PairFacts.share. Raises VocabularyMismatch where the two models share no tokens."""
    found = fit.relation(target.checkpoint, helper.checkpoint)
    if found.way is not None:
        return found.way, found.share
    sizes = [part.shape.vocab_size for part in (target, helper) if part.shape is not None]
    return ("padded" if len({*sizes}) > 1 else "same"), None


def _candidates(setup: Setup, name: str | None) -> Iterator[Candidate]:
    """The draft that was asked for, copies of the target in fewer bits, and lookup."""
    trees: dict[str, Draft] = {} if setup.draft is None or name is None else {name: setup.draft}
    target, on_cpu = setup.target, setup.target.device.type == "cpu"
    if target.checkpoint.known is not None:
        best = copies.best_bits(target.checkpoint)
        trees |= {f"self:{bits}": Self(bits) for bits in dict.fromkeys((best, 8 if on_cpu else 4))}
    trees |= {"lookup": Lookup()}
    places = setup.extent.context // 2  # the mean length of a row while it grows to the whole context
    for each, draft in trees.items():
        own, promised = replace(setup, draft=draft), None
        if isinstance(draft, NamedModel | Self | Lookup):
            read, drafted = target_bytes(own, places), step_bytes(own, places)
            promised = promise(read, drafted, verified_in(target.kept, on_cpu=on_cpu))
        yield Candidate(each, memory(own), promised)
