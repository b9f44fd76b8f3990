"""Weights as the C forward reads them: in panels, front to back, in memory of huge pages."""

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
from sybil.models.native.records import LAYOUTS, SAME, WIDE, WORDS, Word, fill, panel_bytes
from sybil.models.native.structs import PARTS, Floats, Part, Product
from sybil.models.storage import Blocks, Storage, keep


class Arena:
    """Memory for weights in huge pages, where the system has them: a product reads through megabytes in one go."""

    CHUNK = 64 << 20

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.used = 0

    def room(self, nbytes: int) -> Tensor:
        """So many bytes, zeros, aligned to 64."""
        size = -(-nbytes // 64) * 64
        if size > len(self._free):
            if hasattr(mmap, "MADV_HUGEPAGE"):  # for private memory only
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
        """A copy of the tensor, contiguous."""
        return self.room(source.nbytes).view(source.dtype).view(source.shape).copy_(source.detach())


@dataclass(frozen=True, slots=True)
class Piece:
    """Some outputs of a product before they are packed. numbers: (outputs, bytes of a row) uint8, as the storage's
    records take them; scale: (outputs,) float32, or None."""

    storage: Word
    numbers: Tensor
    inputs: int
    scale: Tensor | None = None

    @classmethod
    def rounded(cls, weight: Tensor, storage: Storage) -> Piece:
        """A weight (outputs, inputs) as that storage keeps it. Raises WeightsMismatch."""
        if weight.ndim != 2:
            raise WeightsMismatch(f"a product has weights of shape {tuple(weight.shape)}, and a weight has two sides")
        scale, numbers = keep(weight.detach(), storage)
        word = cast(Word, storage)  # building.py asks for no other
        return cls(word, numbers.contiguous().view(torch.uint8), weight.shape[1], scale)

    @classmethod
    def lying(cls, blocks: Blocks) -> Piece:
        """A weight as its file has it."""
        return cls(SAME.get(blocks.storage, blocks.storage), blocks.numbers, blocks.inputs)

    def rows(self, first: int, last: int) -> Piece:
        scale = None if self.scale is None else self.scale[first:last]
        return replace(self, numbers=self.numbers[first:last], scale=scale)


@dataclass(frozen=True, slots=True)
class PackedPart:
    """Outputs of a product in panels. weight: bytes; scale, bias: (outputs in whole panels,) float32, or None."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    outputs: int
    storage: Word

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(each for each in (self.weight, self.scale, self.bias) if each is not None)


@dataclass(frozen=True, slots=True)
class Packed:
    """A product's weight (outputs, inputs), part by part."""

    parts: tuple[PackedPart, ...]
    inputs: int

    def copied(self, copy: Callable[[Tensor], Tensor]) -> Packed:
        """The same with each tensor as copy() gives it back."""

        def optional(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else copy(tensor)

        parts = (
            replace(part, weight=copy(part.weight), scale=optional(part.scale), bias=optional(part.bias))
            for part in self.parts
        )
        return Packed(tuple(parts), self.inputs)

    def struct(self) -> Product:
        """As model.h has it: addresses, good as long as this lives."""
        product = Product(inputs=self.inputs, outputs=sum(part.outputs for part in self.parts))
        for place, part in enumerate(self.parts):
            product.parts[place] = Part(
                weight=part.weight.data_ptr(),
                bytes=part.weight.nbytes,
                scale=floats(part.scale),
                bias=floats(part.bias),
                outputs=part.outputs,
                storage=WORDS.index(part.storage),
            )
        return product


def pack(pieces: Sequence[Piece], bias: Tensor | None, lanes: int, gated: bool, arena: Arena) -> Packed:
    """A product as forward.c reads it. Raises WeightsMismatch.

    gated: the first half of the outputs are gates, the second what they open, and each half is a part."""
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
    """Whether a row is as many whole blocks as its inputs take."""
    layout = LAYOUTS[piece.storage]
    blocks = piece.inputs // layout.inputs
    return piece.inputs % layout.inputs == 0 and piece.numbers.shape[1:] == (blocks * layout.nbytes,)


def _halves(pieces: Sequence[Piece], outputs: int) -> list[Piece]:
    """The gates and what they open; [] where the pieces don't divide into such halves."""
    half = outputs // 2
    halves = [pieces[0].rows(0, half), pieces[0].rows(half, outputs)] if len(pieces) == 1 else [*pieces]
    return halves if [len(piece.numbers) for piece in halves] == [half, half] else []


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces with neighbours of the same storage joined; [] where more are left than a product may have."""
    merged = []
    for _, group in groupby(pieces, lambda piece: piece.storage):
        first, *more = group
        numbers = torch.cat([piece.numbers for piece in (first, *more)]) if more else first.numbers
        merged.append(replace(first, numbers=numbers))
    return merged if len(merged) <= PARTS else []


def _pack(piece: Piece, bias: Tensor | None, lanes: int, arena: Arena) -> PackedPart:
    panel, outputs = WIDE * lanes, len(piece.numbers)
    panels = -(-outputs // panel)

    def whole_panels(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else arena.take(F.pad(tensor.float(), (0, panels * panel - outputs)))

    weight = arena.room(panels * panel_bytes(piece.storage, piece.inputs, lanes))
    fill(weight.numpy(), piece.storage, piece.numbers.numpy(), lanes)
    return PackedPart(weight, whole_panels(piece.scale), whole_panels(bias), outputs, piece.storage)


def floats(tensor: Tensor | None) -> Floats:
    """A float32 tensor, or none, as model.h has it."""
    return Floats() if tensor is None else Floats(tensor.data_ptr(), tensor.numel())
