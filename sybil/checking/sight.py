"""The model that a name stands for, as far as its config and the headers of its weights tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sybil.checking import remote
from sybil.errors import NotAModel
from sybil.loading import read
from sybil.models import folders
from sybil.models.folders import Checkpoint


def seen(source: str, *, tokenizer: bool = False, revision: str | None = None) -> tuple[Checkpoint, bool]:
    """A model's checkpoint, and whether its weights are on this machine. No weight is fetched from the hub. tokenizer:
    whether to fetch the tokenizer of a model on the hub; the tokenizer of a local model is always read.

    Raises the errors of sybil.errors."""
    if not _is_file_on_hub(source):
        if folders.here(source) is not None:
            return read(source, revision=revision), True
        cached = _cached(source, revision)
        if cached is not None:
            return cached, True
    return remote.read(source, tokenizer=tokenizer, revision=revision), False


def _is_file_on_hub(source: str) -> bool:
    """Whether source has the form ID/FILE.gguf and isn't a local file."""
    named = source.endswith(".gguf") and source.count("/") > 1 and not source.startswith((".", "/", "~", "ollama:"))
    return named and not Path(source).exists()


def _cached(name: str, revision: str | None) -> Checkpoint | None:
    """The checkpoint of a hub id whose files are all in the local cache; None otherwise."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return replace(folders.read(Path(snapshot_download(name, revision=revision, local_files_only=True))), name=name)
    except (LocalEntryNotFoundError, HFValidationError, NotAModel):
        return None
