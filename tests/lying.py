"""Weights in the blocks of a GGUF file, of every format, and the float32 weights that they stand for."""

from __future__ import annotations

import random
from collections.abc import Collection

import numpy as np
import torch
from shapes import random_weights
from torch import Tensor

from benchmarks.engine.blocks import sane
from sybil.models.shape import Shape
from sybil.models.storage import BLOCKS, Blocks, BlockStorage, dequantised


def random_bytes(storage: BlockStorage, outputs: int, inputs: int, seed: int = 0) -> Blocks:
    """A weight of random bytes. Some of its scales are denormal, infinite or NaN."""
    block, nbytes = BLOCKS[storage]
    generator = torch.Generator().manual_seed(seed)
    size = (outputs, inputs // block * nbytes)
    return Blocks(storage, torch.randint(0, 256, size, generator=generator, dtype=torch.uint8), inputs)


class Lying(dict[str, Tensor]):
    """Random weights of a shape. Each part of a product's weight is in one of the storages that its number of inputs
    allows. `given` replaces some of the random weights."""

    def __init__(
        self,
        shape: Shape,
        storages: Collection[BlockStorage] = tuple(BLOCKS),
        seed: int = 0,
        given: dict[str, Blocks] | None = None,
    ) -> None:
        super().__init__(random_weights(shape, seed))
        chance, generator = random.Random(seed), np.random.default_rng(seed)
        self.lying: dict[str, tuple[Blocks, ...]] = {}
        for name, weight in self.items():
            if weight.ndim == 2 and name != "position_embedding":
                inputs = weight.shape[1]
                fitting = [storage for storage in storages if inputs % BLOCKS[storage][0] == 0] or ["f16"]
                self.lying[name] = tuple(
                    sane(chance.choice(fitting), outputs, inputs, generator)
                    for outputs in _parts(shape, name, len(weight))
                )
        self.lying |= {name: (blocks,) for name, blocks in (given or {}).items()}
        self |= {name: torch.cat([dequantised(part) for part in parts]) for name, parts in self.lying.items()}

    def blocks(self, name: str) -> tuple[Blocks, ...] | None:
        return self.lying.get(name)


def _parts(shape: Shape, name: str, outputs: int) -> tuple[int, ...]:
    if "query_key_value" in name:
        keys = shape.kv_heads * shape.head_size
        return shape.heads * shape.head_size, keys, keys
    return (outputs // 2, outputs // 2) if shape.gated and "mlp_in" in name else (outputs,)
