"""A weight's numbers in the order of formats.h: panels of records. In a record each kind of number is a row, a number
for each output of the panel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sybil.models.rounding import BLOCK, block_bytes
from sybil.models.storage import BLOCKS, Bits, BlockStorage

RoundedWord = Literal["r4", "r5", "r6", "r8"]
Word = Literal["float32", "bfloat16"] | BlockStorage | RoundedWord
WORDS: tuple[Word, ...] = (
    *("float32", "bfloat16", "f16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"),
    *("q4_k", "q5_k", "q6_k", "iq4_nl", "mxfp4", "r4", "r5", "r6", "r8"),
)
"""Storages, in model.h's order."""
WIDE = 3
"""Vectors of outputs in a panel."""
ROUNDED: Mapping[Bits, RoundedWord] = {4: "r4", 5: "r5", 6: "r6", 8: "r8"}
"""The word for a weight that is rounded to so many bits. Its last block may be filled up."""
SAME: Mapping[BlockStorage, Word] = {"f32": "float32", "bf16": "bfloat16"}
"""Other words for the same storage."""


@dataclass(frozen=True, slots=True)
class Field:
    """Numbers of a block: `count` of `size` bytes each, from the byte `at` on. packed: 8 scales and 8 minima
    of six bits. They take 12 bytes in the block and a byte each in a record."""

    at: int
    size: int
    count: int
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """The block of a storage, and the order of its fields in a record."""

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


def _blocks(word: BlockStorage, scales: tuple[Field, ...], numbers: tuple[Field, ...]) -> Layout:
    return Layout(*BLOCKS[word], scales, numbers)


def _plain(size: int) -> Layout:
    return Layout(1, size, (), (Field(0, size, 1),))


def _rounded(bits: Bits) -> Layout:
    return Layout(BLOCK, block_bytes(bits), (Field(0, 2, 2),), (Field(4, 4, bits),))


LAYOUTS: Mapping[Word, Layout] = {
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
_DTYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def panel_bytes(word: Word, inputs: int, lanes: int) -> int:
    """The bytes of a panel of a weight of so many inputs."""
    layout = LAYOUTS[word]
    return -(-inputs // layout.inputs) * layout.record_bytes(lanes)


def fill(records: NDArray[np.uint8], word: Word, numbers: NDArray[np.uint8], lanes: int) -> None:
    """Write numbers (outputs, bytes of a row) into records, the bytes of whole panels, which are zeros before."""
    layout, panel = LAYOUTS[word], WIDE * lanes
    blocks = numbers.reshape(len(numbers), -1, layout.nbytes)
    into = records.reshape(-(-len(numbers) // panel), blocks.shape[1], layout.record_bytes(lanes))
    for at, fields in ((0, layout.scales), (layout.scale_bytes(lanes), layout.numbers)):
        for field in fields:
            values = _values(blocks, field)
            end = at + field.size * field.count * panel
            _fill(into[:, :, at:end].view(values.dtype), values, panel)
            at = end


def _values(blocks: NDArray[np.uint8], field: Field) -> NDArray[np.unsignedinteger]:
    """(outputs, blocks, count)"""
    if field.packed:
        low, middle, high = (blocks[..., field.at + 4 * third : field.at + 4 * third + 4] for third in range(3))
        scales = low & 63, (high & 15) | (low >> 6 << 4)
        minima = middle & 63, (high >> 4) | (middle >> 6 << 4)
        return np.concatenate([*scales, *minima], -1)
    return blocks[..., field.at : field.at + field.size * field.count].view(_DTYPES[field.size])


def _fill(rows: NDArray[np.unsignedinteger], values: NDArray[np.unsignedinteger], panel: int) -> None:
    """values (outputs, blocks, count) into rows (panels, blocks, count * panel)."""
    outputs, blocks, count = values.shape
    rows = rows.reshape(len(rows), blocks, count, panel)
    whole = outputs // panel
    rows[:whole] = values[: whole * panel].reshape(whole, panel, blocks, count).transpose(0, 2, 3, 1)
    if outputs % panel:
        rows[whole, ..., : outputs % panel] = values[whole * panel :].transpose(1, 2, 0)
