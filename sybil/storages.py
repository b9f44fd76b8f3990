"""Decides from what a caller asks for what a model's weights are kept in, and what the model computes in."""

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
"""What int4 is for a draft. int8 has a name among storages."""
_BLOCKS: Mapping[object, BlockStorage] = {torch.int8: "q8_0", INT4: "q4_k"}
"""What they are for a target."""


def dtype_of(checkpoint: Checkpoint, asked: Asked, device: torch.device) -> torch.dtype:
    """What a checkpoint is computed in: as asked, its own where that is "auto" or it is an object, or the device's
    default, which fits it. Few bits are computed in float32. Raises InvalidSetting."""
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
    """See devices.fitting(). A model object is as it is."""
    if checkpoint.model is not None:
        return dtype
    stored = None if _in_blocks(checkpoint) else DTYPES.get(_named_dtype(checkpoint))
    return fitting(dtype, device, stored, checkpoint.config.get("model_type"))


def storage(checkpoint: Checkpoint, asked: Asked, usual: torch.dtype, is_draft: bool = False) -> Kept:
    """What a model's weights are kept in, as it was asked for: in the file's own blocks, where it has such and no dtype
    is asked for. usual: what they are in where the file has none."""
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
    """What a target's weights are kept in, and the dtype that it is computed in. Raises InvalidSetting."""
    computed = dtype_of(checkpoint, asked, device)
    check_as_it_is(checkpoint, asked, device, "dtype")
    kept = storage(checkpoint, asked, computed)
    building.check_kept(kept, device, "dtype", asked)
    return kept, computed


def draft_kept(
    checkpoint: Checkpoint, asked: Asked, dtype: torch.dtype, device: torch.device
) -> tuple[Kept, torch.dtype]:
    """target_kept() of a draft, beside a target in dtype."""
    computed = _fitting(checkpoint, dtype, device) if asked is None else dtype_of(checkpoint, asked, device)
    check_as_it_is(checkpoint, asked, None, "draft_dtype")
    usual = _fitting(checkpoint, default_draft_dtype(dtype, device), device) if asked is None else computed
    kept = storage(checkpoint, asked, usual, is_draft=True)
    building.check_kept(kept, device, "draft_dtype", asked)
    return kept, computed


def _in_blocks(checkpoint: Checkpoint) -> bool:
    return checkpoint.stored is not None and in_blocks(checkpoint.stored)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """What the config of a folder says, or else what its first floating-point weight is kept in."""
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
    """Raises InvalidSetting where a model that runs by transformers can't be had as it was asked for."""
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
    """Where a model object takes its token ids."""
    from sybil.models.huggingface import entrance
    from sybil.models.objects import inside

    return entrance(inside(model))
