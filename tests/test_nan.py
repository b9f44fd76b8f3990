"""What is no number does not become one: not in a weight, whatever its storage, nor in an activation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from shapes import COMMON, SHAPES, compiled, logits_in_parts, random_tokens, random_weights, rounded, storages

from sybil.models.native import NativeTransformer
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape
from sybil.models.storage import Storage, keep, to_float32

pytestmark = compiled

NOT_NUMBERS = (0x7FC00000, 0x7FC00001, 0x7F800001, -0x3FFEDD, 0x7FFFFFFF, -0x7FFFAB, 0x7F800000, -0x800000)
"""float32's bits: NaNs, quiet and signalling, of several payloads and signs; both infinities."""


@storages
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "wide"])
def test_what_is_no_number_stays_none(name: str, storage: Storage) -> None:
    """One such weight at a time, in every tensor: what the operators make NaN of is NaN, the rest is what it was."""
    shape, spread = SHAPES[name], torch.Generator().manual_seed(0)
    tokens, weights = random_tokens(shape, 1, 6), random_weights(shape)
    bits = itertools.cycle(NOT_NUMBERS)
    seen = 0
    for spoilt_name, weight in weights.items():
        broken = weight.clone()
        place = int(torch.randint(weight.numel(), (), generator=spread))
        broken.view(-1).view(torch.int32)[place] = next(bits)
        changed = weights | {spoilt_name: broken}
        wanted = logits_in_parts(Transformer(shape, rounded(changed, storage), "plain"), tokens, [4, 2])
        seen += int(wanted.isnan().any())
        for lanes in (4, 8, 16):
            found = logits_in_parts(NativeTransformer(shape, changed, storage, lanes=lanes), tokens, [4, 2])
            assert bool(found[wanted.isnan()].isnan().all()), (spoilt_name, place)
            assert found.isfinite().equal(wanted.isfinite()), (spoilt_name, place)
    assert seen > len(weights) / 2


@pytest.mark.parametrize("bits", NOT_NUMBERS)
@pytest.mark.parametrize("activation", ["none", "gelu_tanh", "gelu", "relu", "silu"])
def test_no_activation_makes_a_number_of_it(activation: Any, bits: int) -> None:
    """A NaN of some payloads came out of the exponential finite, and of relu as 0, in oneDNN's too."""
    shape = Shape(**COMMON, heads=2, width=12, inner=21, activation=activation, position_offset=0, tied_head=True)
    weights = random_weights(shape)
    broken = weights["0.mlp_in.bias"]
    broken.view(torch.int32)[3] = bits
    tokens = random_tokens(shape, 1, 6)
    wanted = logits_in_parts(Transformer(shape, rounded(weights, "float32"), "plain"), tokens, [6])
    packed = logits_in_parts(Transformer(shape, weights), tokens, [6])
    assert wanted.isnan().any() or activation == "relu"
    assert packed.isnan().equal(wanted.isnan())
    for lanes in (4, 8, 16):
        found = logits_in_parts(NativeTransformer(shape, weights, lanes=lanes), tokens, [6])
        assert found.isnan().equal(wanted.isnan())


@pytest.mark.parametrize("bits", NOT_NUMBERS)
def test_a_rounded_weight_is_no_number_where_it_was_none(bits: int) -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    weight.view(torch.int32)[2, 33] = bits
    for storage in ("bfloat16", "float16", "float32", "int8"):
        kept = to_float32(*keep(weight, storage))
        assert not kept[2, 33].isfinite()
        assert kept[2, 33].isnan() or not weight[2, 33].isnan()
        assert kept[[0, 1, 3, 4]].isfinite().all()
    scales, numbers = keep(weight, "int8")
    assert scales is not None
    assert scales.isnan().tolist() == [False, False, True, False, False]
    assert numbers[2].count_nonzero() == 0


def test_an_int8_product_of_the_operators_takes_what_is_no_number() -> None:
    """torch finds no scale for a row with NaN, or rounds it to a number, by where it stands."""
    shape = SHAPES["gpt2"]
    for place, bad in itertools.product(range(shape.width), (math.nan, math.inf)):
        weights = random_weights(shape)
        weights["position_embedding"][4, place] = bad
        for parts in ([1] * 6, [4, 2]):
            found = logits_in_parts(Transformer(shape, weights, "int8"), random_tokens(shape, 1, 6), parts)[0]
            assert found[:4].isfinite().all()
            assert found[4:].isnan().all()
