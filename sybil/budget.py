"""The memory that a model takes, in bytes: computed from its shape, what its weights are kept in, and how long texts
are.

Pure: nothing is loaded, and no model is built. sybil.load uses it to refuse what can't fit, and `sybil check` shows
it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch

from sybil.allocation import WORTH_ASKING
from sybil.errors import OutOfMemory
from sybil.models.checkpoints.sources import Source
from sybil.models.checkpoints.weights import Stored
from sybil.models.native.records import ROUNDED, SAME, WIDE, Word, panel_bytes
from sybil.models.native.transformer import PREFILL_ROWS
from sybil.models.quantising import storage_for
from sybil.models.rounding import row_bytes
from sybil.models.shape import Shape
from sybil.models.storage import AT_ONCE, BLOCKS, FORMATS, QUANTISED, Kept, Rounding, Storage

FLOAT = 4
EMBEDDING, POSITIONS, HEAD = "token_embedding", "position_embedding", "head.weight"
MARGIN = 1.1
"""A model is refused if it needs more than so many times the free memory. The margin is there because neither the
computation nor the reading of free memory is exact."""
TEMPORARIES = 8
"""How many copies of a part of a weight are in memory while it is rounded to a file's blocks."""
CHUNK = 1024
"""Positions whose rotations the C forward computes together."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Which forward computes. lanes: floats of a vector of the C forward; 0 where torch's operators compute. packs:
    whether these keep a product's weight in an order of the processor's own. on_host: whether they compute in the
    memory that files are read into, as no GPU does."""

    lanes: int
    packs: bool = False
    on_host: bool = True


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """What a model's weights take.

    parameters: how many numbers they are. kept: bytes by what they are kept in. loading: the most while they are made
    one after the other, those that are made included. needed: of that, what the system can't take back, as it can the
    pages of a file that is read. step: what a forward over one token reads of them."""

    parameters: int
    kept: Mapping[str, int]
    loading: int
    needed: int
    step: int

    @property
    def total(self) -> int:
        """The bytes of all weights once they are loaded."""
        return sum(self.kept.values())


@dataclass(frozen=True, slots=True)
class OneWeight:
    """One weight. kept: bytes by what it is kept in. held: the most memory while it is made, itself included; mapped:
    of that, pages of a file."""

    kept: Mapping[str, int]
    held: int
    mapped: int

    @property
    def total(self) -> int:
        return sum(self.kept.values())


def weights(shape: Shape, sources: Mapping[str, Source], stored: Stored, kept: Kept, engine: Engine) -> WeightBytes:
    """The weights of a shape, which sources says are made of the stored ones. kept: what products are kept in."""
    by: Counter[str] = Counter()
    done = loading = needed = step = 0
    names: Iterable[str] = sources
    if engine.lanes:  # the largest first, as the C forward takes them
        names = sorted(sources, key=lambda name: (name != EMBEDDING, name != HEAD))
    making = _Making(shape, sources, stored, kept, engine)
    for name in names:
        made = making.one(name)
        loading = max(loading, done + made.held)
        needed = max(needed, done + made.held - made.mapped)
        done += made.total
        by.update(made.kept)
        looked_up = name == POSITIONS or (name == EMBEDDING and not shape.tied_head)
        step += 0 if looked_up else made.total
    parameters = sum(math.prod(source.size) for source in sources.values())
    return WeightBytes(parameters, dict(by), loading, needed, step)


def fitting(shape: Shape, sources: Mapping[str, Source], stored: Stored, tokens: int, engine: Engine) -> int:
    """The most while the shape is computed once over so many tokens in float32, its layers one after the other: the
    embedding and the head are whole then, beside one layer and the logits."""
    sizes = {name: FLOAT * math.prod(source.size) for name, source in sources.items()}
    layer = sum(size for name, size in sizes.items() if name.startswith("0."))
    whole = sum(sizes.get(name, 0) for name in (EMBEDDING, POSITIONS, HEAD))
    reading, _ = _reading(sources[EMBEDDING], stored, FLOAT, engine.lanes)
    return max(reading, whole + layer + FLOAT * tokens * shape.vocab_size)


def foreign(stored: Stored, dtype: torch.dtype, *, quantised: bool) -> WeightBytes:
    """The weights of a model that runs by transformers' forward. quantised: they stay as they are stored."""
    parameters = sum(math.prod(size) for size in stored.shapes.values())
    size = stored.nbytes if quantised else parameters * dtype.itemsize
    kept = "quantised" if quantised else str(dtype).removeprefix("torch.")
    return WeightBytes(parameters, {kept: size}, size, size, size)


def cache(shape: Shape, batch: int, places: int, engine: Engine, dtype: torch.dtype = torch.float32) -> int:
    """Keys and values of so many rows of so many tokens. dtype: of the operators' cache; the C forward's is float32."""
    lanes, itemsize = (engine.lanes, FLOAT) if engine.lanes else (1, dtype.itemsize)
    size = _whole(places, lanes) * _whole(shape.head_size, lanes)
    return 2 * itemsize * shape.layers * batch * shape.kv_heads * size


