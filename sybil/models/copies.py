"""Makes a copy of a model in fewer bits, with which the model drafts for itself. The copy computes over the model's own
caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import get_args

import torch
from torch import Tensor

from sybil.errors import InvalidSetting
from sybil.models import Model, planning
from sybil.models.activations import mean_squares
from sybil.models.checkpoints.weights import arrange
from sybil.models.folders import Checkpoint
from sybil.models.native import NativeTransformer
from sybil.models.native.making import InFloat32
from sybil.models.native.threads import torch_alone
from sybil.models.operators.linear import Way
from sybil.models.operators.packaged import packaged
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape
from sybil.models.storage import BLOCKS, Bits, Rounding

BITS: tuple[Bits, ...] = get_args(Bits)
HEAD: Mapping[Bits, Bits] = {4: 6, 5: 6, 6: 8, 8: 8}
"""The bits of the head, by the bits of the other weights. The head has more, because its errors cost most for their
bytes."""
Ours = NativeTransformer | Transformer
"""The forwards whose caches a copy may share."""


def ours(model: Model, checkpoint: Checkpoint, draft: str) -> Ours:
    """The model, if its forward is Sybil's own; raises InvalidSetting if not. draft: the draft's name, for the
    message."""
    if isinstance(model, NativeTransformer | Transformer):
        return model
    raise InvalidSetting(
        f"draft is {draft}, and {checkpoint.name} runs by transformers' own forward ({checkpoint.unknown}), which "
        "Sybil can't copy: give a draft model, or lookup"
    )


def best_bits(checkpoint: Checkpoint) -> Bits:
    """The bits of a copy where nobody has named them. These are 6, or 4 or 5 where most of the checkpoint's weights lie
    in a file's blocks of about as few bits: there a smaller copy agrees with the model as well."""
    stored = checkpoint.stored
    weights = 0 if stored is None else sum(len(size) == 2 for size in stored.shapes.values())
    sizes = [] if stored is None else [BLOCKS[each] for each in stored.storages.values()]
    usual = median(8 * nbytes / inputs for inputs, nbytes in sizes) if 2 * len(sizes) > weights else 32
    return 4 if usual <= 5 else 5 if usual <= 6 else 6


def rounded(checkpoint: Checkpoint, model: Ours, bits: Bits, text: Callable[[], Tensor]) -> Ours:
    """A copy of the checkpoint's model in so many bits, with the same kind of forward as `model`.

    text: makes a text (rows, tokens) over which the products' errors are kept small; it isn't called for 8 bits.
    Without the C forward the copy is in int8 on a CPU, whatever the bits; on a GPU the weights are kept by a library.
    Raises the errors of sybil.errors."""
    assert checkpoint.known
    assert checkpoint.stored
    dtype = torch.float32 if isinstance(model, NativeTransformer) else model.dtype
    if isinstance(model, NativeTransformer):
        planning.check_fits(checkpoint, rounding(model.shape, bits, {}), dtype, model.device)
    shape, weights = arrange(
        checkpoint.name, checkpoint.config, checkpoint.known, checkpoint.stored, dtype, model.device
    )
    if isinstance(model, NativeTransformer):
        importance: Mapping[str, Tensor] = {}
        if bits < 8:
            said = text()
            with torch_alone():
                importance = mean_squares(shape, InFloat32(weights), said)
        return NativeTransformer(shape, weights, rounding(shape, bits, importance))
    way: Way = "int8" if model.device.type == "cpu" else packaged(bits, model.dtype, f"self:{bits}")
    return Transformer(shape, _Sharing(weights, model), way)


def rounding(shape: Shape, bits: Bits, importance: Mapping[str, Tensor]) -> Rounding:
    """The storage of a copy in so many bits. importance: see Rounding."""
    return Rounding(bits, {"token_embedding" if shape.tied_head else "head": HEAD[bits]}, importance)


class _Sharing(Mapping[str, Tensor]):
    """Weights whose token embedding is the one that a model of torch's operators holds already."""

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
