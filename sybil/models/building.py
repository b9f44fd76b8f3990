"""Builds a model that computes, from a checkpoint. This is the one place where what lies on a disk meets a forward."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from sybil.allocation import OF_WEIGHTS, as_out_of_memory
from sybil.devices import Asked, is_few, word_of
from sybil.errors import InvalidSetting
from sybil.models import Model, native, planning
from sybil.models.checkpoints.weights import Stored, arrange
from sybil.models.folders import Checkpoint
from sybil.models.operators.transformer import Transformer
from sybil.models.quantising import InBlocks
from sybil.models.shape import Shape
from sybil.models.storage import FORMATS, QUANTISED, Kept, Rounding, Storage, storage_of


def load(checkpoint: Checkpoint, storage: Kept, foreign_dtype: torch.dtype, device: torch.device) -> Model:
    """The checkpoint's model. Where Sybil's own forward knows the family, it computes, with weights kept in `storage`.
    Elsewhere transformers' forward computes, in foreign_dtype; a model object keeps its own dtype.

    Without the C forward the storage "stored" becomes foreign_dtype, with a UserWarning where that takes more memory.
    Raises the errors of sybil.errors."""
    with as_out_of_memory(f"{checkpoint.name} takes more memory than is free on {device}", OF_WEIGHTS):
        return _load(checkpoint, storage, foreign_dtype, device)


def _load(checkpoint: Checkpoint, storage: Kept, foreign_dtype: torch.dtype, device: torch.device) -> Model:
    if checkpoint.known and checkpoint.stored:
        if storage == "stored" and not planning.has_native(device):
            storage = storage_of(foreign_dtype)
            _warn_of_memory(checkpoint.name, checkpoint.stored, storage)
        planning.check_fits(checkpoint, storage, foreign_dtype, device)
        read_as = FORMATS[cast(Storage, storage)].read_as if _is_plain(storage) else torch.float32
        shape, weights = arrange(
            checkpoint.name, checkpoint.config, checkpoint.known, checkpoint.stored, read_as, device
        )
        return build(shape, weights, storage, device)
    if checkpoint.model is not None:
        from sybil.models.huggingface import HuggingFaceModel

        return HuggingFaceModel(checkpoint.model)
    from sybil.models import pretrained

    planning.check_fits(checkpoint, storage, foreign_dtype, device)
    return pretrained.load(checkpoint, foreign_dtype, device)


def build(shape: Shape, weights: Mapping[str, Tensor], storage: Kept, device: torch.device) -> Model:
    """A model of a shape: the C forward on a CPU where it can be built, torch's operators elsewhere.

    weights: in the dtype that the storage is read in (Format.read_as). Each is asked for once, so it may be made then.
    For int8 the C forward keeps blocks of 8 bits; for any number of bits torch's operators keep int8."""
    storage, is_native = planning.resolved(storage, device)
    if storage in QUANTISED:
        return native.NativeTransformer(shape, InBlocks(weights, storage), storage)
    if is_native:
        return native.NativeTransformer(shape, weights, storage)
    return Transformer(shape, weights, "int8" if isinstance(storage, Rounding) or storage == "int8" else None)


def check_kept(storage: Kept, device: torch.device, argument: str, asked: Asked = None) -> None:
    """Raises InvalidSetting where the device has no forward for weights in that storage. argument: the argument of
    load() that asked for it. asked: the argument's value.

    | storage | CPU with a C compiler | CPU without | cuda | mps |
    |---|---|---|---|---|
    | float32, float16, bfloat16 | yes | yes | yes | yes |
    | float64 | yes | yes | yes | no |
    | int8, of a draft | yes | yes | no | no |
    | other bits of a draft; the blocks of storage.QUANTISED | yes | no | no | no |"""
    word = f"{storage.bits} bits" if isinstance(storage, Rounding) else storage
    if asked is not None and is_few(asked):
        word = word_of(asked)
    if word == "float64" and device.type == "mps":
        raise InvalidSetting(f"{argument} is float64 on {device}, which has no such numbers: use float32 or float16")
    few = isinstance(storage, Rounding) or storage in QUANTISED
    if (few or storage == "int8") and device.type != "cpu":
        raise InvalidSetting(
            f"{argument} is {word} on {device}: Sybil keeps models in few bits on CPUs alone; use float16 or bfloat16 "
            "(a copy of the target in few bits is draft='self:8')"
        )
    if few and not planning.has_native(device):
        raise InvalidSetting(
            f"{argument} is {word} and there is no C compiler here, without which Sybil can't multiply such weights: "
            "install one, or use float32"
        )


def _is_plain(storage: Kept) -> bool:
    return isinstance(storage, str) and storage in FORMATS


def _warn_of_memory(name: str, stored: Stored, storage: Storage) -> None:
    taken = sum(math.prod(shape) for shape in stored.shapes.values()) * FORMATS[storage].dtype.itemsize
    if taken > stored.nbytes:
        warnings.warn(
            f"{name} has its weights in blocks of a few bits, which Sybil multiplies only on a CPU with a C compiler: "
            f"here they become {storage}, which takes {taken / stored.nbytes:.1f} times the memory",
            UserWarning,
            stacklevel=5,
        )
