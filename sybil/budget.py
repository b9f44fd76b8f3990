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
"""A model is refused if it needs more than this many times the free memory. The margin is there because neither the
computed need nor the reading of free memory is exact."""
TEMPORARIES = 8
"""How many copies of a part of a weight are in memory while the part is rounded to a file's blocks."""
CHUNK = 1024
"""The number of positions whose rotations the C forward computes at once."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Which forward computes.

    lanes: the floats in a vector of the C forward; 0 where torch's operators compute. packs: whether torch's operators
    keep a product's weight in an order of the processor's own. on_host: whether torch's operators compute in the memory
    that files are read into; on a GPU they don't."""

    lanes: int
    packs: bool = False
    on_host: bool = True


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """The memory that a model's weights take, in bytes.

    parameters: the number of parameters. kept: bytes by the storage that the weights are kept in. loading: the peak
    while the weights are made one after the other, finished weights included. needed: the part of `loading` that the
    system can't take back; it can take back the pages of a file that is read. step: the bytes of weights that a forward
    over one token reads."""

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
    """One weight, in bytes. kept: by the storage that it is kept in. held: the peak while it is made, itself included.
    mapped: the part of `held` that is pages of a file."""

    kept: Mapping[str, int]
    held: int
    mapped: int

    @property
    def total(self) -> int:
        return sum(self.kept.values())


def weights(shape: Shape, sources: Mapping[str, Source], stored: Stored, kept: Kept, engine: Engine) -> WeightBytes:
    """The memory of a shape's weights. sources: which stored tensors each weight is made of. kept: the storage of the
    products' weights."""
    by: Counter[str] = Counter()
    done = loading = needed = step = 0
    names: Iterable[str] = sources
    if engine.lanes:  # the C forward makes the largest weights first
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
    """The peak, in bytes, while the model is computed once over `tokens` tokens in float32, one layer after the other.
    The whole embedding and head are in memory then, with one layer and the logits."""
    sizes = {name: FLOAT * math.prod(source.size) for name, source in sources.items()}
    layer = sum(size for name, size in sizes.items() if name.startswith("0."))
    whole = sum(sizes.get(name, 0) for name in (EMBEDDING, POSITIONS, HEAD))
    reading, _ = _reading(sources[EMBEDDING], stored, FLOAT, engine.lanes)
    return max(reading, whole + layer + FLOAT * tokens * shape.vocab_size)


def foreign(stored: Stored, dtype: torch.dtype, *, quantised: bool) -> WeightBytes:
    """The weights of a model that runs by transformers' forward. quantised: whether they stay as they are stored."""
    parameters = sum(math.prod(size) for size in stored.shapes.values())
    size = stored.nbytes if quantised else parameters * dtype.itemsize
    kept = "quantised" if quantised else str(dtype).removeprefix("torch.")
    return WeightBytes(parameters, {kept: size}, size, size, size)


def cache(shape: Shape, batch: int, places: int, engine: Engine, dtype: torch.dtype = torch.float32) -> int:
    """The bytes of the KV cache of `batch` rows of `places` tokens. dtype: of the cache of torch's operators; the C
    forward's cache is float32."""
    lanes, itemsize = (engine.lanes, FLOAT) if engine.lanes else (1, dtype.itemsize)
    size = _whole(places, lanes) * _whole(shape.head_size, lanes)
    return 2 * itemsize * shape.layers * batch * shape.kv_heads * size


def rotations(shape: Shape, places: int, engine: Engine, dtype: torch.dtype = torch.float32) -> int:
    """The bytes of the rotary embedding's cosines and sines. torch's operators keep those of the whole context; the C
    forward keeps those of the positions that it has reached."""
    kinds = {attention.rotary for attention in shape.attentions if attention.rotary}
    itemsize = FLOAT if engine.lanes else dtype.itemsize
    reached = min(_whole(places, CHUNK), shape.context) if engine.lanes else shape.context
    return sum(2 * itemsize * reached * len(rotary.inverse_frequencies) for rotary in kinds)


