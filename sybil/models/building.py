"""From a checkpoint to a model that computes: the one place where what lies on a disk meets what multiplies."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sybil.models import Model, native
from sybil.models.checkpoints.weights import arrange
from sybil.models.folders import Checkpoint
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape
from sybil.models.storage import FORMATS, Storage


def load(checkpoint: Checkpoint, storage: Storage, foreign_dtype: torch.dtype, device: torch.device) -> Model:
    """The checkpoint's model: our own forward where it knows the family, with weights kept in storage; transformers'
    elsewhere, in foreign_dtype unless it is an object. Raises the errors of sybil.errors."""
    if checkpoint.known and checkpoint.stored:
        read_as = FORMATS[storage].read_as
        shape, weights = arrange(
            checkpoint.name, checkpoint.config, checkpoint.known, checkpoint.stored, read_as, device
        )
        return build(shape, weights, storage, device)
    if checkpoint.model is not None:
        from sybil.models.huggingface import HuggingFaceModel

        return HuggingFaceModel(checkpoint.model)
    from sybil.models import pretrained

    return pretrained.load(checkpoint, foreign_dtype, device)


def build(shape: Shape, weights: Mapping[str, Tensor], storage: Storage, device: torch.device) -> Model:
    """The forward for a shape: in one call on a CPU where the C forward can be built, by torch's operators elsewhere.

    weights: as the storage has them read; they may be made as they are asked for, each once."""
    if device.type == "cpu" and storage in native.STORAGES and native.library.load():
        return native.NativeTransformer(shape, weights, storage)
    return Transformer(shape, weights, "int8" if storage == "int8" else None)
