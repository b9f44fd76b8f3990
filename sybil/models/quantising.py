"""Rounds weights to the blocks of GGUF files as a model is loaded, for a target or a draft in few bits.

The forward converts such a block to float32 exactly and rounds no activation. So a model in these blocks is a model by
itself, whose weights are the numbers that the blocks stand for. models/rounding.py has the other way to round, which
is only for drafts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sybil.models.native.making import in_float32
from sybil.models.storage import AT_ONCE, BLOCKS, Blocks, BlockStorage

WIDE: BlockStorage = "q6_k"
"""The fewest bits that the embedding and the head are rounded to, because their errors cost most for their bytes."""
SMALLER: Mapping[BlockStorage, BlockStorage] = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""What replaces blocks of 256 inputs where the length of a row isn't a multiple of 256: the blocks of 32 inputs that
llama.cpp uses there."""
ENDS = ("token_embedding", "head.weight")
HALF, RUNS = 128, 4
"""A q6_k block has two halves of HALF inputs. A half has RUNS runs of 32 inputs. A byte of high bits has two bits of
one input of each run."""


class InBlocks(Mapping[str, Tensor]):
    """Weights by Sybil's names (storage.StoredWeights). Each weight is rounded when its blocks are asked for. A weight
    that is stored in such blocks stays as it is. A weight whose rows aren't whole blocks isn't rounded."""

    def __init__(self, weights: Mapping[str, Tensor], storage: BlockStorage) -> None:
        self._weights, self._storage = weights, storage

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def blocks(self, name: str) -> Sequence[Blocks] | None:
        lying: Sequence[Blocks] | None = getattr(self._weights, "blocks", lambda name: None)(name)
        if lying and {each.storage for each in lying} == {storage_for(name, self._storage, lying[0].inputs)}:
            return lying
        weight = in_float32(self._weights, name)
        storage = storage_for(name, self._storage, weight.shape[-1])
        return None if storage is None else [quantised(weight, storage)]


def storage_for(name: str, storage: BlockStorage, inputs: int) -> BlockStorage | None:
    """The storage that a weight is rounded to, in a model of that storage; None where its inputs aren't whole blocks.
    name, inputs: the weight's."""
    if name in ENDS and _bits(storage) < _bits(WIDE):
        storage = WIDE
    if inputs % BLOCKS[storage][0]:
        storage = SMALLER.get(storage, storage)
    return None if inputs % BLOCKS[storage][0] else storage


def _bits(storage: BlockStorage) -> float:
    inputs, nbytes = BLOCKS[storage]
    return 8 * nbytes / inputs


