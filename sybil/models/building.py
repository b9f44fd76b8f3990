"""From a checkpoint to a model that computes: the one place where what lies on a disk meets what multiplies."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from sybil.allocation import OF_WEIGHTS, as_out_of_memory
from sybil.models import Model, native
from sybil.models.checkpoints.weights import Stored, arrange
from sybil.models.folders import Checkpoint
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape
from sybil.models.storage import FORMATS, Kept, Rounding, Storage, storage_of


def load(checkpoint: Checkpoint, storage: Kept, foreign_dtype: torch.dtype, device: torch.device) -> Model:
    """The checkpoint's model: our own forward where it knows the family, with weights kept in storage; transformers'
    elsewhere, in foreign_dtype unless it is an object. Raises the errors of sybil.errors.

    Without the C forward "stored" becomes foreign_dtype, with a UserWarning where that takes more memory."""
    with as_out_of_memory(f"{checkpoint.name} takes more memory than is free on {device}", OF_WEIGHTS):
        return _load(checkpoint, storage, foreign_dtype, device)


def _load(checkpoint: Checkpoint, storage: Kept, foreign_dtype: torch.dtype, device: torch.device) -> Model:
    if checkpoint.known and checkpoint.stored:
        if storage == "stored" and not _has_native(device):
            storage = storage_of(foreign_dtype)
            _warn_of_memory(checkpoint.name, checkpoint.stored, storage)
        read_as = FORMATS[storage].read_as if isinstance(storage, str) and storage != "stored" else torch.float32
        shape, weights = arrange(
            checkpoint.name, checkpoint.config, checkpoint.known, checkpoint.stored, read_as, device
        )
        return build(shape, weights, storage, device)
    if checkpoint.model is not None:
        from sybil.models.huggingface import HuggingFaceModel

        return HuggingFaceModel(checkpoint.model)
    from sybil.models import pretrained

    return pretrained.load(checkpoint, foreign_dtype, device)


def build(shape: Shape, weights: Mapping[str, Tensor], storage: Kept, device: torch.device) -> Model:
    """The forward for a shape: in one call on a CPU where the C forward can be built, by torch's operators elsewhere.

    weights: as the storage has them read; they may be made as they are asked for, each once. The C forward takes 8 bits
    in blocks for int8, and the operators int8 for any bits."""
    if storage == "int8" and _has_native(device):
        storage = Rounding(8)
    rounded = isinstance(storage, Rounding)
    if (rounded or storage in (*native.STORAGES, "stored")) and _has_native(device):
        return native.NativeTransformer(shape, weights, storage)
    return Transformer(shape, weights, "int8" if rounded or storage == "int8" else None)


def _has_native(device: torch.device) -> bool:
    return device.type == "cpu" and native.library.load() is not None


def _warn_of_memory(name: str, stored: Stored, storage: Storage) -> None:
    taken = sum(math.prod(shape) for shape in stored.shapes.values()) * FORMATS[storage].dtype.itemsize
    if taken > stored.nbytes:
        warnings.warn(
            f"{name} has its weights in blocks of a few bits, which Sybil multiplies only on a CPU with a C compiler: "
            f"here they become {storage}, which takes {taken / stored.nbytes:.1f} times the memory",
            UserWarning,
            stacklevel=5,
        )
