"""Computes the memory that loading a checkpoint would take, before any weight is read, and refuses what can't fit."""

from __future__ import annotations

from typing import cast

import torch

from sybil import allocation, budget
from sybil.models import native
from sybil.models.checkpoints.weights import sources_of
from sybil.models.folders import Checkpoint
from sybil.models.operators.linear import can_pack
from sybil.models.shape import Shape
from sybil.models.storage import FORMATS, QUANTISED, Kept, Rounding, Storage, storage_of


def weights(checkpoint: Checkpoint, kept: Kept, foreign_dtype: torch.dtype, device: torch.device) -> budget.WeightBytes:
    """The memory of the checkpoint's weights as building.load() would load them. Raises WeightsMismatch."""
    assert checkpoint.stored is not None
    if checkpoint.known is None:
        quantised = bool(checkpoint.config.get("quantization_config"))
        return budget.foreign(checkpoint.stored, foreign_dtype, quantised=quantised)
    kept = storage_of(foreign_dtype) if kept == "stored" and not has_native(device) else kept
    shape, sources = sources_of(checkpoint.name, checkpoint.config, checkpoint.known, checkpoint.stored, unread=True)
    return budget.weights(shape, sources, checkpoint.stored, resolved(kept, device)[0], engine(kept, device))


def fitting(checkpoint: Checkpoint, tokens: int, device: torch.device) -> int:
    """The peak, in bytes, while the weights of a copy in few bits are fitted to a text of so many tokens."""
    assert checkpoint.known
    assert checkpoint.stored
    shape, sources = sources_of(checkpoint.name, checkpoint.config, checkpoint.known, checkpoint.stored, unread=True)
    return budget.fitting(shape, sources, checkpoint.stored, tokens, engine("float32", device))


def shape_of(checkpoint: Checkpoint) -> Shape | None:
    """The checkpoint's shape, corrected by its tensors; None where Sybil's own forward doesn't know the model."""
    if checkpoint.known is None or checkpoint.stored is None:
        return None
    return sources_of(checkpoint.name, checkpoint.config, checkpoint.known, checkpoint.stored, unread=True)[0]


def engine(kept: Kept, device: torch.device) -> budget.Engine:
    """The forward that computes with weights in that storage on a device."""
    kept, is_native = resolved(kept, device)
    if is_native:
        library = native.library.load()
        assert library is not None
        return budget.Engine(library.sybil_lanes())
    on_host = device.type == "cpu"
    if isinstance(kept, Rounding) or kept not in FORMATS or kept == "int8" or not on_host:
        return budget.Engine(0, on_host=on_host)
    return budget.Engine(0, can_pack(torch.empty(0, dtype=dtype_of(kept, torch.float32), device="cpu")))


def resolved(kept: Kept, device: torch.device) -> tuple[Kept, bool]:
    """(the storage that the forward really uses for the one it is asked for, whether it is the C forward)"""
    if kept == "int8" and has_native(device):
        kept = Rounding(8)
    is_taken = isinstance(kept, Rounding) or kept in (*native.STORAGES, *QUANTISED, "stored")
    return kept, is_taken and has_native(device)


def has_native(device: torch.device) -> bool:
    """Whether the C forward can compute on a device."""
    return device.type == "cpu" and native.library.load() is not None


def choices(checkpoint: Checkpoint, device: torch.device) -> list[Kept]:
    """The storages to choose from for a target's weights on a device, the largest first. "stored" stands in place of
    rounding where the file has blocks of few bits already."""
    if not has_native(device):
        return ["float32", "bfloat16"] if device.type == "cpu" else ["float16", "bfloat16"]
    lying = checkpoint.stored is not None and bool(checkpoint.stored.storages)
    few: list[Kept] = ["q8_0", "q4_k"] if checkpoint.known else []
    return ["float32", "bfloat16", *(["stored"] if lying else few)]


def check_fits(checkpoint: Checkpoint, kept: Kept, foreign_dtype: torch.dtype, device: torch.device) -> None:
    """Raises OutOfMemory where building.load() needs more memory than is free. The message says what would fit."""
    stored = checkpoint.stored
    if stored is None or stored.lasting:  # an object's weights are there already
        return
    needed, found = weights(checkpoint, kept, foreign_dtype, device).needed, allocation.free(device)
    if found is not None and device.type == "cpu":
        found += allocation.spare()
    if found is None or needed <= found:
        return
    own = kept if checkpoint.known else storage_of(foreign_dtype)
    others = {
        budget.said(each): weights(checkpoint, each, dtype_of(each, foreign_dtype), device).needed
        for each in choices(checkpoint, device)
        if each != own
    }
    budget.check(checkpoint.name, own, needed, found, others)


def dtype_of(kept: Kept, otherwise: torch.dtype) -> torch.dtype:
    """The dtype of a storage; `otherwise` for a storage that isn't a dtype."""
    return FORMATS[cast(Storage, kept)].dtype if isinstance(kept, str) and kept in FORMATS else otherwise
