"""Reads the JSON files of a model's folder. They must be regular files of a bounded size: all else raises NotAModel."""

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
    """The folder's config.json. Raises NotAModel where there is none or it is no JSON object."""
    if not is_there(folder / "config.json"):
        raise NotAModel(
            f"{folder} holds no config.json and no GGUF file: give a Hugging Face model folder, a "
            "GGUF file, or a hub id"
        )
    return read_json(folder / "config.json")


def is_there(path: Path) -> bool:
    """Whether path exists, even if it can't be read. Raises NotAModel where that can't be told."""
    try:
        path.stat()
    except FileNotFoundError:  # also a link that points to nothing
        return False
    except OSError as error:
        raise NotAModel(f"{path} can't be read ({error.strerror}): mend its permissions or download it again") from None
    return True


def check_regular(path: Path) -> int:
    """The size in bytes of a regular file, or of one that a link points to, as in the hub's cache. Raises NotAModel."""
    try:
        status = path.stat()
    except OSError as error:
        raise NotAModel(f"{path} can't be read ({error.strerror}): download it again") from None
    if not stat.S_ISREG(status.st_mode):
        raise NotAModel(f"{path} is no regular file: put the file itself there")
    return status.st_size


def check_folder(folder: Path) -> None:
    """Checks that no file in the folder would block a reader, as a pipe does. Raises NotAModel."""
    for path in sorted(folder.iterdir()):
        if path.suffix in READABLE and is_there(path):
            check_regular(path)


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """A file's text. most: the most bytes that it may have. Raises NotAModel."""
    size = check_regular(path)
    if size > most:
        raise NotAModel(f"{path} has {size} bytes, and at most {most} are read: download it again")
    try:
        return path.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise NotAModel(f"{path} can't be read as UTF-8 text ({told(error)}): download it again") from None


def read_json(path: Path, most: int = JSON_BYTES) -> dict[str, Any]:
    """A file's JSON object. most: the most bytes that the file may have. Raises NotAModel."""
    return parsed(path, read_text(path, most))


def parsed(path: Path, text: str, hook: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file's text. hook: json.loads' object_hook. Raises NotAModel for any other text."""
    try:
        content = json.loads(text, object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise NotAModel(f"{path} can't be read as JSON ({told(error)}): export the model again") from None
    if not isinstance(content, dict):
        raise NotAModel(f"{path} holds no JSON object: export the model again")
    return content
