"""Tensors of a folder's *.safetensors files, nothing executed.

They are read one at a time, so that loading takes little more memory than the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sybil.errors import NotAModel
from sybil.models.checkpoints.files import read_json

INDEX = "model.safetensors.index.json"


class Folder:
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
