"""Reads the header of a GGUF file: its metadata, and where its tensors lie. Every count, length and offset is compared
with the file's size before it is used.

The constants, such as types and their sizes, are those of the package gguf. Its reader isn't used: it trusts the header
and makes an array of each text, which takes 25 s for a file of 262,144 tokens.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray
from torch import Tensor

from sybil.errors import NotAModel, UnsupportedModel, shown, told
from sybil.models.checkpoints.files import check_regular
from sybil.models.checkpoints.gguf.names import MAGIC
from sybil.models.storage import BlockStorage

VERSIONS = (2, 3)
MOST_NAMED, MOST_ENTRIES = 1 << 16, 1 << 22
"""MOST_NAMED: the most keys, and the most tensors, that a file may have. MOST_ENTRIES: the most numbers and texts in
all its arrays together."""
LONGEST_TEXT = 64 << 20
STORED = {GGMLQuantizationType[word.upper()]: word for word in get_args(BlockStorage)}
"""The tensor types that are read, with Sybil's words for them."""

_NUMBERS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f", GGUFValueType.FLOAT64: "d", GGUFValueType.BOOL: "?",
}  # fmt: skip
"""The letter of each number's type in struct and numpy."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies. start: the byte of the file at which it begins. shape: in torch's order."""

    file: Path
    start: int
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @property
    def row_bytes(self) -> int:
        elements, size = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // elements * size

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes

    def numbers(self) -> Tensor:
        """The tensor's bytes, (rows, bytes of a row) uint8. The file stays mapped as long as the result lives.

        Raises NotAModel where the file can't be mapped."""
        shape = math.prod(self.shape[:-1]), self.row_bytes
        return torch.from_numpy(_mapped(self.file, "c", self.start, shape))


@dataclass(frozen=True, slots=True)
class Contents:
    """What one file holds, or all parts of a model that is split over several files."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Place]


class CutShort(NotAModel):
    """The header is longer than the part of it that is known."""


def read(path: Path, known: int | None = None) -> Contents:
    """What one file holds. known: how many bytes at its start are the real ones, where the others are a hole; None: all
    are.

    Raises NotAModel where the file is broken, CutShort where the header is longer than `known`, UnsupportedModel where
    Sybil doesn't read a tensor's type."""
    size = check_regular(path)
    if size < 24:
        raise NotAModel(f"{path} has {size} bytes, which is no GGUF file: download it again")
    header = _Header(path, size if known is None else known)
    tensors, keys = header.start()
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = header.text("a key")
        if key in metadata:
            raise header.broken(f"has {shown(key)} twice")
        metadata[key] = header.value(key)
    return Contents(metadata, header.places(tensors, metadata.get("general.alignment", 32)))


def _mapped(
    file: Path, mode: Literal["r", "c"], start: int = 0, shape: tuple[int, ...] | None = None
) -> NDArray[np.uint8]:
    """A file's bytes, mapped: they take memory only as they are read. mode: r; or c, which makes an array that torch
    takes without a warning. Nothing is written to the array. If something were, the file would not change.

    Raises NotAModel where the file can't be mapped."""
    try:
        return np.memmap(file, np.uint8, mode, start, shape)
    except (ValueError, OSError) as error:
        raise NotAModel(f"{file} can't be mapped into memory ({told(error)}): has it changed?") from None