def quantised(weight: Tensor, storage: BlockStorage) -> Blocks:
    """A weight (outputs, inputs), rounded to blocks. storage: one of storage.QUANTISED, whose blocks must divide the
    inputs. A few rows are rounded at a time. A block with NaN among its weights becomes NaN."""
    inputs, nbytes = BLOCKS[storage]
    weight = weight.detach().to("cpu", torch.float32).contiguous()
    numbers = torch.empty(len(weight), weight.shape[1] // inputs * nbytes, dtype=torch.uint8, device="cpu")
    rows = max(1, AT_ONCE // weight.shape[1])
    for first in range(0, len(weight), rows):
        part = weight[first : first + rows]
        if storage in ("q4_k", "q5_k"):
            made = _with_minima(part.view(-1, 8, 32), 4 if storage == "q4_k" else 5)
        elif storage == "q6_k":
            made = _in_six_bits(part.view(-1, 16, 16))
        else:
            made = _by_the_library(part, storage)
        numbers[first : first + rows] = made.view(len(part), -1)
    return Blocks(storage, numbers, weight.shape[1])


def _by_the_library(weight: Tensor, storage: BlockStorage) -> Tensor:
    from gguf import GGMLQuantizationType, quants  # takes 80 ms, so it is imported only where it is needed

    with np.errstate(all="ignore"):  # infinite and NaN weights
        return torch.from_numpy(quants.quantize(weight.numpy(), GGMLQuantizationType[storage.upper()]))


def _with_minima(weight: Tensor, bits: int) -> Tensor:
    """q4_k and q5_k: weight (blocks, 8, 32) -> bytes (blocks, nbytes). A weight becomes d sc q - dmin mn. Each run of
    32 weights has a scale sc and a minimum mn of six bits."""
    levels = (1 << bits) - 1
    least = (-weight.amin(-1)).clamp(min=0)
    step = (weight.amax(-1) + least) / levels
    scale, minimum = (_half(each.amax(-1) / 63) for each in (step, least))  # d and dmin, (blocks,)
    scales, minima = _whole(step, scale[:, None], 0, 63), _whole(least, minimum[:, None], 0, 63)
    steps, leasts = scale[:, None] * scales, minimum[:, None] * minima
    q = _whole(weight + leasts[..., None], steps[..., None], 0, levels).to(torch.uint8)
    low = (q & 15).view(-1, 4, 2, 32)
    parts = [_bytes_of(scale), _bytes_of(minimum), _sixes(scales.to(torch.uint8), minima.to(torch.uint8))]
    if bits == 5:
        high = q >> 4
        places = torch.arange(8, dtype=torch.uint8, device="cpu")[:, None]
        parts.append((high << places).sum(1, dtype=torch.uint8))
    parts.append((low[:, :, 0] | low[:, :, 1] << 4).flatten(1))
    return torch.cat(parts, 1)


def _in_six_bits(weight: Tensor) -> Tensor:
    """q6_k: weight (blocks, 16, 16) -> bytes (blocks, 210). A weight becomes d sc (q - 32). Each run of 16 weights has
    a scale sc of eight bits. Its sign is such that the run's weight of the largest magnitude is -32 steps of d sc."""
    largest = weight.gather(-1, weight.abs().argmax(-1, keepdim=True)).squeeze(-1)
    step = largest / -32
    scale = _half(step.abs().amax(-1) / 127)
    scales = _whole(step, scale[:, None], -127, 127)
    q = _whole(weight, (scale[:, None] * scales)[..., None], -32, 31).add_(32).to(torch.uint8)
    halves = q.view(-1, 2, HALF)
    low, high = halves & 15, (halves >> 4).view(-1, 2, RUNS, HALF // RUNS)
    places = 2 * torch.arange(RUNS, dtype=torch.uint8, device="cpu")[:, None]
    parts = [
        (low[..., : HALF // 2] | low[..., HALF // 2 :] << 4).flatten(1),
        (high << places).sum(2, dtype=torch.uint8).flatten(1),
        scales.to(torch.int8).view(torch.uint8),
        _bytes_of(scale),
    ]
    return torch.cat(parts, 1)


def _half(numbers: Tensor) -> Tensor:
    """Numbers rounded to float16, in float32."""
    return numbers.half().float()


def _bytes_of(scale: Tensor) -> Tensor:
    """(blocks,) -> the bytes (blocks, 2) of float16."""
    return scale.half()[:, None].view(torch.uint8)


def _whole(numbers: Tensor, step: Tensor, least: int, most: int) -> Tensor:
    """The whole number of steps that is nearest to each number; 0 where the step is 0 or the result isn't a number."""
    return (numbers / step).where(step != 0, 0.0).round_().nan_to_num_(0.0, 0.0, 0.0).clamp_(least, most)


def _sixes(scales: Tensor, minima: Tensor) -> Tensor:
    """Packs eight scales and eight minima of six bits, (blocks, 8) uint8 each, into 12 bytes. The two high bits of the
    last four of each are in the bytes of the first four."""
    first = [each[:, :4] | each[:, 4:] >> 4 << 6 for each in (scales, minima)]
    return torch.cat([*first, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4], 1)
