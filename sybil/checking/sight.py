"""What a name stands for, as far as its config and headers tell it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sybil.checking import remote
from sybil.errors import NotAModel
from sybil.loading import read
from sybil.models import folders
from sybil.models.folders import Checkpoint


def seen(source: str, *, tokenizer: bool = False, revision: str | None = None) -> tuple[Checkpoint, bool]:
    """A model's checkpoint, and whether its weights are on this machine. Of a model on the hub no weight is fetched.
    tokenizer: whether its tokenizer is to be known; one that is here always is.

    Raises the errors of sybil.errors."""
    if not _is_file_on_hub(source):
        if folders.here(source) is not None:
            return read(source, revision=revision), True
        cached = _cached(source, revision)
        if cached is not None:
            return cached, True
    return remote.read(source, tokenizer=tokenizer, revision=revision), False


def _is_file_on_hub(source: str) -> bool:
    """Whether it is ID/FILE.gguf, and no file that is here."""
    named = source.endswith(".gguf") and source.count("/") > 1 and not source.startswith((".", "/", "~", "ollama:"))
    return named and not Path(source).exists()


def _cached(name: str, revision: str | None) -> Checkpoint | None:
    """The checkpoint of a hub id, where all of it is in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return replace(folders.read(Path(snapshot_download(name, revision=revision, local_files_only=True))), name=name)
    except (LocalEntryNotFoundError, HFValidationError, NotAModel):
        return None
