"""Sybil's weights by Sybil's names, each made of stored tensors when it is asked for.

families.py has the names of the stored tensors. sources.py describes how Sybil's weights are made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sybil.errors import WeightsMismatch, shown
from sybil.models.checkpoints.sources import Family, Source
from sybil.models.shape import Shape
from sybil.models.storage import Blocks, BlockStorage

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Stored(Protocol):
    """Tensors by name. Their shapes and dtypes are known before any is read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def dtypes(self) -> Mapping[str, torch.dtype | str]:
        """The dtype of each tensor, or the file's word for it where torch has no such dtype."""

    @property
    def storages(self) -> Mapping[str, BlockStorage]:
        """The storage of each weight (outputs, inputs) that is stored in blocks. No weight is read to know it."""

    @property
    def nbytes(self) -> int:
        """The bytes that the tensors take where they are stored."""

    @property
    def lasting(self) -> bool:
        """Whether a tensor that was read may be kept without a copy."""

    @property
    def norms_are_whole(self) -> bool:
        """Whether norms' weights are stored with their family's offset already added (1 in Gemma's families)."""

    def read(self, name: str) -> Tensor:
        """The tensor. One that is stored in blocks is given in float32."""

    def blocks(self, name: str) -> Blocks | None:
        """A weight (outputs, inputs) in its file's blocks; None where it isn't stored in blocks."""


class State:
    """Tensors in memory."""

    lasting = True
    norms_are_whole = False
    storages: Mapping[str, BlockStorage] = {}

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes: Mapping[str, torch.dtype | str] = {name: tensor.dtype for name, tensor in tensors.items()}
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())

    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    def blocks(self, name: str) -> Blocks | None:
        return None


class Watched:
    """Stored tensors that report each tensor's number of bytes when it is read for the first time."""

    def __init__(self, stored: Stored, tell: Callable[[int], object]) -> None:
        self._stored, self._tell, self._unread = stored, tell, set(stored.shapes)
        self.shapes, self.dtypes, self.nbytes = stored.shapes, stored.dtypes, stored.nbytes
        self.lasting, self.norms_are_whole, self.storages = stored.lasting, stored.norms_are_whole, stored.storages
        numbers = sum(map(math.prod, stored.shapes.values()))
        self._bytes_a_number = stored.nbytes / max(1, numbers)

    def read(self, name: str) -> Tensor:
        self._told(name)
        return self._stored.read(name)

    def blocks(self, name: str) -> Blocks | None:
        blocks = self._stored.blocks(name)
        if blocks is not None:
            self._told(name)
        return blocks

    def _told(self, name: str) -> None:
        if name in self._unread:
            self._unread.remove(name)
            self._tell(round(math.prod(self.shapes[name]) * self._bytes_a_number))


class Weights(Mapping[str, Tensor]):
    """Sybil's weights by name, each made of stored tensors when it is asked for."""

    def __init__(self, sources: Mapping[str, Source], stored: Stored, dtype: torch.dtype, device: torch.device) -> None:
        self.sources, self.stored, self.dtype, self.device = sources, stored, dtype, device

    def __contains__(self, name: object) -> bool:
        return name in self.sources

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, name: str) -> Tensor:
        source, stored = self.sources[name], self.stored
        dtype = source.kept_in(self.dtype)
        if stored.lasting and source.is_stored_so:
            return stored.read(source.parts[0][0]).to(self.device, dtype).contiguous()
        whole, row = torch.empty(source.size, dtype=dtype, device=self.device), 0
        for theirs, _ in source.parts:
            part = source.arranged(stored.read(theirs), dtype)
            whole[row : row + len(part)] = part
            row += len(part)
        return whole

    def blocks(self, name: str) -> tuple[Blocks, ...] | None:
        """The blocks of the stored tensors that one of Sybil's weights is made of, with rows in Sybil's order.

        None where a tensor isn't in blocks, or must be transposed or have an offset, which isn't possible in blocks."""
        source = self.sources[name]
        parts = [
            None if source.transposed or source.offset else self.stored.blocks(theirs) for theirs, _ in source.parts
        ]
        found = [
            replace(part, numbers=source.arranged(part.numbers, part.numbers.dtype))
            for part in parts
            if part is not None
        ]
        return tuple(found) if len(found) == len(parts) else None


def in_blocks(stored: Stored) -> bool:
    """Whether any of the weights are stored in blocks."""
    return bool(stored.storages)


def arrange(
    name: str,
    config: Mapping[str, Any],
    known: tuple[Family, Shape],
    stored: Stored,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Shape, Weights]:
    """A checkpoint's shape, corrected by its stored tensors, and its weights in dtype on the device.

    Raises WeightsMismatch where a tensor is missing, or has another size, or isn't of floating-point numbers."""
    shape, sources = sources_of(name, config, known, stored)
    return shape, Weights(sources, stored, dtype, device)


def sources_of(
    name: str, config: Mapping[str, Any], known: tuple[Family, Shape], stored: Stored, *, unread: bool = False
) -> tuple[Shape, dict[str, Source]]:
    """A checkpoint's shape, corrected by its stored tensors, and the source of each of Sybil's weights.

    unread: read no tensor. If the config ties head and embedding, and yet a head is stored, the two are then assumed to
    be the same. Raises WeightsMismatch as arrange() does."""
    family, shape = known
    prefix = family.prefix(stored.shapes)
    embedding = prefix + family.embedding
    head = next((name for name in family.head if name in stored.shapes), family.head[0])
    if shape.tied_head and head in stored.shapes:  # transformers goes by what is stored then, and so does Sybil
        if embedding not in stored.shapes:
            embedding = head
        elif not unread and not _equal(stored, embedding, head):
            shape = replace(shape, tied_head=False)
    sources = {}
    for ours, source in family.sources(config, shape, prefix, embedding, head, stored.norms_are_whole):
        for theirs, size in source.parts:
            _check(name, stored, theirs, size)
        sources[ours] = source
    return shape, sources


def _check(name: str, stored: Stored, theirs: str, size: tuple[int, ...]) -> None:
    """Checks that a stored tensor exists, with that size and a dtype that a weight may have. Raises WeightsMismatch."""
    if theirs not in stored.shapes:
        raise WeightsMismatch(
            f"{name} lacks the weight {theirs}, which its config asks for: the two don't belong together"
        )
    if stored.shapes[theirs] != size:
        raise WeightsMismatch(
            f"{name}: {theirs} has shape {shown(stored.shapes[theirs])} where its config asks for {size}: "
            "mend config.json or fetch the weights that belong to it"
        )
    if stored.dtypes[theirs] not in FLOATS:
        raise WeightsMismatch(
            f"{name}: {theirs} is of {str(stored.dtypes[theirs]).removeprefix('torch.')}, and a weight is of float64, "
            "float32, float16 or bfloat16: export the model in one of these"
        )


def _equal(stored: Stored, one: str, other: str) -> bool:
    if stored.shapes[one] != stored.shapes[other] or not {stored.dtypes[one], stored.dtypes[other]} <= {*FLOATS}:
        return False
    return torch.equal(stored.read(one), stored.read(other))
