"""Every number that crosses into C is checked on both sides, and C computes with nothing that it has not looked at."""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from shapes import SHAPES, compiled, random_tokens, random_weights, shapes, widths

from sybil.errors import UnsupportedModel, WeightsMismatch
from sybil.models.native import NativeTransformer
from sybil.models.native.structs import SCALES, BlockStruct, CacheStruct, FloatsStruct, ModelStruct, PartStruct
from sybil.models.shape import Attention, Shape

pytestmark = compiled

HUGE = (-(2**31) - 1, -(2**63), 2**31, 2**32, 2**32 + 8, 2**63, 10**30)


@pytest.mark.parametrize("number", HUGE)
def test_a_number_beyond_its_bits_is_refused_by_name(number: int) -> None:
    for struct, name in (
        (ModelStruct, "context"),
        (BlockStruct, "window"),
        (ModelStruct, "layers"),
        (ModelStruct, "sound"),
    ):
        with pytest.raises(UnsupportedModel, match=f"{name} is {number}.*32 bits"):
            struct(**{name: number})
    with pytest.raises(UnsupportedModel, match=r"capacity is .*32 bits"):
        CacheStruct(capacity=number)
    if not -(2**63) <= number < 2**63:
        with pytest.raises(UnsupportedModel, match=r"count is .*64 bits"):
            FloatsStruct(0, number)
        with pytest.raises(UnsupportedModel, match=r"bytes is .*64 bits"):
            PartStruct(0, number)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e39, 10**400, "1", None])
def test_a_number_that_no_float_holds_is_refused_by_name(number: Any) -> None:
    for name in SCALES:
        with pytest.raises(UnsupportedModel, match=f"{name} is "):
            ModelStruct(**{name: number})
    if not isinstance(number, int):
        with pytest.raises(UnsupportedModel, match=r"heads is .*32 bits"):
            ModelStruct(heads=number)


def spoilt(shape: Shape, **fields: Any) -> Shape:
    """The shape with other fields, as if nobody had looked at them."""
    other = Shape(**{name: getattr(shape, name) for name in Shape.__dataclass_fields__})
    for name, value in fields.items():
        object.__setattr__(other, name, value)
    return other


@widths
@pytest.mark.parametrize(
    "field",
    ["vocab_size", "context", "heads", "kv_heads", "head_size", "width", "inner", "window", "position_offset"],
)
def test_c_refuses_numbers_that_are_not_its_weights(field: str, lanes: int) -> None:
    """A negative window made it write outside its memory."""
    for shape in (SHAPES["gpt2"], *([] if field == "context" else [SHAPES["qwen3, windowed"]])):
        weights, given = random_weights(shape), getattr(shape.attentions[0] if field == "window" else shape, field) or 0
        for value in (-(2**31), -5, -1, 0, given - 1, given + 1, 2 * given, 2**30 + 1, 2**31 - 1, *HUGE):
            if value == given or (field == "window" and 0 <= value < 2**31):
                continue
            if field == "position_offset" and shape.position_offset is None:
                continue
            changed: dict[str, Any] = {field: value}
            if field == "window":
                changed = {"attentions": (Attention(shape.attentions[0].rotary, value), *shape.attentions[1:])}
            other = spoilt(shape, **changed, **({"embedding_width": value} if field == "width" else {}))
            with pytest.raises(UnsupportedModel, match=r"the C forward (refuses|takes)"):
                NativeTransformer(other, weights, lanes=lanes)


