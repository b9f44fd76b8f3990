"""Tells which files are GGUF files, without importing the package gguf: that would take a tenth of a second."""

from __future__ import annotations

import re
from pathlib import Path

from sybil.errors import NotAModel, one_line

MAGIC = b"GGUF"
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def is_one(path: Path) -> bool:
    """Whether a path is a file that begins with the bytes GGUF or is named .gguf."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return path.suffix == ".gguf" or file.read(4) == MAGIC
    except OSError:
        return path.suffix == ".gguf"


def within(folder: Path) -> Path | None:
    """The GGUF file of a folder, or the first of its parts. None where the folder has no such file, or has a
    config.json.

    Raises NotAModel where the folder holds several GGUF files."""
    if (folder / "config.json").exists():
        return None
    firsts = [
        path for path in sorted(folder.glob("*.gguf")) if not (name := PART.fullmatch(path.name)) or int(name[2]) == 1
    ]
    if len(firsts) > 1:
        names = ", ".join(path.name for path in firsts[:5])
        raise NotAModel(f"{folder} holds {len(firsts)} GGUF files ({one_line(names)}): give one of them")
    return firsts[0] if firsts else None