def rotations(shape: Shape, places: int, engine: Engine, dtype: torch.dtype = torch.float32) -> int:
    """Cosines and sines: of the whole context, or as far as the C forward has come."""
    kinds = {attention.rotary for attention in shape.attentions if attention.rotary}
    itemsize = FLOAT if engine.lanes else dtype.itemsize
    reached = min(_whole(places, CHUNK), shape.context) if engine.lanes else shape.context
    return sum(2 * itemsize * reached * len(rotary.inverse_frequencies) for rotary in kinds)


def activations(
    shape: Shape, batch: int, places: int, width: int, threads: int, engine: Engine, dtype: torch.dtype = torch.float32
) -> int:
    """What a forward works in. places: of the cache; width: the most tokens of a row that are verified together."""
    logits = FLOAT * batch * width * shape.vocab_size
    most = min(max(PREFILL_ROWS, batch * width), batch * places) if engine.lanes else batch * places
    widest = max(shape.width, shape.embedding_width, shape.heads * shape.head_size)
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_size
    if not engine.lanes:
        joined = max(heads, (1 + shape.gated) * shape.inner) + 3 * widest
        return logits + dtype.itemsize * most * joined
    own = most * (10 * -(-max(widest, shape.inner) // 32) + shape.width) + shape.head_size + places
    return logits + FLOAT * (most * (3 * widest + heads + shape.inner + 4) + threads * own)


@dataclass(frozen=True, slots=True)
class _Making:
    """How the weights of a shape are made, one after the other."""

    shape: Shape
    sources: Mapping[str, Source]
    stored: Stored
    kept: Kept
    engine: Engine

    def one(self, name: str) -> OneWeight:
        """A weight, by our name."""
        source = self.sources[name]
        is_product = len(source.size) == 2 and name != POSITIONS
        if not self.engine.lanes:
            return self._by_operators(name, source, is_product)
        return self._product(name, source) if is_product else self._floats(name, source)

    def _product(self, name: str, source: Source) -> OneWeight:
        """A product's weight in the C forward: in panels."""
        (_, rounded), lying = self._parts(name, source), _lying(source, self.stored)
        packed = self._packed(name, source)
        total, numbers = sum(packed.values()), math.prod(source.size)
        if rounded is None:  # it is packed as it lies
            mapped = _stored_bytes(source, self.stored)
            arranged = mapped if len(source.parts) > 1 or source.heads else 0
            return OneWeight(packed, mapped + arranged + total, mapped)
        plain = isinstance(self.kept, str) and self.kept in FORMATS and not lying
        itemsize = FORMATS[cast(Storage, self.kept)].read_as.itemsize if plain else FLOAT
        whole, (reading, mapped) = itemsize * numbers, _reading(source, self.stored, itemsize, self.engine.lanes)
        temporaries = TEMPORARIES * FLOAT * min(AT_ONCE, numbers) if self.kept in QUANTISED else 0
        making = max(whole + rounded + temporaries, (rounded or whole) + total)
        return OneWeight(packed, max(reading, making), max(min(mapped, reading - making), 0))

    def _parts(self, name: str, source: Source) -> tuple[list[tuple[Word, int]], int | None]:
        """What the parts of a product are kept in, and their outputs; and the bytes of what is made of its numbers
        before they are packed: None where they are packed as they lie, 0 where nothing is made."""
        (outputs, inputs), kept, lying = source.size, self.kept, _lying(source, self.stored)
        if isinstance(kept, Rounding):
            bits = kept.bits_of(name.removesuffix(".weight"))
            return [(ROUNDED[bits], outputs)], outputs * row_bytes(bits, inputs)
        if kept == "stored":
            return (lying, None) if lying else ([("float32", outputs)], 0)
        if kept in QUANTISED:
            word = storage_for(name, kept, inputs)
            if word is None:
                return [("float32", outputs)], 0
            if lying and {each for each, _ in lying} == {word}:
                return lying, None
            size, nbytes = BLOCKS[word]
            return [(word, outputs)], outputs * inputs // size * nbytes
        converted = FORMATS[cast(Storage, kept)].dtype.itemsize if lying and kept != "float32" else 0
        return [(cast(Word, kept), outputs)], converted * outputs * inputs

    def _floats(self, name: str, source: Source) -> OneWeight:
        """A norm, a bias or learned positions in the C forward: float32; a product's bias as long as its panels."""
        numbers = rows = math.prod(source.size)
        weight = name.removesuffix("bias") + "weight"
        if name.endswith(".bias") and len(self.sources[weight].size) == 2:
            rows = sum(_whole(rows, WIDE * self.engine.lanes) for _, rows in self._runs(weight, self.sources[weight]))
        return OneWeight({"float32": FLOAT * rows}, FLOAT * (rows + numbers), 0)

    def _runs(self, name: str, source: Source) -> list[tuple[Word, int]]:
        """The parts of a product as they are packed: neighbours that are kept in the same are one, but for a gated
        product's gates and what they open."""
        parts, _ = self._parts(name, source)
        if self.shape.gated and name.endswith("mlp_in.weight"):
            return parts if len(parts) > 1 else [(parts[0][0], parts[0][1] // 2)] * 2
        groups = groupby(parts, key=lambda part: part[0])
        return [(word, sum(rows for _, rows in group)) for word, group in groups]

    def _packed(self, name: str, source: Source) -> dict[str, int]:
        """The bytes of a product's panels, by what they are kept in."""
        found: Counter[str] = Counter()
        for word, rows in self._runs(name, source):
            found[word] += _panels(word, rows, source.size[1], self.engine.lanes)
        return dict(found)

    def _by_operators(self, name: str, source: Source, is_product: bool) -> OneWeight:
        """A weight as torch's operators have it. The embedding is looked up in, and a tied head multiplies by it."""
        kept: Storage = "int8" if isinstance(self.kept, Rounding) else "float32"
        if isinstance(self.kept, str) and self.kept in FORMATS:
            kept = cast(Storage, self.kept)
        dtype = source.kept_in(FORMATS[kept].read_as)
        word, whole = str(dtype).removeprefix("torch."), dtype.itemsize * math.prod(source.size)
        reading, mapped = _reading(source, self.stored, dtype.itemsize, 0) if self.engine.on_host else (whole, 0)
        total, product = Counter({word: whole}), Counter[str]()
        if is_product and (name != EMBEDDING or self.shape.tied_head):
            if kept == "int8":
                product["int8"] = FORMATS["int8"].nbytes(source.size[0], source.size[1])
            elif self.engine.packs:
                product[word] = whole
        if product:
            total = total + product if name == EMBEDDING else product
        making = whole + product.total()
        return OneWeight(dict(total), max(reading, making), max(min(mapped, reading - making), 0))


def _lying(source: Source, stored: Stored) -> list[tuple[Word, int]] | None:
    """The words and outputs of the blocks that a weight lies in; None where it has to be made from numbers."""
    if source.transposed or source.offset or len(source.size) != 2:
        return None
    words = [stored.storages.get(name) for name, _ in source.parts]
    found = [(SAME.get(word, word), size[0]) for word, (_, size) in zip(words, source.parts, strict=True) if word]
    return found if len(found) == len(words) else None


def _panels(word: Word, outputs: int, inputs: int, lanes: int) -> int:
    return -(-outputs // (WIDE * lanes)) * panel_bytes(word, inputs, lanes)


def _reading(source: Source, stored: Stored, itemsize: int, lanes: int) -> tuple[int, int]:
    """The most memory while a whole weight is made of stored tensors, and of that the pages of files.

    Numbers come a tensor at a time; blocks all together, and become float32 by way of panels where there are lanes."""
    numbers = math.prod(source.size)
    if lanes and (lying := _lying(source, stored)):
        mapped, whole = _stored_bytes(source, stored), FLOAT * numbers
        panels = max(_panels(word, rows, source.size[1], lanes) for word, rows in lying)
        return mapped + whole + max(panels, whole if len(lying) > 1 else 0), mapped
    largest = max((_part_bytes(stored, name, size) for name, size in source.parts), default=0)
    unpacked = [FLOAT * math.prod(size) for name, size in source.parts if name in stored.storages]
    return itemsize * numbers + largest + max(unpacked, default=0), largest


def _stored_bytes(source: Source, stored: Stored) -> int:
    return sum(_part_bytes(stored, name, size) for name, size in source.parts)


def _part_bytes(stored: Stored, name: str, size: tuple[int, ...]) -> int:
    """What a stored tensor takes in its file."""
    if stored.lasting:
        return 0
    word, dtype = stored.storages.get(name), stored.dtypes[name]
    if word is not None:
        inputs, nbytes = BLOCKS[word]
        return math.prod(size) // inputs * nbytes
    return math.prod(size) * (dtype.itemsize if isinstance(dtype, torch.dtype) else 1)


def check(name: str, kept: Kept, needed: int, free: int | None, others: Mapping[str, int]) -> None:
    """Raises OutOfMemory where so many bytes are more than the free ones, by a tenth at least (None: nobody knows).

    kept: what the weights of that name are to be kept in; others: the bytes that they would need otherwise."""
    if free is None or needed < WORTH_ASKING or needed <= MARGIN * free:
        return
    fitting = [f"{word} needs {size:,}" for word, size in others.items() if size <= free]
    remedy = f"{' and '.join(fitting)}, " if fitting else ""
    raise OutOfMemory(
        f"loading {name} in {said(kept)} needs {needed:,} bytes, and {free:,} are free: {remedy}`sybil check` shows "
        "what fits, or use a smaller model"
    )


def said(kept: Kept) -> str:
    """What weights are kept in, as a message has it."""
    if isinstance(kept, Rounding):
        return f"{kept.bits} bits"
    return "the file's own blocks" if kept == "stored" else kept


def _whole(number: int, unit: int) -> int:
    return -(-number // unit) * unit