@widths
@shapes
def test_c_refuses_weights_that_are_missing_or_of_another_size(shape: Shape, lanes: int) -> None:
    """Whatever the name: each is read as far as the shape says."""
    weights = random_weights(shape)
    for name in weights:
        shorter = weights[name][: len(weights[name]) // 2]
        longer = torch.cat([weights[name], weights[name]])
        narrower = weights[name][..., :-1].contiguous()
        for other in (shorter, longer, narrower, *([] if name.endswith(".bias") else [None])):
            changed = {key: value for key, value in weights.items() if key != name}
            with pytest.raises((UnsupportedModel, WeightsMismatch, KeyError), match=rf"refuses|don't fit|{name}"):
                NativeTransformer(shape, changed | ({} if other is None else {name: other}), lanes=lanes)


def test_c_refuses_what_no_shape_says() -> None:
    """Fields that Python fills from tables: the model is looked at once, and not computed with where it is unsound."""
    shape = SHAPES["qwen3, windowed"]
    model = NativeTransformer(shape, random_weights(shape))
    library, struct, tokens = model._library, model._model, torch.tensor([[1]])
    fields = ("activation", "norm", "gated", "normed", "parallel", "query_key_norm", "layers", "block_count")
    for part, field in [
        *((struct, field) for field in fields),
        (struct.blocks[1], "rotary_size"),
        (struct.blocks[1], "layer"),
    ]:
        kept = getattr(part, field)
        for value in (-1, 1 if field == "layers" else 7, 2**31 - 1, -(2**31)):
            setattr(part, field, value)
            assert library.sybil_refusal(model._address)
            with pytest.raises(IndexError, match="sound"):
                model.forward(tokens, model.new_cache(1, 8))
        setattr(part, field, kept)
        assert library.sybil_refusal(model._address) is None
    for product in (struct.blocks[1].mlp_in, struct.head, struct.token_embedding):
        fields = [(product, "inputs"), (product, "outputs")]
        fields += [(product.parts[0], field) for field in ("outputs", "storage", "bytes")]
        for each, field in fields:
            kept = getattr(each, field)
            for value in (-1, 0, kept + 1, kept - 1, 2**31 - 1):
                if value == kept:
                    continue
                setattr(each, field, value)
                assert library.sybil_refusal(model._address), (field, value)
            setattr(each, field, kept)
        spare = product.parts[2]
        for field, value in (("weight", 64), ("bytes", 64), ("outputs", 1), ("outputs", -1)):
            setattr(spare, field, value)
            assert library.sybil_refusal(model._address), field
            setattr(spare, field, None if field == "weight" else 0)
    assert library.sybil_refusal(model._address) is None
    model.forward(tokens, model.new_cache(1, 8))


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("count", (-1, 0, 9, 2**31 - 1, -(2**31))),
        ("threads", (-1, 0, 1025, 2**31 - 1)),
        ("floats", (-1, 0, 100)),
        ("scratch", (None,)),
        ("tokens", (None,)),
        ("lengths", (None,)),
        ("batch", (-1, 0, 3, 2**31 - 1)),
        ("capacity", (-1, 40, 2**31 - 1)),
        ("places", (-1, 5, 24, 2**31 - 1)),
        ("cache floats", (-1, 0, 10**6)),
    ],
)
def test_c_refuses_calls_that_do_not_fit(argument: str, values: tuple[Any, ...]) -> None:
    shape = SHAPES["gpt2"]
    model = NativeTransformer(shape, random_weights(shape), threads=1)
    tokens, logits = random_tokens(shape, 2, 3), torch.zeros(2, 3, shape.vocab_size)
    for value in values:
        cache = model.new_cache(2, 4)
        cache.make_room(6, model._library.sybil_scratch(model._address, 6, 4))
        call = {
            "tokens": tokens.data_ptr(),
            "lengths": cache.lengths.data_ptr(),
            "count": 3,
            "logits": logits.data_ptr(),
            "scratch": cache.scratch_address,
            "floats": cache.floats,
            "threads": 1,
        }
        assert model._library.sybil_forward(model._address, cache.address, *call.values()) is None
        held = cache.keys.clone()
        field = "floats" if argument == "cache floats" else argument
        if argument in call:
            call[argument] = value
        else:
            setattr(cache._struct, field, value)
        assert model._library.sybil_forward(model._address, cache.address, *call.values()), (argument, value)
        assert cache.keys.equal(held)


@pytest.mark.parametrize("numbers", [(0, 8), (-1, 8), (2**62, 8), (4, -1), (4, 2**62)])
def test_working_memory_is_counted_without_overflow(numbers: tuple[int, int]) -> None:
    model = NativeTransformer(SHAPES["wide"], random_weights(SHAPES["wide"]))
    assert model._library.sybil_scratch(model._address, *numbers) == 0
    assert model._library.sybil_scratch(model._address, 2**24, 2**30) > 2**35


def test_c_refuses_a_block_that_no_family_has() -> None:
    """It would go through more stages than there is memory for, and wait forever."""
    for other in ({"normed": "sum"}, {"normed": "both"}, {"residual_scale": 0.5}):
        shape = replace(SHAPES["neox"], **other)
        with pytest.raises(UnsupportedModel, match="parallel"):
            NativeTransformer(shape, random_weights(shape))


@pytest.mark.parametrize("name", SCALES)
def test_c_refuses_scales_that_it_cannot_compute_with(name: str) -> None:
    shape = SHAPES["gemma2"]
    model = NativeTransformer(shape, random_weights(shape))
    fields = [] if name in ("attention_scale", "embedding_scale", "residual_scale") else [-1.0]
    for value in (math.nan, math.inf, *([0.0] if name == "logit_divisor" else fields)):
        ctypes.c_float.from_address(model._address + getattr(type(model._model), name).offset).value = value
        assert model._library.sybil_refusal(model._address), value
