"""Finds the GGUF file of a model that Ollama has on this machine, by its manifest. No server is asked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sybil.errors import NotAModel, one_line
from sybil.models.checkpoints.files import is_there, read_json

PREFIX = "ollama:"
MODELS = "OLLAMA_MODELS"
FOLDERS = ("~/.ollama/models", "/usr/share/ollama/.ollama/models")
"""The folders of models if the environment variable isn't set: the user's own, and the service's."""
MANIFEST_BYTES, MOST_LAYERS, LISTED = 1 << 20, 1000, 10
_MODEL, _ADAPTER = "application/vnd.ollama.image.model", "application/vnd.ollama.image.adapter"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def file(name: str) -> Path:
    """The file of [[HOST/]NAMESPACE/]MODEL[:TAG], as `ollama list` names it. Raises NotAModel."""
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon is before a port, or there is no tag
        path, tag = name, "latest"
    parts = [*path.split("/"), tag]
    if not 2 <= len(parts) <= 4 or not all(map(_PART.fullmatch, parts)):
        raise NotAModel(f"{PREFIX}{one_line(name, 80)} is no name of a model: give one as `ollama list` shows it")
    found = [manifest for root in _roots() for manifest in _manifests(root, parts)]
    if not found:
        raise NotAModel(f"Ollama has no model {one_line(name, 80)} on this machine: {_there()}")
    if len(found) > 1 and len({manifest.parents[2].name for manifest in found}) > 1:
        hosts = ", ".join(sorted({manifest.parents[2].name for manifest in found}))
        raise NotAModel(f"Ollama has {one_line(name, 80)} from {hosts}: put one of these before the name")
    return _blob(found[0], name)


def _roots() -> list[Path]:
    named = os.environ.get(MODELS)
    return [Path(folder).expanduser() for folder in ((named,) if named else FOLDERS)]


def _manifests(root: Path, parts: list[str]) -> Iterator[Path]:
    """The manifests HOST/NAMESPACE/MODEL/TAG of a name, of any host if the name has none."""
    hosts, parts = (parts[:1], parts[1:]) if len(parts) == 4 else (_names(root / "manifests"), parts)
    for host in hosts:
        path = root.joinpath("manifests", host, *(parts if len(parts) == 3 else ["library", *parts]))
        try:
            if path.is_file():
                yield path
        except OSError:  # another user's folder
            continue


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _there() -> str:
    """The models that Ollama has, for a message."""
    names = []
    for root in _roots():
        base = root / "manifests"
        for host in _names(base):
            for space in _names(base / host):
                for model in _names(base / host / space):
                    whole = model if space == "library" else f"{host}/{space}/{model}"
                    names += [f"{whole}:{tag}" for tag in _names(base / host / space / model)]
    if not names:
        return f"nothing lies in {' or '.join(map(str, _roots()))}; set {MODELS}, or `ollama pull` it"
    more = f" and {len(names) - LISTED} others" if len(names) > LISTED else ""
    return f"it has {one_line(', '.join(names[:LISTED]), 400)}{more}; `ollama pull` it, or use one of these"


def _blob(manifest: Path, name: str) -> Path:
    """The file that a manifest names as the model. Raises NotAModel."""
    said = one_line(name, 80)
    layers = read_json(manifest, MANIFEST_BYTES).get("layers")
    kinds: dict[Any, Any] = {}
    if isinstance(layers, list) and len(layers) <= MOST_LAYERS and all(isinstance(each, dict) for each in layers):
        kinds = {str(each.get("mediaType")): each.get("digest") for each in reversed(layers)}
    if _ADAPTER in kinds:
        raise NotAModel(f"{PREFIX}{said} has an adapter beside its weights, which Sybil doesn't apply: use its base")
    digest = kinds.get(_MODEL)
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise NotAModel(f"{manifest} names no weights: `ollama pull {said}` again")
    blob = manifest.parents[4] / "blobs" / digest.replace(":", "-")
    if not is_there(blob):
        raise NotAModel(f"{blob} isn't there, the weights of {said}: `ollama pull {said}` again")
    return blob
