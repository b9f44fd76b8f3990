"""Shapes of every kind that the C forward computes, random weights for them, and logits to compare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sybil.models import Model, native
from sybil.models.native import library
from sybil.models.shape import Attention, Rotary, Shape
from sybil.models.storage import Storage, keep, to_float32

COMMON: dict[str, Any] = dict(vocab_size=37, context=48, layers=2, epsilon=1e-5)
ROTARY = Rotary(6, (1.0, 0.1, 0.01))
OTHER = Rotary(10, (1.0, 0.5, 0.3, 0.2, 0.1))
GROUPED: dict[str, Any] = dict(
    heads=4, kv_heads=2, head_size=10, width=24, inner=21, activation="gelu_tanh", gated=True, norm="rms"
)
SHAPES = {
    "gpt2": Shape(**COMMON, heads=2, width=12, inner=21, activation="gelu_tanh", position_offset=0, tied_head=True),
    "opt-350m": Shape(
        **COMMON, heads=4, width=24, embedding_width=17, inner=50, activation="relu", normed="sum", final_norm=False,
        position_offset=2, tied_head=True,
    ),
    "qwen3, windowed": Shape(
        **COMMON, heads=4, kv_heads=2, head_size=10, width=24, inner=21, activation="silu", gated=True, norm="rms",
        attentions=(Attention(ROTARY, 5),) * 2, query_key_norm="head", tied_head=False,
    ),
    "neox": Shape(
        **COMMON, heads=4, width=32, inner=50, activation="gelu", parallel=True, attentions=(Attention(ROTARY),) * 2,
        tied_head=False,
    ),
    "wide": Shape(**COMMON, heads=4, width=200, inner=777, activation="gelu", position_offset=0, tied_head=True),
    "gemma2": Shape(
        **COMMON, **GROUPED, attentions=(Attention(ROTARY, 5), Attention(ROTARY)), normed="both",
        embedding_scale=4.9, attention_scale=0.4, attention_cap=2.0, logit_cap=3.0, tied_head=True,
    ),
    "gemma3": Shape(
        **COMMON | {"layers": 3}, **GROUPED, attentions=(Attention(ROTARY, 7), Attention(), Attention(OTHER, 1)),
        normed="both", query_key_norm="head", embedding_scale=4.9, tied_head=True,
    ),
    "olmo2": Shape(
        **COMMON, **GROUPED, attentions=(Attention(ROTARY),) * 2, normed="output", query_key_norm="whole",
        tied_head=False,
    ),
    "granite": Shape(
        **COMMON, **GROUPED, attentions=(Attention(ROTARY),) * 2, embedding_scale=12.0, residual_scale=0.22,
        logit_divisor=8.0, tied_head=True,
    ),
}  # fmt: skip
compiled = pytest.mark.skipif(library.load() is None, reason="there is no C compiler here")
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
storages = pytest.mark.parametrize("storage", native.STORAGES, ids=str)
widths = pytest.mark.parametrize("lanes", library.WIDTHS)


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def norm(name: str, size: int, biased: bool = True) -> None:
        weights[f"{name}.weight"] = 1 + normal(size) / 10
        if biased and shape.norm == "layer":
            weights[f"{name}.bias"] = normal(size) / 10

    def product(name: str, inputs: int, outputs: int, biased: bool = True) -> None:
        weights[f"{name}.weight"] = normal(outputs, inputs) / inputs**0.5
        if biased:
            weights[f"{name}.bias"] = normal(outputs) / 10

    width, embedded = shape.width, shape.embedding_width
    weights["token_embedding"] = normal(shape.vocab_size, embedded)
    if shape.position_offset is not None:
        weights["position_embedding"] = normal(shape.context + shape.position_offset, width)
    if embedded != width:
        product("project_in", embedded, width, biased=False)
        product("project_out", width, embedded, biased=False)
    for layer in range(shape.layers):
        for name, size in shape.norms().items():
            norm(f"{layer}.{name}", size, biased=name not in ("query_norm", "key_norm"))
        product(f"{layer}.query_key_value", width, (shape.heads + 2 * shape.kv_heads) * shape.head_size)
        product(f"{layer}.attention_out", shape.heads * shape.head_size, width)
        product(f"{layer}.mlp_in", width, (1 + shape.gated) * shape.inner)
        product(f"{layer}.mlp_out", shape.inner, width)
    if shape.final_norm:
        norm("final_norm", width)
    if not shape.tied_head:
        product("head", embedded, shape.vocab_size, biased=False)
    return weights


def rounded(weights: dict[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """The weights in float64; those of products have the values that the storage keeps."""

    def kept(name: str, weight: Tensor) -> Tensor:
        if weight.ndim == 1 or name == "position_embedding":
            return weight.double()
        return to_float32(*keep(weight, storage)).double()

    return {name: kept(name, weight) for name, weight in weights.items()}


def random_tokens(shape: Shape, batch: int, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape.vocab_size, (batch, count), generator=generator)


def logits_in_parts(model: Model, tokens: Tensor, parts: list[int], capacity: int = 0) -> Tensor:
    """The logits (batch, n, vocab) of tokens (batch, n) that are fed in parts."""
    cache = model.new_cache(len(tokens), capacity or tokens.shape[1])
    return torch.cat([model.forward(part, cache) for part in torch.split(tokens, parts, 1)], 1)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    """Check that logits agree up to float32's rounding: 2e-6 of the largest logit."""
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


def assert_same_bits(one: Tensor, other: Tensor) -> None:
    assert one.view(torch.int32).equal(other.view(torch.int32))
