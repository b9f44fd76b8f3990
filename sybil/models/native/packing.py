"""Packs weights for the C forward: in panels, in the order in which it reads them, in memory of huge pages."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.errors import WeightsMismatch
from sybil.models.native.making import rounded
from sybil.models.native.records import LAYOUTS, ROUNDED, SAME, WIDE, WORDS, Word, fill, panel_bytes
from sybil.models.native.structs import PARTS, FloatsStruct, PartStruct, ProductStruct
from sybil.models.storage import FORMATS, Bits, Blocks, Storage


class Arena:
    """Memory for weights. It has huge pages where the system offers them, because a product reads megabytes in
    order."""

    CHUNK = 64 << 20

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.used = 0

    def room(self, nbytes: int) -> Tensor:
        """A uint8 tensor of `nbytes` zeros, aligned to 64 bytes."""
        size = -(-nbytes // 64) * 64
        if size > len(self._free):
            if hasattr(mmap, "MADV_HUGEPAGE"):  # it works for private memory only
                chunk = mmap.mmap(-1, max(size, self.CHUNK), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                with contextlib.suppress(OSError):
                    chunk.madvise(mmap.MADV_HUGEPAGE)
            else:
                chunk = mmap.mmap(-1, max(size, self.CHUNK))
            self._free = torch.frombuffer(chunk, dtype=torch.uint8)
        place, self._free = self._free[:nbytes], self._free[size:]
        self.used += nbytes
        return place

    def take(self, source: Tensor) -> Tensor:
        """A contiguous copy of the tensor in this memory."""
        return self.room(source.nbytes).view(source.dtype).view(source.shape).copy_(source.detach())


@dataclass(frozen=True, slots=True)
class Piece:
    """Some outputs of a product before they are packed. numbers: (outputs, bytes of a row) uint8, in the form that the
    storage's records take."""

    storage: Word
    numbers: Tensor
    inputs: int

    @classmethod
    def kept(cls, weight: Tensor, storage: Storage) -> Piece:
        """A weight (outputs, inputs) converted to that storage. Raises WeightsMismatch."""
        _check_sides(weight)
        word = cast(Word, storage)  # building.py asks for no other storage
        numbers = weight.detach().to(FORMATS[storage].dtype).contiguous()
        return cls(word, numbers.view(torch.uint8), weight.shape[1])

    @classmethod
    def in_bits(cls, weight: Tensor, bits: Bits, importance: Tensor | None = None) -> Piece:
        """A weight (outputs, inputs) rounded to blocks of `bits` bits. importance: see rounding.py. Raises
        WeightsMismatch."""
        _check_sides(weight)
        return cls(ROUNDED[bits], rounded(weight, bits, importance), weight.shape[1])

    @classmethod
    def lying(cls, blocks: Blocks) -> Piece:
        """A weight in the blocks of its file."""
        return cls(SAME.get(blocks.storage, blocks.storage), blocks.numbers, blocks.inputs)

    def rows(self, first: int, last: int) -> Piece:
        return replace(self, numbers=self.numbers[first:last])


def _check_sides(weight: Tensor) -> None:
    if weight.ndim != 2:
        raise WeightsMismatch(f"a product has weights of shape {tuple(weight.shape)}, and a weight has two sides")


@dataclass(frozen=True, slots=True)
class PackedPart:
    """Some outputs of a product, packed in panels. weight: the panels' bytes. bias: (outputs in whole panels,) float32,
    or None."""

    weight: Tensor
    bias: Tensor | None
    outputs: int
    storage: Word

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Packed:
    """A product's packed weight (outputs, inputs), as a list of parts."""

    parts: tuple[PackedPart, ...]
    inputs: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    def copied(self, copy: Callable[[Tensor], Tensor]) -> Packed:
        """The same product with each tensor replaced by what copy() returns for it."""
        parts = (
            replace(part, weight=copy(part.weight), bias=None if part.bias is None else copy(part.bias))
            for part in self.parts
        )
        return Packed(tuple(parts), self.inputs)

    def struct(self) -> ProductStruct:
        """The product as a struct of model.h. Its addresses are valid as long as this object lives."""
        product = ProductStruct(inputs=self.inputs, outputs=sum(part.outputs for part in self.parts))
        for place, part in enumerate(self.parts):
            product.parts[place] = PartStruct(
                weight=part.weight.data_ptr(),
                bytes=part.weight.nbytes,
                bias=floats(part.bias),
                outputs=part.outputs,
                storage=WORDS.index(part.storage),
            )
        return product


def pack(pieces: Sequence[Piece], bias: Tensor | None, lanes: int, gated: bool, arena: Arena) -> Packed:
    """Pack a product for forward.c. Raises WeightsMismatch.

    gated: whether the first half of the outputs are gates and the second half the values that they multiply; each half
    becomes a part then."""
    outputs, inputs = sum(len(piece.numbers) for piece in pieces), pieces[0].inputs
    parts: list[Piece] = []
    if all(piece.inputs == inputs and _is_whole(piece) for piece in pieces):
        parts = _halves(pieces, outputs) if gated else _merged(pieces)
    if not parts or (bias is not None and bias.shape != (outputs,)):
        sizes = [(len(piece.numbers), piece.inputs) for piece in pieces]
        biases = "" if bias is None else f" and biases {tuple(bias.shape)}"
        raise WeightsMismatch(
            f"a product has weights of shape {' and '.join(map(str, sizes))}{biases}, which don't fit each other"
        )
    packed, first = [], 0
    for part in parts:
        last = first + len(part.numbers)
        packed.append(_pack(part, None if bias is None else bias[first:last], lanes, arena))
        first = last
    return Packed(tuple(packed), inputs)


def _is_whole(piece: Piece) -> bool:
    """Whether a row has exactly the whole blocks that its inputs need."""
    layout = LAYOUTS[piece.storage]
    blocks, rest = divmod(piece.inputs, layout.inputs)
    if piece.storage in ROUNDED.values():
        blocks, rest = blocks + (rest > 0), 0
    return not rest and piece.numbers.shape[1:] == (blocks * layout.nbytes,)


def _halves(pieces: Sequence[Piece], outputs: int) -> list[Piece]:
    """The gates and the values that they multiply; [] where the pieces don't divide into such halves."""
    half = outputs // 2
    halves = [pieces[0].rows(0, half), pieces[0].rows(half, outputs)] if len(pieces) == 1 else [*pieces]
    return halves if [len(piece.numbers) for piece in halves] == [half, half] else []


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with neighbours of the same storage joined; [] where more pieces remain than a product may have
    parts."""
    merged = []
    for _, group in groupby(pieces, lambda piece: piece.storage):
        first, *more = group
        numbers = torch.cat([piece.numbers for piece in (first, *more)]) if more else first.numbers
        merged.append(replace(first, numbers=numbers))
    return merged if len(merged) <= PARTS else []


def _pack(piece: Piece, bias: Tensor | None, lanes: int, arena: Arena) -> PackedPart:
    panel, outputs = WIDE * lanes, len(piece.numbers)
    panels = -(-outputs // panel)
    weight = arena.room(panels * panel_bytes(piece.storage, piece.inputs, lanes))
    fill(weight, piece.storage, piece.numbers, lanes)
    if bias is not None:
        bias = arena.take(F.pad(bias.float(), (0, panels * panel - outputs)))
    return PackedPart(weight, bias, outputs, piece.storage)


def floats(tensor: Tensor | None) -> FloatsStruct:
    """A float32 tensor, or None, as the struct Floats of model.h."""
    return FloatsStruct() if tensor is None else FloatsStruct(tensor.data_ptr(), tensor.numel())
