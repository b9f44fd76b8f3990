"""Copies of a model that compute over its own caches: in fewer bits, or without some of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor

from sybil.errors import InvalidSetting
from sybil.models import Model, building
from sybil.models.checkpoints.weights import arrange
from sybil.models.folders import Checkpoint
from sybil.models.native import NativeTransformer
from sybil.models.operators.transformer import Transformer

BITS = (4, 5, 6, 8)
Ours = NativeTransformer | Transformer
"""The forwards whose caches a copy may share."""


def ours(model: Model, name: str, draft: str) -> Ours:
    """The model, which is one of ours. Raises InvalidSetting, where draft is what was to be made of it."""
    if isinstance(model, NativeTransformer | Transformer):
        return model
    raise InvalidSetting(
        f"draft is {draft}, and {name} runs by transformers' own forward, which Sybil can't copy: give a draft model, "
        "or lookup"
    )


def best_bits(model: Ours) -> int:
    """The bits of a copy that drafts best for a model, where nobody has named them."""
    return 8


def rounded(checkpoint: Checkpoint, model: Ours, bits: int) -> Ours:
    """The checkpoint's model in so many bits, by the forward that the model has. Without the C forward all bits are
    int8 on a CPU. Raises the errors of sybil.errors."""
    if isinstance(model, NativeTransformer):
        return cast(NativeTransformer, building.load(checkpoint, "int8", torch.float32, model.device))
    assert checkpoint.known
    assert checkpoint.stored
    shape, weights = arrange(
        checkpoint.name, checkpoint.config, checkpoint.known, checkpoint.stored, model.dtype, model.device
    )
    return Transformer(shape, _Sharing(weights, model), "int8")


class _Sharing(Mapping[str, Tensor]):
    """Weights of which a model of operators holds the token embedding already."""

    def __init__(self, weights: Mapping[str, Tensor], model: Transformer) -> None:
        self._weights, self._held = weights, model.token_embedding

    def __getitem__(self, name: str) -> Tensor:
        return self._held if name == "token_embedding" else self._weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
