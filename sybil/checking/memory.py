"""How much memory a target and its draft need together, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from sybil import budget
from sybil.drafting.auto import MOST, MOST_FOR_NOTHING
from sybil.drafts import BEGINNINGS, NEW_TOKENS, Cascade, Draft, Hybrid, Lookup, NamedModel, Self, Skip
from sybil.models import copies, planning
from sybil.models.folders import Checkpoint
from sybil.models.shape import Shape
from sybil.models.storage import Bits, Kept

LIBRARIES = 16 << 20
"""Bytes of code and tables that the process and its libraries read at their first use. The embedded target took 15 to
20 MB beside its other parts (docs/checking.md)."""
TOKEN = 400
"""Bytes that a tokenizer takes for each token of its vocabulary."""
HEAP = 64 << 20
"""The most bytes that glibc keeps of the memory that is freed once a copy has been fitted. glibc shrinks its heap only
where the free space at the end is more than twice the largest freed block of at most 32 MiB."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is decoded. batch: rows. context: tokens of each row, prompt included. threads: of the computation."""

    batch: int
    context: int
    threads: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A model on a device, and how its weights are kept. dtype: of transformers' forward or of the operators' cache."""

    checkpoint: Checkpoint
    kept: Kept
    dtype: torch.dtype
    device: torch.device

    @property
    def weights(self) -> budget.WeightBytes:
        """The bytes of the weights. Raises WeightsMismatch."""
        return planning.weights(self.checkpoint, self.kept, self.dtype, self.device)

    @property
    def shape(self) -> Shape | None:
        """The model's shape; None where transformers' own forward runs the model."""
        return planning.shape_of(self.checkpoint)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is to be loaded and decoded. draft: None for no draft. helper: the model that the draft names, if any."""

    target: Placed
    draft: Draft | None
    helper: Placed | None
    extent: Extent


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of memory. parts: what decoding needs, by purpose. loading: the most that is needed while the models are
    loaded, tokenizers and libraries included."""

    parts: Mapping[str, int]
    loading: int

    @property
    def decoding(self) -> int:
        """The bytes that decoding needs: the sum of the parts."""
        return sum(self.parts.values())

    @property
    def peak(self) -> int:
        """The most bytes that are needed at any time."""
        return max(self.loading, self.decoding)


def memory(setup: Setup) -> MemoryNeed:
    """The memory that a setup needs. Raises WeightsMismatch."""
    target, extent = setup.target, setup.extent
    most = MOST_FOR_NOTHING if isinstance(setup.draft, Lookup | Hybrid) else MOST
    width = 1 if setup.draft is None else most + 1
    models, cached, heap = [target.weights], [target], 0
    for each in _models(setup.draft):
        if isinstance(each, NamedModel):
            assert setup.helper is not None
            models.append(setup.helper.weights)
            cached.append(setup.helper)
        elif isinstance(each, Self) or each.bits is not None:
            models.append(_copy(target, each.bits))
            heap = min(_fitting(target, each.bits), HEAP)
    loading = done = 0
    for weights in models:
        loading, done = max(loading, done + weights.loading), done + weights.total
    tokens = sum({part.checkpoint.name: _vocabulary(part.checkpoint) for part in cached}.values())
    beside = LIBRARIES + TOKEN * tokens if target.device.type == "cpu" else 0
    places = extent.context + width
    parts = {
        "target's weights": models[0].total,
        "draft's weights": sum(weights.total for weights in models[1:]),
        "keys and values": sum(_cache(part, extent.batch, places) for part in cached),
        "working memory": sum(_working(part, extent, places, width) for part in cached),
        "freed, still held": heap,
        "tokenizers, libraries": beside,
    }
    return MemoryNeed({name: size for name, size in parts.items() if size}, loading + heap + beside)


def step_bytes(setup: Setup, places: int) -> int:
    """The bytes that the draft reads to draft one token: its weights, and the keys and values of `places` tokens. The
    draft is a model or a copy of the target; any other draft reads 0."""
    if isinstance(setup.draft, NamedModel):
        assert setup.helper is not None
        return setup.helper.weights.step + _cache(setup.helper, 1, places)
    if isinstance(setup.draft, Self):
        return _copy(setup.target, setup.draft.bits).step + _cache(setup.target, 1, places)
    return 0


def target_bytes(setup: Setup, places: int) -> int:
    """The bytes that the target reads for one token: its weights, and the keys and values of `places` tokens."""
    return setup.target.weights.step + _cache(setup.target, 1, places)


def _models(draft: Draft | None) -> list[Self | Skip | NamedModel]:
    """The parts of a draft that have weights."""
    if isinstance(draft, Hybrid):
        return _models(draft.other)
    if isinstance(draft, Cascade):
        return [*_models(draft.draft), *([draft.helper] if isinstance(draft.helper, Self) else [])]
    return [draft] if isinstance(draft, Self | Skip | NamedModel) else []


def _copy(target: Placed, bits: Bits | None) -> budget.WeightBytes:
    """The bytes of a copy of the target in few bits."""
    assert target.shape is not None
    kept = copies.rounding(target.shape, bits or copies.best_bits(target.checkpoint), {})
    weights = planning.weights(target.checkpoint, kept, target.dtype, target.device)
    return replace(weights, loading=max(weights.loading, _fitting(target, bits)))


def _fitting(target: Placed, bits: Bits | None) -> int:
    """The most bytes that fitting the weights of a copy needs. Fitting computes the target in float32, one layer at a
    time. 0 for copies that are rounded without fitting."""
    bits = bits or copies.best_bits(target.checkpoint)
    if bits == 8 or not planning.engine("float32", target.device).lanes:
        return 0
    return planning.fitting(target.checkpoint, len(BEGINNINGS) * (NEW_TOKENS + 1), target.device)


def _vocabulary(checkpoint: Checkpoint) -> int:
    size = checkpoint.config.get("vocab_size")
    known = checkpoint.known[1].vocab_size if checkpoint.known else size
    return known if isinstance(known, int) else 0


def _cache(part: Placed, batch: int, places: int) -> int:
    shape = part.shape
    if shape is None:
        return _foreign_cache(part.checkpoint.config, batch, places, part.dtype)
    return budget.cache(shape, batch, places, planning.engine(part.kept, part.device), _compute_dtype(part))


def _foreign_cache(config: Mapping[str, Any], batch: int, places: int, dtype: torch.dtype) -> int:
    """The bytes of the keys and values of transformers' forward, by a config's usual fields; 0 where the config has
    none of these fields."""

    def number(*names: str) -> int:
        return next((config[name] for name in names if type(config.get(name)) is int and config[name] > 0), 0)

    heads = number("num_attention_heads", "n_head", "num_heads")
    size = number("head_dim") or number("hidden_size", "n_embd", "d_model") // max(heads, 1)
    each = number("num_key_value_heads") or heads
    return 2 * dtype.itemsize * number("num_hidden_layers", "n_layer", "num_layers") * batch * each * size * places


def _working(part: Placed, extent: Extent, places: int, width: int) -> int:
    shape = part.shape
    if shape is None:
        return 0
    engine, dtype = planning.engine(part.kept, part.device), _compute_dtype(part)
    working = budget.activations(shape, extent.batch, places, width, extent.threads, engine, dtype)
    return working + budget.rotations(shape, places, engine, dtype)


def _compute_dtype(part: Placed) -> torch.dtype:
    return planning.dtype_of(part.kept, part.dtype)
