"""What a weight may be kept in: a word of ours, the bytes that it takes, and the way back to float32."""

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
"""Of a weight that is rounded: rounding.py says how."""
BlockStorage = Literal[
    "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "iq4_nl", "mxfp4", "f16", "bf16", "f32"
]
"""What a weight of a GGUF file is kept in there: ggml's names of its types, in small letters."""
QUANTISED: tuple[BlockStorage, ...] = ("q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0")
"""The blocks that a model's weights can be rounded to as it is loaded: quantising.py."""
AT_ONCE = 1 << 20
"""Numbers of a weight that are dequantised together. The library gguf takes several times their memory for it."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """A copy in few bits, for drafts: rounding.py's blocks of so many bits hold every product's weight. exceptions:
    other bits for products by name ("token_embedding", "head", "3.mlp_out"). importance: how much the error of each of
    a product's inputs counts, (inputs,), by the same names; alike where there is none."""

    bits: Bits
    exceptions: Mapping[str, Bits] = field(default_factory=dict)
    importance: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raises InvalidSetting for bits that there are no blocks of."""
        for name, bits in (("every product", self.bits), *self.exceptions.items()):
            if bits not in get_args(Bits):
                raise InvalidSetting(f"{name} is to be rounded to {bits!r} bits: use one of 4, 5, 6, 8")

    def bits_of(self, product: str) -> Bits:
        """The bits of a product's weight."""
        return self.exceptions.get(product, self.bits)


Kept = Storage | Literal["stored"] | BlockStorage | Rounding
"""How a model keeps its products' weights: all in one storage, each as it is stored in its file, rounded to the blocks
of a GGUF file (quantising.py), or rounded for a draft."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight (outputs, inputs) as a GGUF file has it. numbers: (outputs, bytes of a row) uint8, which may be the
    mapped file itself; a row is whole blocks, laid out as ggml's type says."""

    storage: BlockStorage
    numbers: Tensor
    inputs: int


class StoredWeights(Protocol):
    """Weights by our names, as they lie in a file where it has them in blocks."""

    def __getitem__(self, name: str, /) -> Tensor:
        """In float32. Raises KeyError."""

    def get(self, name: str, /) -> Tensor | None: ...

    def blocks(self, name: str, /) -> Sequence[Blocks] | None:
        """A weight (outputs, inputs) one beneath the other; None where the file has it some other way."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a storage keeps a weight (outputs, inputs). dtype: of its numbers; scaled: a float32 scale an output beside
    them; read_as: what a checkpoint's tensors are read in before they are kept so."""

    dtype: torch.dtype
    read_as: torch.dtype
    scaled: bool = False

    def nbytes(self, outputs: int, inputs: int) -> int:
        """What a weight of this size takes."""
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
"""Inputs of a block, and its bytes."""


BYTES_A_WEIGHT: Mapping[Storage | BlockStorage, float] = {
    **{word: float(each.dtype.itemsize) for word, each in FORMATS.items()},
    **{word: nbytes / inputs for word, (inputs, nbytes) in BLOCKS.items()},
}
"""What a weight takes, its share of its block's scale included. The scale that int8 has an output is left out."""


def storage_of(dtype: torch.dtype) -> Storage:
    """The storage whose numbers are of that dtype; raises KeyError."""
    return {kept.dtype: word for word, kept in FORMATS.items()}[dtype]


def keep(weight: Tensor, storage: Storage) -> tuple[Tensor | None, Tensor]:
    """weight (outputs, inputs) as its scales (outputs,) float32, where the storage has any, and its numbers."""
    if storage == "int8":
        return quantise(weight)
    return None, weight.to(FORMATS[storage].dtype)


def to_float32(scales: Tensor | None, numbers: Tensor) -> Tensor:
    """What keep() gave, as the weight (outputs, inputs) that it stands for."""
    return numbers.float() if scales is None else scales[:, None] * numbers.float()


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (outputs, inputs) as scales (outputs,) float32 and int8: scale * int8 is near the weight.

    The scale of an output with NaN or infinity among its weights is NaN, and so is all that comes of it."""
    weight = weight.float()
    largest = weight.abs().amax(1)
    scales = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    numbers = (weight / scales[:, None]).round_().nan_to_num_(0.0).to(torch.int8)
    return scales.where(largest.isfinite(), torch.nan), numbers


def dequantised(blocks: Blocks) -> Tensor:
    """The weight (outputs, inputs) in float32, as the library gguf computes it. Rows are dequantised some at a time."""
    from gguf import GGMLQuantizationType, quants  # 80 ms, for who has such files

    kind = GGMLQuantizationType[blocks.storage.upper()]
    rows = max(1, AT_ONCE // blocks.inputs)
    weight = torch.empty(len(blocks.numbers), blocks.inputs, dtype=torch.float32, device="cpu")
    with np.errstate(all="ignore"):  # infinite and NaN scales are what they are
        for first in range(0, len(weight), rows):
            part = blocks.numbers[first : first + rows].numpy()
            weight[first : first + rows] = torch.from_numpy(quants.dequantize(part, kind))
    return weight
