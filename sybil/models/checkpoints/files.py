"""JSON files of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sybil.errors import NotAModel


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
