"""Arranges a weight's numbers in the order of formats.h: in panels of records. In a record each kind of number is a row
with one number for each output of the panel."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sybil.models.native import library
from sybil.models.native.threads import by_rows
from sybil.models.rounding import BLOCK, block_bytes
from sybil.models.storage import BLOCKS, Bits, Blocks, BlockStorage

RoundedWord = Literal["r4", "r5", "r6", "r8"]
Word = Literal["float32", "bfloat16"] | BlockStorage | RoundedWord
WORDS: tuple[Word, ...] = (
    *("float32", "bfloat16", "f16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"),
    *("q4_k", "q5_k", "q6_k", "iq4_nl", "mxfp4", "r4", "r5", "r6", "r8"),
)
"""The storages, in the order of model.h's enumeration."""
WIDE = 3
"""The number of vectors of outputs in a panel."""
ROUNDED: Mapping[Bits, RoundedWord] = {4: "r4", 5: "r5", 6: "r6", 8: "r8"}
"""The word for a weight that is rounded to so many bits. The last block of a row may be padded."""
SAME: Mapping[BlockStorage, Word] = {"f32": "float32", "bf16": "bfloat16"}
"""The words for storages that files call by other words."""


@dataclass(frozen=True, slots=True)
class Field:
    """Numbers of a block: `count` numbers of `size` bytes each, from the byte `at` on. packed: whether they are 8
    scales and 8 minima of six bits, which take 12 bytes in the block and a byte each in a record."""

    at: int
    size: int
    count: int
    packed: bool = False


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """The block of a storage, and the order of the block's fields in a record."""

    inputs: int
    nbytes: int
    scales: tuple[Field, ...]
    numbers: tuple[Field, ...]

    def scale_bytes(self, lanes: int) -> int:
        """The bytes of a record's scales, padded to whole vectors."""
        used = sum(field.size * field.count for field in self.scales) * WIDE * lanes
        return -(-used // (4 * lanes)) * 4 * lanes

    def record_bytes(self, lanes: int) -> int:
        return self.scale_bytes(lanes) + sum(field.size * field.count for field in self.numbers) * WIDE * lanes


_SIXES = Field(4, 1, 16, packed=True)


def _blocks(word: BlockStorage, scales: tuple[Field, ...], numbers: tuple[Field, ...]) -> RecordLayout:
    return RecordLayout(*BLOCKS[word], scales, numbers)


def _plain(size: int) -> RecordLayout:
    return RecordLayout(1, size, (), (Field(0, size, 1),))


def _rounded(bits: Bits) -> RecordLayout:
    return RecordLayout(BLOCK, block_bytes(bits), (Field(0, 2, 2),), (Field(4, 4, bits),))


LAYOUTS: Mapping[Word, RecordLayout] = {
    "float32": _plain(4),
    "bfloat16": _plain(2),
    "f16": _plain(2),
    "q8_0": _blocks("q8_0", (Field(0, 2, 1),), (Field(2, 1, 32),)),
    "q4_0": _blocks("q4_0", (Field(0, 2, 1),), (Field(2, 4, 4),)),
    "q4_1": _blocks("q4_1", (Field(0, 2, 2),), (Field(4, 4, 4),)),
    "q5_0": _blocks("q5_0", (Field(0, 2, 1),), (Field(2, 4, 5),)),
    "q5_1": _blocks("q5_1", (Field(0, 2, 2),), (Field(4, 4, 5),)),
    "q4_k": _blocks("q4_k", (Field(0, 2, 2), _SIXES), (Field(16, 4, 32),)),
    "q5_k": _blocks("q5_k", (Field(0, 2, 2), _SIXES), (Field(16, 4, 40),)),
    "q6_k": _blocks("q6_k", (Field(208, 2, 1), Field(192, 1, 16)), (Field(128, 4, 16), Field(0, 4, 32))),
    "iq4_nl": _blocks("iq4_nl", (Field(0, 2, 1),), (Field(2, 4, 4),)),
    "mxfp4": _blocks("mxfp4", (Field(0, 1, 1),), (Field(1, 4, 4),)),
    **{word: _rounded(bits) for bits, word in ROUNDED.items()},
}


def panel_bytes(word: Word, inputs: int, lanes: int) -> int:
    """The bytes of one panel of a weight with `inputs` inputs."""
    layout = LAYOUTS[word]
    return -(-inputs // layout.inputs) * layout.record_bytes(lanes)


def fill(records: Tensor, word: Word, numbers: Tensor, lanes: int) -> None:
    """Write numbers (outputs, bytes of a row) uint8 into records: the bytes of whole panels, which must be zeros
    before."""
    built = library.load()
    assert built is not None  # whoever packs has it
    layout, panel, (outputs, row_bytes) = LAYOUTS[word], WIDE * lanes, numbers.shape
    numbers, blocks, nbytes = numbers.contiguous(), row_bytes // layout.nbytes, layout.record_bytes(lanes)
    if row_bytes % layout.nbytes or records.shape != (-(-outputs // panel) * blocks * nbytes,):
        raise ValueError(f"{tuple(numbers.shape)} bytes of {word} don't go into {tuple(records.shape)}")
    places: list[int] = []
    for at, fields in ((0, layout.scales), (layout.scale_bytes(lanes), layout.numbers)):
        for field in fields:
            places += field.at, at, field.size, field.count, field.packed
            at += field.size * field.count * panel
    described = (ctypes.c_int32 * len(places))(*places)

    def work(first: int, last: int) -> None:
        into = records.data_ptr() + first // panel * blocks * nbytes
        rows = numbers[first:last].data_ptr(), last - first, blocks
        built.sybil_fill(into, *rows, layout.nbytes, nbytes, panel, described, len(places) // 5)

    by_rows(work, outputs, blocks * layout.inputs, panel)


def unpacked(blocks: Blocks) -> Tensor:
    """The weight (outputs, inputs) in float32: the same as storage.dequantised(), computed in C by way of panels."""
    built = library.load()
    assert built is not None
    word, rows, inputs = SAME.get(blocks.storage, blocks.storage), len(blocks.numbers), blocks.inputs
    lanes = built.sybil_lanes()
    panel, nbytes = WIDE * lanes, panel_bytes(word, inputs, lanes)
    weight = torch.empty(rows, inputs, dtype=torch.float32, device="cpu")
    records = torch.zeros(-(-rows // panel) * nbytes, dtype=torch.uint8, device="cpu")
    fill(records, word, blocks.numbers, lanes)

    def work(first: int, last: int) -> None:
        panels = records.data_ptr() + first // panel * nbytes
        built.sybil_unpack(panels, WORDS.index(word), last - first, inputs, weight[first:last].data_ptr())

    by_rows(work, rows, inputs, panel)
    return weight
