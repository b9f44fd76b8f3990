"""Whether a model's weights are on this machine. Only the disk is searched; the hub isn't asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sybil.errors import NotAModel
from sybil.models.checkpoints import ollama, safetensors
from sybil.models.checkpoints.gguf import names
from sybil.models.folders import EMBEDDED, PACKAGED, packaged_file

Place = Literal["embedded", "package", "ollama", "file", "folder", "cache"]
"""Where weights lie: in Sybil's own package, in another package, in a local Ollama, in a GGUF file, in a folder, or in
the hub's local cache."""


def place(source: str) -> Place | None:
    """Where the weights of a model lie; None where some of them aren't on this machine. source: the name that
    sybil.load takes."""
    if source.startswith(EMBEDDED):
        return "embedded"
    if source.startswith(PACKAGED):
        return "package" if packaged_file(source) else None
    try:
        if source.startswith(ollama.PREFIX):
            ollama.file(source.removeprefix(ollama.PREFIX))
            return "ollama"
        path = Path(source).expanduser()
        if path.is_dir():
            return "folder" if names.within(path) or safetensors.weight_files(path) else None
        if names.is_one(path):
            return "file"
        return "cache" if _is_cached(source) else None
    except (NotAModel, OSError, RuntimeError):  # pathlib raises RuntimeError where a home doesn't exist
        return None


def _is_cached(name: str) -> bool:
    """Whether the hub's local cache holds a hub id's config and all files of its weights. Raises NotAModel."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # the name isn't a hub id
        return False
    return isinstance(config, str) and bool(safetensors.weight_files(Path(config).parent))
