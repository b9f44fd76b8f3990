"""Decides, by what a caller asks for, the storage of a model's weights and the dtype that the model computes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from sybil.devices import (
    AUTO,
    DTYPES,
    INT4,
    Asked,
    default_draft_dtype,
    default_dtype,
    fitting,
    is_few,
    listed,
    word_of,
)
from sybil.errors import InvalidSetting
from sybil.models import building
from sybil.models.checkpoints.weights import in_blocks
from sybil.models.folders import Checkpoint
from sybil.models.storage import BlockStorage, Kept, Rounding, storage_of

_INT4 = Rounding(4, {"token_embedding": 6, "head": 6})
"""The rounding that int4 stands for in a draft. (For int8 there is a storage of that name.)"""
_BLOCKS: Mapping[object, BlockStorage] = {torch.int8: "q8_0", INT4: "q4_k"}
"""The block types that int8 and int4 stand for in a target."""


def dtype_of(checkpoint: Checkpoint, asked: Asked, device: torch.device) -> torch.dtype:
    """The dtype that a checkpoint is computed in: the dtype asked for; the checkpoint's own for "auto" and for a model
    object; or the device's default, adapted by devices.fitting(). Quantised weights are computed in float32. Raises
    InvalidSetting."""
    if is_few(asked):
        return torch.float32
    if isinstance(asked, torch.dtype):
        return asked
    if checkpoint.model is not None:
        from sybil.models.objects import inside

        own = inside(checkpoint.model).dtype
        return own if own in DTYPES.values() else default_dtype(device)
    if asked is None or _in_blocks(checkpoint):
        return _fitting(checkpoint, default_dtype(device), device)
    return _stored_dtype(checkpoint)


def _fitting(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """See devices.fitting(). A model object keeps its dtype."""
    if checkpoint.model is not None:
        return dtype
    stored = None if _in_blocks(checkpoint) else DTYPES.get(_named_dtype(checkpoint))
    return fitting(dtype, device, stored, checkpoint.config.get("model_type"))


def storage(checkpoint: Checkpoint, asked: Asked, usual: torch.dtype, is_draft: bool = False) -> Kept:
    """The storage of a model's weights. Where no dtype is asked for, weights stay in the file's own blocks if the file
    has blocks; usual: the dtype of the weights otherwise."""
    if asked in (None, AUTO):
        if _in_blocks(checkpoint):
            return "stored"
        asked = usual
    if is_draft and asked in (torch.int8, INT4):
        return "int8" if asked == torch.int8 else _INT4
    if isinstance(asked, torch.dtype) and asked not in _BLOCKS:
        return storage_of(asked)
    return _BLOCKS.get(asked) or cast(BlockStorage, asked)


def target_kept(checkpoint: Checkpoint, asked: Asked, device: torch.device) -> tuple[Kept, torch.dtype]:
    """(the storage of a target's weights, the dtype that it computes in). Raises InvalidSetting."""
    computed = dtype_of(checkpoint, asked, device)
    check_as_it_is(checkpoint, asked, device, "dtype")
    kept = storage(checkpoint, asked, computed)
    building.check_kept(kept, device, "dtype", asked)
    return kept, computed


def draft_kept(
    checkpoint: Checkpoint, asked: Asked, dtype: torch.dtype, device: torch.device
) -> tuple[Kept, torch.dtype]:
    """The same as target_kept(), for a draft. dtype: the target's. Raises InvalidSetting."""
    computed = _fitting(checkpoint, dtype, device) if asked is None else dtype_of(checkpoint, asked, device)
    check_as_it_is(checkpoint, asked, None, "draft_dtype")
    usual = _fitting(checkpoint, default_draft_dtype(dtype, device), device) if asked is None else computed
    kept = storage(checkpoint, asked, usual, is_draft=True)
    building.check_kept(kept, device, "draft_dtype", asked)
    return kept, computed


def _in_blocks(checkpoint: Checkpoint) -> bool:
    return checkpoint.stored is not None and in_blocks(checkpoint.stored)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that the config names, or else that of the first floating-point weight. Raises InvalidSetting."""
    named = _named_dtype(checkpoint)
    found = DTYPES.get(named)
    if found is None:
        raise InvalidSetting(f"dtype is auto and {checkpoint.name} is in {named[:40]!r}: name one of {listed()}")
    return found


def _named_dtype(checkpoint: Checkpoint) -> str:
    named = next((checkpoint.config[name] for name in ("dtype", "torch_dtype") if checkpoint.config.get(name)), None)
    if named is None and checkpoint.stored is not None:
        named = next((dtype for dtype in checkpoint.stored.dtypes.values() if isinstance(dtype, torch.dtype)), None)
    return str(named).removeprefix("torch.")


def check_as_it_is(checkpoint: Checkpoint, asked: Asked, device: torch.device | None, argument: str) -> None:
    """Raises InvalidSetting where a model that runs by transformers can't have the dtype or the device asked for.
    argument: the argument that asked for the dtype."""
    if checkpoint.known is None and asked is not None and is_few(asked):
        word = word_of(asked)
        raise InvalidSetting(f"{argument} is {word} and {checkpoint.name} runs by transformers' forward: leave it out")
    if checkpoint.known is not None or checkpoint.model is None:
        return
    model, place = f"the {checkpoint.name} runs by its own forward", place_of(checkpoint.model)
    held = dtype_of(checkpoint, None, place)
    if isinstance(asked, torch.dtype) and asked != held:
        raise InvalidSetting(f"{argument} is {asked} and {model} in {held}: convert it, or leave {argument} out")
    if device is not None and (device.type, device.index or 0) != (place.type, place.index or 0):
        raise InvalidSetting(f"device is {device} and {model} on {place}: move it, or leave device out")


def place_of(model: nn.Module) -> torch.device:
    """The device on which a model object takes its token ids."""
    from sybil.models.huggingface import entrance
    from sybil.models.objects import inside

    return entrance(inside(model))
