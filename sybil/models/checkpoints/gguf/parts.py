"""Reads the metadata and the tensors, by ggml's names, of a GGUF file or of a model that is split over several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sybil.errors import NotAModel, shown
from sybil.models.checkpoints.gguf import header
from sybil.models.checkpoints.gguf.header import Contents, Place
from sybil.models.checkpoints.gguf.names import PART


def read(path: Path) -> Contents:
    """What a file holds, joined with what its other parts hold where it is one of several. These lie beside it.

    Raises NotAModel where a file is broken or missing, UnsupportedModel where Sybil doesn't read a tensor's type."""
    one = header.read(path)
    count = _whole(one.metadata, "split.count", 1)
    if count in (0, 1):
        return one
    name = PART.fullmatch(path.name)
    if name is None or int(name[3]) != count:
        raise NotAModel(
            f"{path} is one of {shown(count)} parts, and its name doesn't say so: name them "
            f"NAME-00001-of-{count:05d}.gguf and so on"
        )
    tensors: dict[str, Place] = {}
    metadata: Mapping[str, Any] = {}
    for number in range(count):
        file = path.with_name(f"{name[1]}-{number + 1:05d}-of-{count:05d}.gguf")
        if not file.exists():
            raise NotAModel(f"{path} is one of {count} parts, and {file.name} isn't beside it: fetch it too")
        part = header.read(file)
        if _whole(part.metadata, "split.no", -1) != number or _whole(part.metadata, "split.count", 1) != count:
            raise NotAModel(f"{file} isn't part {number + 1} of {count}, as its name says: download it again")
        twice = sorted(tensors.keys() & part.tensors.keys())
        if twice:
            raise NotAModel(f"{file} holds {shown(twice[0])}, which another part holds too: download it again")
        tensors |= part.tensors
        metadata = metadata or part.metadata
    expected = _whole(metadata, "split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise NotAModel(f"{path} and its other parts hold {len(tensors)} tensors of {expected}: download them again")
    return Contents(metadata, tensors)


def _whole(metadata: Mapping[str, Any], key: str, default: int) -> int:
    value = metadata.get(key, default)
    return value if isinstance(value, int) else -1
