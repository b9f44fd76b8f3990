"""Weights as the C forward reads them: in panels, front to back, in memory of huge pages."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.errors import WeightsMismatch
from sybil.models.native.structs import Floats, Product
from sybil.models.storage import Storage, keep

STORAGES: tuple[Storage, ...] = ("float32", "bfloat16", "int8")
"""In model.h's order."""


class Arena:
    """Memory for weights in huge pages, where the system has them: a product reads through megabytes in one go."""

    CHUNK = 64 << 20

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.used = 0

    def take(self, source: Tensor) -> Tensor:
        """A copy of the tensor, contiguous and aligned to 64 bytes."""
        size = -(-source.nbytes // 64) * 64
        if size > len(self._free):
            if hasattr(mmap, "MADV_HUGEPAGE"):  # for private memory only
                chunk = mmap.mmap(-1, max(size, self.CHUNK), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                with contextlib.suppress(OSError):
                    chunk.madvise(mmap.MADV_HUGEPAGE)
            else:
                chunk = mmap.mmap(-1, max(size, self.CHUNK))
            self._free = torch.frombuffer(chunk, dtype=torch.uint8)
        place, self._free = self._free[: source.nbytes], self._free[size:]
        self.used += source.nbytes
        return place.view(source.dtype).view(source.shape).copy_(source.detach())


@dataclass(frozen=True, slots=True)
class Packed:
    """A product's weight (outputs, inputs) in panels.

    words: (panels, words, panel, inputs a word); scale, bias: (outputs in whole panels,) float32, or None."""

    words: Tensor
    scale: Tensor | None
    bias: Tensor | None
    outputs: int
    inputs: int
    storage: Storage

    def copied(self, copy: Callable[[Tensor], Tensor]) -> Packed:
        """The same with each tensor as copy() gives it back."""
        words, scale, bias = (None if each is None else copy(each) for each in (self.words, self.scale, self.bias))
        assert words is not None
        return Packed(words, scale, bias, self.outputs, self.inputs, self.storage)

    def struct(self) -> Product:
        """As model.h has it: addresses, good as long as this lives."""
        return Product(
            weight=self.words.data_ptr(),
            bytes=self.words.nbytes,
            scale=floats(self.scale),
            bias=floats(self.bias),
            inputs=self.inputs,
            outputs=self.outputs,
            storage=STORAGES.index(self.storage),
        )


def pack(
    weight: Tensor, bias: Tensor | None, storage: Storage, panel: int, parts: int, take: Callable[[Tensor], Tensor]
) -> Packed:
    """A product as forward.c reads it, each of its tensors kept by take(). Raises WeightsMismatch.

    parts: 2 where the outputs are gates and then what they open: panels of both lie in turn."""
    if weight.ndim != 2 or len(weight) % parts or (bias is not None and bias.shape != weight.shape[:1]):
        sizes = [tuple(each.shape) for each in (weight, bias) if each is not None]
        raise WeightsMismatch(
            f"a product has weights of shape {' and '.join(map(str, sizes))}, which don't fit each other"
        )

    def panels(tensor: Tensor) -> Tensor:
        """(outputs, ...) -> (panels, panel, ...), padded with zeros."""
        each, rest = len(tensor) // parts, tensor.shape[1:]
        padded = tensor.new_zeros(parts, -(-each // panel) * panel, *rest)
        padded[:, :each] = tensor.view(parts, each, *rest)
        return padded.view(parts, -1, panel, *rest).transpose(0, 1).flatten(0, 1)

    outputs, inputs = weight.shape
    scale, numbers = keep(weight, storage)
    per_word = 4 // numbers.itemsize
    if inputs % per_word:  # padding by nothing would copy the weight
        numbers = F.pad(numbers, (0, -inputs % per_word))
    words = numbers.view(outputs, -1, per_word)
    return Packed(
        words=take(panels(words).transpose(1, 2)),
        scale=None if scale is None else take(panels(scale)),
        bias=None if bias is None else take(panels(bias.float())),
        outputs=outputs,
        inputs=inputs,
        storage=storage,
    )


def floats(tensor: Tensor | None) -> Floats:
    """A float32 tensor, or none, as model.h has it."""
    return Floats() if tensor is None else Floats(tensor.data_ptr(), tensor.numel())
