"""The cost of a step whose weights stay in a file's blocks: for each format alone, and for the mix of SmolLM2's
file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from benchmarks.engine.bars import Bar, Result, Tick
from sybil.measuring.timing import forward_case, interleave, speed_up
from sybil.models.native import NativeTransformer
from sybil.models.native.records import LAYOUTS, SAME
from sybil.models.shape import Attention, Rotary, Shape
from sybil.models.storage import BLOCKS, Blocks, BlockStorage, dequantised

CPU = torch.device("cpu")
TOKENS, DEPTH = (1, 2, 3, 5, 9), 64
BOUNDS = {5: 1.8, 9: 2.6}
"""By the number of tokens: how many times as long as a forward over one token it may take."""
SMOLLM2 = "SmolLM2's mix"
MIXES: Mapping[str, tuple[int, BlockStorage, BlockStorage]] = {
    SMOLLM2: (576, "q4_1", "q8_0"),
    **{word: (768, word, word) for word in BLOCKS},
}
"""By name: the width, which must be whole blocks, the format of the products' weights, and that of the embedding."""

PLAIN: Mapping[BlockStorage, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def shape_of(width: int, layers: int = 30, vocab_size: int = 49152) -> Shape:
    """The shape of SmolLM2-135M, or of a model like it whose width fits a format's blocks."""
    rotary = Rotary(64, tuple(100000.0 ** (-index / 32) for index in range(32)))
    return Shape(
        vocab_size=vocab_size, context=256, layers=layers, heads=width // 64, kv_heads=width // 192, head_size=64,
        width=width, inner=8 * width // 3, activation="silu", gated=True, norm="rms", epsilon=1e-5, tied_head=True,
        attentions=(Attention(rotary),) * layers,
    )  # fmt: skip


def sane(storage: BlockStorage, outputs: int, inputs: int, generator: np.random.Generator) -> Blocks:
    """Random numbers as large as a model's weights. Random bytes would not do: some of the scales would be denormal
    floats, and a step would take a hundred times as long."""
    deviation = float(dequantised(_scaled(storage, 8, inputs, 1.0, generator)).std())
    return _scaled(storage, outputs, inputs, 1 / (deviation * inputs**0.5), generator)


def _scaled(storage: BlockStorage, outputs: int, inputs: int, scale: float, generator: np.random.Generator) -> Blocks:
    """A random weight in that storage; the scales of its blocks are near `scale`."""
    if storage in PLAIN:
        weight = torch.from_numpy(generator.standard_normal((outputs, inputs), np.float32)) * scale
        return Blocks(storage, weight.to(PLAIN[storage]).view(torch.uint8), inputs)
    block, nbytes = BLOCKS[storage]
    numbers = generator.integers(0, 256, (outputs, inputs // block, nbytes), np.uint8)
    for field in LAYOUTS[SAME.get(storage, storage)].scales:
        if field.size == 2:  # float16 scales; fields of one byte are factors of these
            scales = scale * generator.uniform(0.5, 1.5, (*numbers.shape[:2], field.count))
            numbers[..., field.at : field.at + 2 * field.count] = scales.astype(np.float16).view(np.uint8)
    if storage == "mxfp4":
        numbers[..., 0] = 128 + round(math.log2(scale))
    return Blocks(storage, torch.from_numpy(numbers.reshape(outputs, -1)), inputs)


class Made:
    """Random weights of a shape. The parts of a product's weight are made when they are asked for."""

    def __init__(self, shape: Shape, products: BlockStorage, embedding: BlockStorage) -> None:
        self.shape, self.products, self.embedding = shape, products, embedding
        self.generator = np.random.default_rng(0)

    def __getitem__(self, name: str) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(self.shape.width)
        return torch.cat([dequantised(part) for part in self.blocks(name)])

    def get(self, name: str) -> Tensor | None:
        return None

    def blocks(self, name: str) -> tuple[Blocks, ...]:
        shape = self.shape
        keys = shape.kv_heads * shape.head_size
        sizes, inputs = {
            "token_embedding": ((shape.vocab_size,), shape.width),
            "query_key_value.weight": ((shape.width, keys, keys), shape.width),
            "attention_out.weight": ((shape.width,), shape.width),
            "mlp_in.weight": ((shape.inner, shape.inner), shape.width),
            "mlp_out.weight": ((shape.width,), shape.inner),
        }[name.partition(".")[2] or name]
        storage = self.embedding if name == "token_embedding" else self.products
        return tuple(sane(storage, outputs, inputs, self.generator) for outputs in sizes)


def measure(passes: int, tick: Tick, names: Iterable[str] = MIXES, lanes: int | None = None) -> Result:
    """Time a step of each mix after DEPTH tokens; all steps take turns. Only SmolLM2's mix has bounds."""
    cases: dict[str, Callable[[], object]] = {}
    nbytes: dict[str, int] = {}
    for name in names:
        width, products, embedding = MIXES[name]
        shape = shape_of(width)
        model = NativeTransformer(shape, Made(shape, products, embedding), "stored", lanes=lanes)
        nbytes[name] = model.weight_bytes
        cases |= {f"{name} {tokens}": forward_case(model, tokens, DEPTH) for tokens in TOKENS}
    samples = []
    for sample in interleave(cases, passes, CPU):
        samples.append(sample)
        tick("steps")
    ms = {case: [sample[case] for sample in samples] for case in cases}
    result = Result(samples=ms)
    for name in nbytes:
        one = ms[f"{name} 1"]
        speed = f"{min(one):.2f} ms at best, {nbytes[name] / min(one) / 1e6:.1f} GB/s"
        for tokens in TOKENS[1:]:
            bound = BOUNDS.get(tokens) if name == SMOLLM2 else None
            what = f"{name}: {tokens} tokens over 1 ({speed})"
            result.bars.append(Bar(what, speed_up(ms[f"{name} {tokens}"], one), at_most=bound))
    return result
