"""JSON files of a model's folder: regular files of a bounded size, or one line that says what they are instead."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sybil.errors import NotAModel, told

JSON_BYTES = 16 << 20
READABLE = (".json", ".safetensors", ".model", ".txt", ".jinja")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; raises NotAModel where there is none or it is no JSON object."""
    if not is_there(folder / "config.json"):
        raise NotAModel(
            f"{folder} holds no config.json and no GGUF file: give a Hugging Face model folder, a "
            "GGUF file, or a hub id"
        )
    return read_json(folder / "config.json")


def is_there(path: Path) -> bool:
    """Whether there is a file, and be it none that can be read; raises NotAModel where that can't be told."""
    try:
        path.stat()
    except FileNotFoundError:  # also a link that points to nothing
        return False
    except OSError as error:
        raise NotAModel(f"{path} can't be read ({error.strerror}): mend its permissions or download it again") from None
    return True


def check_regular(path: Path) -> int:
    """The size of a regular file or of one that a link points to, as the hub's cache has them; raises NotAModel."""
    try:
        status = path.stat()
    except OSError as error:
        raise NotAModel(f"{path} can't be read ({error.strerror}): download it again") from None
    if not stat.S_ISREG(status.st_mode):
        raise NotAModel(f"{path} is no regular file: put the file itself there")
    return status.st_size


def check_folder(folder: Path) -> None:
    """That nothing in the folder would keep a reader waiting, as a pipe does; raises NotAModel."""
    for path in sorted(folder.iterdir()):
        if path.suffix in READABLE and is_there(path):
            check_regular(path)


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """A file's text; most: how many bytes it may have. Raises NotAModel."""
    size = check_regular(path)
    if size > most:
        raise NotAModel(f"{path} has {size} bytes, and at most {most} are read: download it again")
    try:
        return path.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise NotAModel(f"{path} can't be read as UTF-8 text ({told(error)}): download it again") from None


def read_json(path: Path, most: int = JSON_BYTES) -> dict[str, Any]:
    """A file's JSON object; most: how many bytes it may have. Raises NotAModel."""
    return parsed(path, read_text(path, most))


def parsed(path: Path, text: str, hook: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """A file's text as the JSON object that it must be; hook: see json.loads. Raises NotAModel."""
    try:
        content = json.loads(text, object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise NotAModel(f"{path} can't be read as JSON ({told(error)}): export the model again") from None
    if not isinstance(content, dict):
        raise NotAModel(f"{path} holds no JSON object: export the model again")
    return content
