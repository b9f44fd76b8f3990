"""Reads the tensors of a folder's *.safetensors files. Nothing in them is executed.

Tensors are read one at a time, so that loading takes little more memory than the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sybil.errors import NotAModel, shown, told
from sybil.models.checkpoints.fields import Fields
from sybil.models.checkpoints.files import check_regular, is_there, read_json
from sybil.models.storage import Blocks, BlockStorage

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_BYTES = 64 << 20
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Folder:
    """The tensors in a folder's files. A file stays mapped into memory as long as a tensor that was read from it."""

    lasting = False
    norms_are_whole = False
    storages: Mapping[str, BlockStorage] = {}

    def __init__(self, folder: Path, only: str | None = None) -> None:
        """only: the name of a single file to read. Raises NotAModel where a file is missing or broken."""
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype | str] = {}
        self.nbytes = 0
        index = {} if only else _index(folder)
        for file in [folder / only] if only else _weight_files(folder, index):
            self.nbytes += check_regular(file)
            with _opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118  no dict
                    if index.get(name, file) == file:
                        self._add(name, file, tensors.get_slice(name))

    def _add(self, name: str, file: Path, tensor: Any) -> None:
        if name in self.files:
            raise NotAModel(
                f"{self.files[name]} and {file.name} both hold {shown(name)}: remove the file that isn't the model's"
            )
        self.files[name] = file
        self.shapes[name] = tuple(tensor.get_shape())
        self.dtypes[name] = DTYPES.get(tensor.get_dtype(), tensor.get_dtype())

    def read(self, name: str) -> Tensor:
        with _opened(self.files[name]) as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor

    def blocks(self, name: str) -> Blocks | None:
        return None


def weight_files(folder: Path) -> list[Path]:
    """The paths of a folder's weight files, which aren't opened. Raises NotAModel where one is missing."""
    return _weight_files(folder, _index(folder))


def _index(folder: Path) -> dict[str, Path]:
    """The file of each tensor, by the folder's index. It is in the folder, and may be a link, as in the hub's cache."""
    if is_there(folder / WHOLE) or not is_there(folder / INDEX):
        return {}
    content = read_json(folder / INDEX, INDEX_BYTES)
    names = Fields(content, where=str(folder / INDEX))["weight_map"]
    for tensor, file in names.items():
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\\" in file or path.suffix != ".safetensors":
            raise NotAModel(
                f"{folder / INDEX} puts {shown(tensor)} into {shown(file)}, and allowed is a *.safetensors file of the "
                "folder: download it again"
            )
    return {tensor: folder / file for tensor, file in names.items()}


def _weight_files(folder: Path, index: dict[str, Path]) -> list[Path]:
    if is_there(folder / WHOLE):
        return [folder / WHOLE]
    if index:
        files = sorted({*index.values()})
        missing = [file for file in files if not is_there(file)]
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
        raise NotAModel(f"{file} is not a safetensors file ({told(error)}): download or export it again") from None
