"""Hugging Face folders into a model of our own: config.json, *.safetensors, nothing executed.

What the stored tensors are called is said in models.families. They are read one at a time, so that loading takes
little more memory than the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sybil.errors import NotAModel, SybilError, UnsupportedModel, WeightsMismatch
from sybil.models import Model, native
from sybil.models.families import Source, understand
from sybil.models.shape import Shape
from sybil.models.transformer import Transformer

INDEX = "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; raises NotAModel where there is none or it is no JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise NotAModel(f"{folder} holds no config.json: give a Hugging Face model folder or a hub id")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; raises NotAModel."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise NotAModel(f"{path} can't be read as JSON ({error}): export the model again") from None
    if not isinstance(content, dict):
        raise NotAModel(f"{path} holds no JSON object: export the model again")
    return content


def understands(config: Mapping[str, Any]) -> bool:
    """Whether our own forward knows the config's family and options."""
    try:
        understand(config)
    except UnsupportedModel:
        return False
    except WeightsMismatch:  # numbers that contradict each other: load() says so better than transformers
        return True
    return True


def load(folder: Path, dtype: torch.dtype, device: torch.device) -> Model:
    """The folder's model; raises NotAModel, UnsupportedModel or WeightsMismatch."""
    return _assemble(read_config(folder), _Folder(folder), dtype, device, str(folder))


def from_state(
    config: Mapping[str, Any], stored: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, name: str
) -> Model:
    """A transformers model's state dict, with its head or without. Transformer shares its memory where it can."""
    return _assemble(config, _State(stored), dtype, device, name)


def build(shape: Shape, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Model:
    """The forward for a shape: in one call on a CPU where native.c can be built, by torch's operators elsewhere.

    weights: in dtype, float32 for int8; they may be made as they are asked for, each once."""
    if device.type == "cpu" and dtype in native.STORAGES and native.library.load():
        return native.NativeTransformer(shape, weights, dtype)
    return Transformer(shape, weights, "int8" if dtype == torch.int8 else None)


class _Stored(Protocol):
    """Tensors by name; their shapes are known before any is read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def lasting(self) -> bool:
        """Whether a tensor may be kept as it is read."""

    def read(self, name: str) -> Tensor: ...


class _State:
    """Tensors in memory."""

    lasting = True

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


class _Folder:
    """Tensors in a folder's files. A file stays mapped into memory as long as a tensor read from it lives."""

    lasting = False

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in _weight_files(folder):
            with _opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118  no dict
                    self.files[name] = file
                    self.shapes[name] = tuple(tensors.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        with _opened(self.files[name]) as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if (folder / INDEX).exists():
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict):
            raise NotAModel(f"{folder / INDEX} holds no weight_map: download or export it again")
        files = sorted({folder / str(name) for name in names.values()})
        missing = [file for file in files if not file.exists()]
        if missing:
            raise NotAModel(
                f"{folder} lacks {missing[0].name}, one of {len(files)} files that {INDEX} names: download it again"
            )
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise NotAModel(f"{folder} holds no *.safetensors: Sybil reads weights from safetensors only")
    return files


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise NotAModel(f"{file} is not a safetensors file ({error}): download or export it again") from None


class _Weights(Mapping[str, Tensor]):
    """Our weights, each made of the stored ones when it is asked for."""

    def __init__(
        self, sources: Mapping[str, Source], stored: _Stored, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.sources, self.stored, self.dtype, self.device = sources, stored, dtype, device

    def __contains__(self, name: object) -> bool:
        return name in self.sources

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, name: str) -> Tensor:
        source, stored = self.sources[name], self.stored
        if stored.lasting and source.is_stored_so:
            return stored.read(source.parts[0][0]).to(self.device, self.dtype).contiguous()
        whole, row = torch.empty(source.size, dtype=self.dtype, device=self.device), 0
        for theirs, _ in source.parts:
            part = source.arranged(stored.read(theirs))
            whole[row : row + len(part)] = part
            row += len(part)
        return whole


def _assemble(config: Mapping[str, Any], stored: _Stored, dtype: torch.dtype, device: torch.device, name: str) -> Model:
    try:
        family, shape = understand(config)
    except SybilError as error:
        raise type(error)(f"{name}: {error}") from None
    prefix = family.prefix(stored.shapes)
    embedding = prefix + family.embedding
    head = next((name for name in family.head if name in stored.shapes), family.head[0])
    if shape.tied_head and head in stored.shapes:  # then transformers goes by what is stored, and so do we
        if embedding not in stored.shapes:
            embedding = head
        elif not _equal(stored, embedding, head):
            shape = replace(shape, tied_head=False)
    sources = family.sources(config, shape, prefix, embedding, head)
    for theirs, size in (part for source in sources.values() for part in source.parts):
        if theirs not in stored.shapes:
            raise WeightsMismatch(
                f"{name} lacks the weight {theirs}, which its config asks for: the two don't belong together"
            )
        if stored.shapes[theirs] != size:
            raise WeightsMismatch(
                f"{name}: {theirs} has shape {stored.shapes[theirs]} where its config asks for {size}: "
                "mend config.json or fetch the weights that belong to it"
            )
    read_as = torch.float32 if dtype == torch.int8 else dtype
    return build(shape, _Weights(sources, stored, read_as, device), dtype, device)


def _equal(stored: _Stored, one: str, other: str) -> bool:
    return stored.shapes[one] == stored.shapes[other] and torch.equal(stored.read(one), stored.read(other))
