"""The storages that a weight may be kept in: Sybil's word for each, the bytes that it takes, and the way back to
float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from sybil.errors import InvalidSetting

Storage = Literal["float64", "float32", "float16", "bfloat16", "int8"]
Bits = Literal[4, 5, 6, 8]
"""The bits of a rounded weight; see rounding.py."""
BlockStorage = Literal[
    "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "iq4_nl", "mxfp4", "f16", "bf16", "f32"
]
"""The storages of weights in GGUF files: ggml's names of its types, in small letters."""
QUANTISED: tuple[BlockStorage, ...] = ("q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0")
"""The blocks that a model's weights can be rounded to as it is loaded: see quantising.py."""
AT_ONCE = 1 << 20
"""How many numbers of a weight are dequantised together. The library gguf takes several times their memory for that."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """The storage of a copy in few bits, for drafts. Every product's weight is kept in the blocks of rounding.py.

    bits: of the blocks. exceptions: other bits for some products, by name ("token_embedding", "head", "3.mlp_out").
    importance: how much the error of each input of a product counts, (inputs,), by the same names; all inputs of a
    product that isn't named count the same."""

    bits: Bits
    exceptions: Mapping[str, Bits] = field(default_factory=dict)
    importance: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raises InvalidSetting for a number of bits that has no blocks."""
        for name, bits in (("every product", self.bits), *self.exceptions.items()):
            if bits not in get_args(Bits):
                raise InvalidSetting(f"{name} is to be rounded to {bits!r} bits: use one of 4, 5, 6, 8")

    def bits_of(self, product: str) -> Bits:
        """The bits of a product's weight."""
        return self.exceptions.get(product, self.bits)


Kept = Storage | Literal["stored"] | BlockStorage | Rounding
"""How a model keeps its products' weights: all in one storage; each as it is stored in its file; rounded to the blocks
of GGUF files (quantising.py); or rounded for a draft (rounding.py)."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight (outputs, inputs) in the blocks of a GGUF file. numbers: (outputs, bytes of a row) uint8, which may be
    the mapped file itself. A row consists of whole blocks, in the layout of ggml's type."""

    storage: BlockStorage
    numbers: Tensor
    inputs: int


class StoredWeights(Protocol):
    """Weights by Sybil's names. A weight that its file has in blocks can be had in these blocks."""

    def __getitem__(self, name: str, /) -> Tensor:
        """A weight in float32. Raises KeyError."""

    def get(self, name: str, /) -> Tensor | None: ...

    def blocks(self, name: str, /) -> Sequence[Blocks] | None:
        """The parts of a weight (outputs, inputs), in the order of their outputs; None where the file has the weight in
        another form."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a storage keeps a weight (outputs, inputs).

    dtype: of its numbers. read_as: the dtype that a checkpoint's tensors are read in before they are converted. scaled:
    whether each output has a float32 scale besides."""

    dtype: torch.dtype
    read_as: torch.dtype
    scaled: bool = False

    def nbytes(self, outputs: int, inputs: int) -> int:
        """The bytes of a weight of this size."""
        return outputs * inputs * self.dtype.itemsize + 4 * outputs * self.scaled


FORMATS: Mapping[Storage, Format] = {
    "float64": Format(torch.float64, torch.float64),
    "float32": Format(torch.float32, torch.float32),
    "float16": Format(torch.float16, torch.float16),
    "bfloat16": Format(torch.bfloat16, torch.bfloat16),
    "int8": Format(torch.int8, torch.float32, scaled=True),
}


BLOCKS: Mapping[BlockStorage, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
    "iq4_nl": (32, 18),
    "mxfp4": (32, 17),
}
"""(inputs, bytes) of one block."""


BYTES_A_WEIGHT: Mapping[Storage | BlockStorage, float] = {
    **{word: float(each.dtype.itemsize) for word, each in FORMATS.items()},
    **{word: nbytes / inputs for word, (inputs, nbytes) in BLOCKS.items()},
}
"""The bytes of one weight, its share of its block's scale included. int8's scale for each output is left out."""


def storage_of(dtype: torch.dtype) -> Storage:
    """The storage whose numbers have that dtype. Raises KeyError where there is none."""
    return {kept.dtype: word for word, kept in FORMATS.items()}[dtype]


def keep(weight: Tensor, storage: Storage) -> tuple[Tensor | None, Tensor]:
    """(scales, numbers) of a weight (outputs, inputs). The scales are (outputs,) float32; None where the storage has
    none."""
    if storage == "int8":
        return quantise(weight)
    return None, weight.to(FORMATS[storage].dtype)


def to_float32(scales: Tensor | None, numbers: Tensor) -> Tensor:
    """The weight (outputs, inputs) that the scales and numbers of keep() stand for."""
    return numbers.float() if scales is None else scales[:, None] * numbers.float()


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(scales (outputs,) float32, numbers int8) of a weight (outputs, inputs). scale * number is near the weight.

    If an output has NaN or infinity among its weights, its scale is NaN, and so is everything computed with it."""
    weight = weight.float()
    largest = weight.abs().amax(1)
    scales = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    numbers = (weight / scales[:, None]).round_().nan_to_num_(0.0).to(torch.int8)
    return scales.where(largest.isfinite(), torch.nan), numbers


def dequantised(blocks: Blocks) -> Tensor:
    """The weight (outputs, inputs) in float32, as the library gguf computes it. A few rows are converted at a time."""
    from gguf import GGMLQuantizationType, quants  # takes 80 ms, so it is imported only where it is needed

    kind = GGMLQuantizationType[blocks.storage.upper()]
    rows = max(1, AT_ONCE // blocks.inputs)
    weight = torch.empty(len(blocks.numbers), blocks.inputs, dtype=torch.float32, device="cpu")
    with np.errstate(all="ignore"):  # infinite and NaN scales are no error
        for first in range(0, len(weight), rows):
            part = blocks.numbers[first : first + rows].numpy()
            weight[first : first + rows] = torch.from_numpy(quants.dequantize(part, kind))
    return weight