class _Header:
    """Reads a file's header from its start to its end. Every size in it is compared with the bytes that are left."""

    def __init__(self, path: Path, known: int) -> None:
        self.path, self.known, self.place, self.entries = path, known, 0, 0
        self.bytes = _mapped(path, "r").data
        self.size = len(self.bytes)

    def broken(self, what: str) -> NotAModel:
        return NotAModel(f"{self.path} {what}: download it again")

    def start(self) -> tuple[int, int]:
        """(number of tensors, number of keys)"""
        if self.bytes[:4] != MAGIC:
            raise NotAModel(f"{self.path} doesn't start with GGUF: give a GGUF file, or a Hugging Face model folder")
        self.place = 4
        version = self.number("I")
        if version not in VERSIONS:
            if int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS:
                raise UnsupportedModel(f"{self.path} is big-endian: fetch the little-endian file")
            raise UnsupportedModel(
                f"{self.path} is of GGUF version {version}, and 2 and 3 are read: fetch a newer file of the model"
            )
        return self.count("tensors", MOST_NAMED, 32), self.count("keys", MOST_NAMED, 13)

    def number(self, letter: str) -> Any:
        size = struct.calcsize(letter)
        self.need(size, "a number")
        (value,) = struct.unpack_from("<" + letter, self.bytes, self.place)
        self.place += size
        return value

    def need(self, size: int, what: str) -> None:
        if size > self.size - self.place:
            raise self.broken(
                f"is cut short: {what} at byte {self.place} needs {shown(size)} bytes, and "
                f"{self.size - self.place} follow"
            )
        if size > self.known - self.place:
            raise CutShort(f"{self.path} has a header of more than {self.known} bytes")

    def count(self, of: str, most: int, least_bytes: int) -> int:
        """Reads how many things follow. of: what they are, in an error's words. most: how many are allowed.
        least_bytes: the fewest bytes that one of them takes."""
        count: int = self.number("Q")
        if count > most:
            raise self.broken(f"says that it has {count} {of}, and allowed are {most}")
        self.need(count * least_bytes, f"a list of {count} {of}")
        return count

    def text(self, what: str) -> str:
        size = self.number("Q")
        if size > LONGEST_TEXT:
            raise self.broken(f"has {what} of {size} bytes at byte {self.place}, and allowed are {LONGEST_TEXT}")
        self.need(size, what)
        self.place += size
        try:
            return str(self.bytes[self.place - size : self.place], "utf-8")
        except ValueError:
            raise self.broken(f"has {what} at byte {self.place - size} that is no UTF-8 text") from None

    def value(self, key: str) -> Any:
        """A key's value in plain Python."""
        kind = self.kind(key)
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == GGUFValueType.STRING:
            return self.text(shown(key))
        kind = self.kind(key)
        if kind == GGUFValueType.ARRAY:
            raise self.broken(f"has lists of lists in {shown(key)}, which no model needs")
        size = 8 if kind == GGUFValueType.STRING else struct.calcsize(_NUMBERS[kind])
        count = self.count(f"entries of {shown(key)}", MOST_ENTRIES - self.entries, size)
        self.entries += count
        if kind == GGUFValueType.STRING:
            what = shown(key)
            return [self.text(what) for _ in range(count)]
        values = np.frombuffer(self.bytes, f"<{_NUMBERS[kind]}", count, self.place)
        self.place += count * size
        return values.tolist()

    def kind(self, key: str) -> GGUFValueType:
        number = self.number("I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.broken(f"has {shown(key)} of the type {number}, which GGUF doesn't have") from None

    def places(self, count: int, alignment: Any) -> dict[str, Place]:
        """Where each of `count` tensors lies. alignment: every offset is a multiple of it."""
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.broken(f"has general.alignment {shown(alignment)}, and allowed are powers of two from 8")
        listed = {}
        for _ in range(count):
            name, (shape, kind, offset) = self.text("a tensor's name"), self.tensor()
            if name in listed:
                raise self.broken(f"has the tensor {shown(name)} twice")
            listed[name] = shape, kind, offset
        start = -(-self.place // alignment) * alignment
        places = {name: self.placed(name, *each, start, alignment) for name, each in listed.items()}
        for (name, place), (other, following) in pairwise(sorted(places.items(), key=lambda each: each[1].start)):
            if place.start + place.nbytes > following.start:
                raise self.broken(f"has {shown(name)} and {shown(other)} in the same bytes")
        return places

    def tensor(self) -> tuple[tuple[int, ...], int, int]:
        """(a tensor's shape in torch's order, the number of its type, its offset)"""
        dimensions = self.number("I")
        if dimensions > 4:
            raise self.broken(f"has a tensor of {dimensions} dimensions at byte {self.place}, and allowed are 4")
        shape = [self.number("Q") for _ in range(dimensions)]
        return tuple(reversed(shape)) or (1,), self.number("I"), self.number("Q")

    def placed(self, name: str, shape: tuple[int, ...], number: int, offset: int, start: int, alignment: int) -> Place:
        try:
            kind = GGMLQuantizationType(number)
            elements, _ = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            kind = None
        if kind not in STORED:
            raise UnsupportedModel(
                f"{self.path} has {shown(name)} in {kind.name if kind else f'an unknown type, {number}'}, and "
                f"{', '.join(each.name for each in STORED)} are read: fetch the model as Q4_K_M, Q5_K_M, Q6_K or Q8_0"
            )
        if min(shape) < 1 or shape[-1] % elements:
            raise self.broken(
                f"has {shown(name)} of shape {shown(shape)}, and rows of {kind.name} are multiples of {elements}"
            )
        place = Place(self.path, start + offset, shape, kind)
        if place.start + place.nbytes > self.size:
            raise self.broken(
                f"has {self.size} bytes, and {shown(name)} takes {shown(place.nbytes)} from byte "
                f"{shown(place.start)} on"
            )
        if offset % alignment:
            raise self.broken(f"has {shown(name)} at offset {offset}, and allowed are multiples of {alignment}")
        return place