def activations(
    shape: Shape, batch: int, places: int, width: int, threads: int, engine: Engine, dtype: torch.dtype = torch.float32
) -> int:
    """The bytes of a forward's intermediate results and logits. places: tokens of a row in the cache. width: the most
    tokens of a row that are verified at once."""
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
    """Computes the memory of each weight of a shape; the weights are made one after the other."""

    shape: Shape
    sources: Mapping[str, Source]
    stored: Stored
    kept: Kept
    engine: Engine

    def one(self, name: str) -> OneWeight:
        """The memory of one weight, by its name in Sybil."""
        source = self.sources[name]
        is_product = len(source.size) == 2 and name != POSITIONS
        if not self.engine.lanes:
            return self._by_operators(name, source, is_product)
        return self._product(name, source) if is_product else self._floats(name, source)

    def _product(self, name: str, source: Source) -> OneWeight:
        """A product's weight in the C forward, which keeps it in panels."""
        (_, rounded), lying = self._parts(name, source), _lying(source, self.stored)
        packed = self._packed(name, source)
        total, numbers = sum(packed.values()), math.prod(source.size)
        if rounded is None:  # the stored blocks are packed as they are
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
        """(the storage and the number of outputs of each part of a product; the bytes of the rounded copy that is made
        before packing). The second is None where the stored blocks are packed as they are, and 0 where no copy is
        made."""
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
        """A norm, a bias or learned positions in the C forward, in float32. A product's bias is padded to the length of
        the product's panels."""
        numbers = rows = math.prod(source.size)
        weight = name.removesuffix("bias") + "weight"
        if name.endswith(".bias") and len(self.sources[weight].size) == 2:
            rows = sum(_whole(rows, WIDE * self.engine.lanes) for _, rows in self._runs(weight, self.sources[weight]))
        return OneWeight({"float32": FLOAT * rows}, FLOAT * (rows + numbers), 0)

    def _runs(self, name: str, source: Source) -> list[tuple[Word, int]]:
        """The parts of a product as they are packed. Neighbours of the same storage are joined into one part; a gated
        product's gates and the outputs that they gate stay apart."""
        parts, _ = self._parts(name, source)
        if self.shape.gated and name.endswith("mlp_in.weight"):
            return parts if len(parts) > 1 else [(parts[0][0], parts[0][1] // 2)] * 2
        groups = groupby(parts, key=lambda part: part[0])
        return [(word, sum(rows for _, rows in group)) for word, group in groups]

    def _packed(self, name: str, source: Source) -> dict[str, int]:
        """The bytes of a product's panels, by storage."""
        found: Counter[str] = Counter()
        for word, rows in self._runs(name, source):
            found[word] += _panels(word, rows, source.size[1], self.engine.lanes)
        return dict(found)

    def _by_operators(self, name: str, source: Source, is_product: bool) -> OneWeight:
        """A weight for torch's operators. The embedding is a table that tokens are looked up in, and a tied head also
        multiplies by it."""
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
    """The storage and the outputs of each part of a weight that is stored in blocks; None where the weight has to be
    made from numbers."""
    if source.transposed or source.offset or len(source.size) != 2:
        return None
    words = [stored.storages.get(name) for name, _ in source.parts]
    found = [(SAME.get(word, word), size[0]) for word, (_, size) in zip(words, source.parts, strict=True) if word]
    return found if len(found) == len(words) else None


def _panels(word: Word, outputs: int, inputs: int, lanes: int) -> int:
    return -(-outputs // (WIDE * lanes)) * panel_bytes(word, inputs, lanes)


def _reading(source: Source, stored: Stored, itemsize: int, lanes: int) -> tuple[int, int]:
    """(peak memory while one whole weight is made of stored tensors, the part of it that is pages of files), in bytes.

    Numbers are read one tensor at a time. Blocks are read all together; the C forward turns them into float32 by way of
    panels."""
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
    """The bytes of a stored tensor in its file."""
    if stored.lasting:
        return 0
    word, dtype = stored.storages.get(name), stored.dtypes[name]
    if word is not None:
        inputs, nbytes = BLOCKS[word]
        return math.prod(size) // inputs * nbytes
    return math.prod(size) * (dtype.itemsize if isinstance(dtype, torch.dtype) else 1)


def check(name: str, kept: Kept, needed: int, free: int | None, others: Mapping[str, int]) -> None:
    """Raises OutOfMemory where `needed` bytes exceed the `free` bytes by more than a tenth. free is None where it is
    unknown: then nothing is refused.

    name: the model's. kept: the storage that its weights were asked for in. others: the bytes that the weights would
    need in other storages."""
    if free is None or needed < WORTH_ASKING or needed <= MARGIN * free:
        return
    fitting = [f"{word} needs {size:,}" for word, size in others.items() if size <= free]
    remedy = f"{' and '.join(fitting)}, " if fitting else ""
    raise OutOfMemory(
        f"loading {name} in {said(kept)} needs {needed:,} bytes, and {free:,} are free: {remedy}`sybil check` shows "
        "what fits, or use a smaller model"
    )


def said(kept: Kept) -> str:
    """The storage of weights, in the words of a message."""
    if isinstance(kept, Rounding):
        return f"{kept.bits} bits"
    return "the file's own blocks" if kept == "stored" else kept


def _whole(number: int, unit: int) -> int:
    return -(-number // unit) * unit
