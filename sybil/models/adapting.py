"""Merges a LoRA adapter into a checkpoint, if the two belong together."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sybil.errors import AdapterMismatch, InvalidSetting, NotAModel
from sybil.models.checkpoints import adapters, hub
from sybil.models.checkpoints.adapters import REMEDY, Adapter, Merged
from sybil.models.folders import Checkpoint

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_HEAD = ("lm_head.weight",)
"""The names that a head's weight may have where Sybil doesn't know the family."""


def adapted(checkpoint: Checkpoint, adapter: str | Path, progress: bool | None = None) -> Checkpoint:
    """The checkpoint with a LoRA adapter merged into its weights. adapter: a folder or a hub id, in peft's format.
    progress: see sybil.progress.

    Raises AdapterMismatch where the two don't belong together, InvalidSetting where the checkpoint is a model object, a
    GGUF file or quantised, and NotAModel, GatedModel or HubUnreachable where the adapter can't be had."""
    stored, known = checkpoint.stored, checkpoint.known
    if checkpoint.folder is None or stored is None or checkpoint.config.get("quantization_config"):
        kind = "an object" if checkpoint.model else "a GGUF file" if checkpoint.file else "quantised"
        raise InvalidSetting(
            f"adapter is given and {checkpoint.name} is {kind}: give the Hugging Face folder or the hub id of the "
            f"adapter's base in floating-point numbers, or {REMEDY}"
        )
    found = adapters.read(_located(adapter, progress), str(adapter))
    _check_base(checkpoint, found)
    layers = known[0].prefix(stored.shapes) + known[0].layer.split("{")[0] if known else ""

    def is_transposed(name: str) -> bool:
        return known[0].transposed and name.startswith(layers) if known else found.transposed

    merged = Merged(stored, found, is_transposed, known[0].head if known else _HEAD)
    _check_tied(checkpoint, merged, found.name)
    return replace(checkpoint, stored=merged, adapter=found.name)


def _located(adapter: str | Path, progress: bool | None) -> Path:
    """The adapter's folder. A hub id is fetched."""
    name, folder = str(adapter), Path(adapter).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(adapter, Path) or not _HUB_ID.fullmatch(name):
        raise NotAModel(f"the adapter {name} is no folder: give an adapter's folder or its hub id")
    return hub.fetch(name, adapters.FILES, None, progress, "adapter")


def _check_base(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """Raises AdapterMismatch where the adapter was made for another model of the hub than the target. Owners may
    differ, since mirrors hold the same models. A folder's name says nothing, so it isn't compared."""
    base, target = adapter.base or "", checkpoint.name
    if not (_HUB_ID.fullmatch(base) and _HUB_ID.fullmatch(target)) or Path(target).exists():
        return
    ours, theirs = (name.rpartition("/")[2].casefold() for name in (target, base))
    if ours != theirs:
        raise AdapterMismatch(
            f"the adapter {adapter.name} was made for {base} and the target is {target}: use that target; if both have "
            "the same weights, give the target's folder"
        )


def _check_tied(checkpoint: Checkpoint, merged: Merged, adapter: str) -> None:
    """Raises AdapterMismatch where the target has one weight for embedding and head, and the adapter changes only one
    of the two: it isn't known whether the other one should change as well."""
    if checkpoint.known:
        family, shape = checkpoint.known
        tied, heads, embeddings = shape.tied_head, {*family.head}, {family.prefix(merged.shapes) + family.embedding}
    else:
        tied, heads = checkpoint.config.get("tie_word_embeddings", True), {*_HEAD}
        rows = (checkpoint.config.get("vocab_size"),)
        embeddings = {name for name in merged.replaced if merged.shapes[name][:1] == rows} - heads
    brings_head = bool(heads & {*merged.replaced})
    alone = [name for name in merged.replaced if name in embeddings and not brings_head]
    alone += [name for name in merged.updated if name in heads]
    if tied and alone:
        raise AdapterMismatch(
            f"the adapter {adapter} changes {alone[0]}, and the target's head is its embedding: {REMEDY}"
        )
