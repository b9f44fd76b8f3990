"""What a target and its draft take in memory together, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from sybil import budget
from sybil.drafting.auto import MOST
from sybil.drafts import BEGINNINGS, NEW_TOKENS, Cascade, Draft, Hybrid, Self, Skip, Source
from sybil.models import copies, planning
from sybil.models.folders import Checkpoint
from sybil.models.shape import Shape
from sybil.models.storage import Bits, Kept

LIBRARIES = 20 << 20
"""Code and tables that are read at the first use, by the process and its libraries."""
TOKEN = 400
"""What a token of a vocabulary takes in a tokenizer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How much is decoded: rows, and the tokens of each, prompt included; threads that compute."""

    batch: int
    context: int
    threads: int


@dataclass(frozen=True, slots=True)
class Part:
    """A model and how its weights are kept. dtype: of transformers' forward, or of the operators' cache."""

    checkpoint: Checkpoint
    kept: Kept
    dtype: torch.dtype
    device: torch.device

    @property
    def weights(self) -> budget.Weights:
        """Raises WeightsMismatch."""
        return planning.weights(self.checkpoint, self.kept, self.dtype, self.device)

    @property
    def shape(self) -> Shape | None:
        """None where transformers' forward runs it."""
        return planning.shape_of(self.checkpoint)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be loaded and decoded. draft: what drafts, None for nothing; helper: the model that it names."""

    target: Part
    draft: Draft | None
    helper: Part | None
    asked: Asked


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. parts: what decoding takes, by what for; loading: the most while the models are loaded, tokenizers and
    libraries included."""

    parts: Mapping[str, int]
    loading: int

    @property
    def decoding(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.loading, self.decoding)


def memory(plan: Plan) -> Memory:
    """What all of it takes. Raises WeightsMismatch."""
    target, asked = plan.target, plan.asked
    width = 1 if plan.draft is None else MOST + 1
    models, cached = [target.weights], [target]
    for each in _models(plan.draft):
        if isinstance(each, Source):
            assert plan.helper is not None
            models.append(plan.helper.weights)
            cached.append(plan.helper)
        elif isinstance(each, Self) or each.bits is not None:
            models.append(_copy(target, each.bits))
    loading = done = 0
    for weights in models:
        loading, done = max(loading, done + weights.loading), done + weights.total
    tokens = sum({part.checkpoint.name: _vocabulary(part.checkpoint) for part in cached}.values())
    beside = LIBRARIES + TOKEN * tokens if target.device.type == "cpu" else 0
    places = asked.context + width
    parts = {
        "target's weights": models[0].total,
        "draft's weights": sum(weights.total for weights in models[1:]),
        "keys and values": sum(_cache(part, asked.batch, places) for part in cached),
        "working memory": sum(_working(part, asked, places, width) for part in cached),
        "tokenizers, libraries": beside,
    }
    return Memory({name: size for name, size in parts.items() if size}, loading + beside)


def step_bytes(plan: Plan, places: int) -> int:
    """What the draft, a model or the target's copy, reads for a token: weights, keys and values of so many places."""
    if isinstance(plan.draft, Source):
        assert plan.helper is not None
        return plan.helper.weights.step + _cache(plan.helper, 1, places)
    if isinstance(plan.draft, Self):
        return _copy(plan.target, plan.draft.bits).step + _cache(plan.target, 1, places)
    return 0


def target_bytes(plan: Plan, places: int) -> int:
    """What the target reads for a token."""
    return plan.target.weights.step + _cache(plan.target, 1, places)


def _models(draft: Draft | None) -> list[Self | Skip | Source]:
    """What of a draft has weights."""
    if isinstance(draft, Hybrid):
        return _models(draft.other)
    if isinstance(draft, Cascade):
        return [*_models(draft.draft), *([draft.helper] if isinstance(draft.helper, Self) else [])]
    return [draft] if isinstance(draft, Self | Skip | Source) else []


def _copy(target: Part, bits: Bits | None) -> budget.Weights:
    """The target's copy in few bits. While it is fitted the target is computed in float32, a layer at a time."""
    bits = bits or copies.best_bits(target.checkpoint)
    shape = target.shape
    assert shape is not None
    kept = copies.rounding(shape, bits, {})
    weights = planning.weights(target.checkpoint, kept, target.dtype, target.device)
    if bits == 8 or not planning.engine(kept, target.device).lanes:
        return weights
    fitting = planning.fitting(target.checkpoint, len(BEGINNINGS) * (NEW_TOKENS + 1), target.device)
    return replace(weights, loading=max(weights.loading, fitting))


def _vocabulary(checkpoint: Checkpoint) -> int:
    size = checkpoint.config.get("vocab_size")
    known = checkpoint.known[1].vocab_size if checkpoint.known else size
    return known if isinstance(known, int) else 0


def _cache(part: Part, batch: int, places: int) -> int:
    shape = part.shape
    if shape is None:
        return _foreign_cache(part.checkpoint.config, batch, places, part.dtype)
    return budget.cache(shape, batch, places, planning.engine(part.kept, part.device), _compute_dtype(part))


def _foreign_cache(config: Mapping[str, Any], batch: int, places: int, dtype: torch.dtype) -> int:
    """Keys and values of transformers' forward, by a config's usual fields; 0 where it has none of them."""

    def number(*names: str) -> int:
        return next((config[name] for name in names if type(config.get(name)) is int and config[name] > 0), 0)

    heads = number("num_attention_heads", "n_head", "num_heads")
    size = number("head_dim") or number("hidden_size", "n_embd", "d_model") // max(heads, 1)
    each = number("num_key_value_heads") or heads
    return 2 * dtype.itemsize * number("num_hidden_layers", "n_layer", "num_layers") * batch * each * size * places


def _working(part: Part, asked: Asked, places: int, width: int) -> int:
    shape = part.shape
    if shape is None:
        return 0
    engine, dtype = planning.engine(part.kept, part.device), _compute_dtype(part)
    return budget.activations(shape, asked.batch, places, width, asked.threads, engine, dtype) + budget.rotations(
        shape, places, engine, dtype
    )


def _compute_dtype(part: Part) -> torch.dtype:
    return planning.dtype_of(part.kept, part.dtype)
