"""forward.c computes what Transformer computes, by vectors of 4, 8 and 16 floats, in its own memory and no other."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from shapes import (
    COMMON,
    SHAPES,
    assert_near,
    assert_same_bits,
    compiled,
    logits_in_parts,
    random_tokens,
    random_weights,
    rounded,
    shapes,
    storages,
    widths,
)
from tiny import gpt2, save
from torch import Tensor

import sybil
from sybil.errors import InvalidSetting, UnsupportedModel, WeightsMismatch
from sybil.models.native import NativeTransformer
from sybil.models.native.structs import Cache, Floats, Model, Product
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape
from sybil.models.storage import Storage, keep, to_float32

pytestmark = compiled

CAPACITIES = (1, 5, 8, 9, 16)
HUGE = (-(2**31) - 1, -(2**63), 2**31, 2**32, 2**32 + 8, 2**63, 10**30)


@shapes
@storages
def test_it_computes_what_the_operators_compute(shape: Shape, storage: Storage) -> None:
    weights = random_weights(shape)
    reference = Transformer(shape, rounded(weights, storage))
    tokens, lengths = random_tokens(shape, 3, 30), torch.tensor([4, 19, 9])

    def computed(model: Any) -> Tensor:
        cache = model.new_cache(3, 40)
        model.prefill(tokens[:, :20], cache)
        cache.lengths = lengths
        logits = torch.cat([model.forward(part, cache) for part in torch.split(tokens[:, 20:], [1, 4, 5], 1)], 1)
        assert cache.lengths.tolist() == (lengths + 10).tolist()
        return logits

    wanted = computed(reference)
    for lanes, threads in ((4, 1), (8, 2), (16, 1), (16, 2)):
        assert_near(computed(NativeTransformer(shape, weights, storage, threads, lanes)), wanted)


@widths
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_cache_holds_what_was_asked_for(capacity: int, lanes: int) -> None:
    """The same number whatever is stored in whole vectors, with and without a window, by storages in turn."""
    storage: Storage
    for shape, storage in zip(SHAPES.values(), itertools.cycle(("float32", "int8", "bfloat16")), strict=False):
        model = NativeTransformer(shape, random_weights(shape), storage, lanes=lanes)
        tokens, cache = random_tokens(shape, 2, capacity + 1), model.new_cache(2, capacity)
        fitting = tokens[:, :capacity]
        found = torch.cat([model.forward(part, cache) for part in fitting.split(3, 1)], 1)
        assert_same_bits(found, logits_in_parts(model, fitting, [1] * capacity, 48))
        held = [part.clone() for part in (cache.keys, cache.values)]
        for lengths in ([capacity, 0], [0, capacity]):
            cache.lengths = torch.tensor(lengths)
            with pytest.raises(IndexError, match=f"a cache of {capacity} "):
                model.forward(tokens[:, capacity:], cache)
            assert cache.lengths.tolist() == lengths
        with pytest.raises(IndexError, match=f"a cache of {capacity} "):
            model.forward(tokens, model.new_cache(2, capacity))
        assert all(map(torch.equal, held, (cache.keys, cache.values)))
        assert (cache.capacity, cache.keys.shape[-1] % lanes) == (capacity, 0)


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("static", [False, True])
def test_the_operators_caches_hold_as_much(capacity: int, static: bool) -> None:
    """torch drops a token that finds no place without a word, and a static cache has places to spare."""
    shape = SHAPES["qwen3, windowed"]
    model = Transformer(shape, random_weights(shape), "plain", static)
    tokens, cache = random_tokens(shape, 2, capacity + 1), model.new_cache(2, capacity)
    model.forward(tokens[:, :capacity], cache)
    for lengths in ([capacity, capacity], [capacity, 0]):
        cache.lengths = torch.tensor(lengths)
        with pytest.raises(IndexError, match=f"a cache of {capacity}$"):
            model.forward(tokens[:, capacity:], cache)
        with pytest.raises(IndexError, match=f"a cache of {capacity}$"):
            model.prefill(tokens[:, capacity:], cache)
        assert cache.lengths.tolist() == lengths


@widths
@pytest.mark.parametrize("token", [-1, 37, 2**31, -(2**63)])
def test_what_does_not_fit_is_an_error_and_no_memory_of_others(token: int, lanes: int) -> None:
    model = NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]), lanes=lanes)
    cache = model.new_cache(1, 8)
    with pytest.raises(IndexError, match=str(token)):
        model.forward(torch.tensor([[1, token]]), cache)
    model.forward(torch.ones(1, 8, dtype=torch.int64), cache)
    with pytest.raises(IndexError, match="a cache of 8"):
        model.forward(torch.tensor([[1]]), cache)
    assert cache.lengths.tolist() == [8]
    for length in (-1, 9, 2**31, 2**62, -(2**63), 2**63 - 1):
        cache.lengths = torch.tensor([length])
        with pytest.raises(IndexError, match="a cache of 8"):
            model.forward(torch.tensor([[1]]), cache)
    with pytest.raises(IndexError, match="has 2 rows"):
        model.forward(torch.tensor([[1]]), model.new_cache(2, 8))
    model.prefill(torch.empty(1, 0, dtype=torch.int64), model.new_cache(1, 8))
    for batch, capacity in ((0, 8), (-1, 8), (1, -1)):
        with pytest.raises(InvalidSetting, match=f"{batch} rows of {capacity} tokens"):
            model.new_cache(batch, capacity)


# ---- numbers that cross into C ----


@pytest.mark.parametrize("number", HUGE)
def test_a_number_beyond_its_bits_is_refused_by_name(number: int) -> None:
    for name in ("context", "window", "layers", "sound"):
        with pytest.raises(UnsupportedModel, match=f"{name} is {number}.*32 bits"):
            Model(**{name: number})
    with pytest.raises(UnsupportedModel, match=r"capacity is .*32 bits"):
        Cache(capacity=number)
    if not -(2**63) <= number < 2**63:
        with pytest.raises(UnsupportedModel, match=r"count is .*64 bits"):
            Floats(0, number)
        with pytest.raises(UnsupportedModel, match=r"bytes is .*64 bits"):
            Product(0, number)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e39, 10**400, "1", None])
def test_a_number_that_no_float_holds_is_refused_by_name(number: Any) -> None:
    for name in ("epsilon", "attention_scale"):
        with pytest.raises(UnsupportedModel, match=f"{name} is "):
            Model(**{name: number})
    if not isinstance(number, int):
        with pytest.raises(UnsupportedModel, match=r"heads is .*32 bits"):
            Model(heads=number)


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
        weights, given = random_weights(shape), getattr(shape, field) or 0
        for value in (-(2**31), -5, -1, 0, given - 1, given + 1, 2 * given, 2**30 + 1, 2**31 - 1, *HUGE):
            if value == given or (field == "window" and 0 <= value < 2**31):
                continue
            if field == "position_offset" and shape.position_offset is None:
                continue
            other = spoilt(shape, **{field: value}, **({"embedding_width": value} if field == "width" else {}))
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
    for field in ("activation", "norm", "gated", "post_norm", "parallel", "rotary_size", "layers", "block_count"):
        kept = getattr(struct, field)
        for value in (-1, 7, 2**31 - 1, -(2**31)):
            setattr(struct, field, value)
            assert library.sybil_refusal(model._address)
            with pytest.raises(IndexError, match="sound"):
                model.forward(tokens, model.new_cache(1, 8))
        setattr(struct, field, kept)
        assert library.sybil_refusal(model._address) is None
    for product in (struct.blocks[1].mlp_in, struct.head, struct.token_embedding):
        for field in ("inputs", "outputs", "storage", "bytes"):
            kept = getattr(product, field)
            for value in (-1, 0, kept + 1, kept - 1, 2**31 - 1):
                if value == kept:
                    continue
                setattr(product, field, value)
                assert library.sybil_refusal(model._address), (field, value)
            setattr(product, field, kept)
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
        ("places", (-1, 5, 8, 2**31 - 1)),
        ("cache floats", (-1, 0, 10**6)),
    ],
)
def test_c_refuses_calls_that_do_not_fit(argument: str, values: tuple[Any, ...]) -> None:
    shape = SHAPES["gpt2"]
    model = NativeTransformer(shape, random_weights(shape), threads=1)
    tokens, logits = random_tokens(shape, 2, 3), torch.zeros(2, 3, shape.vocab_size)
    for value in values:
        cache = model.new_cache(2, 4)
        cache.make_room(6, model._library.sybil_scratch(model._address, 6, 4, 1))
        call = {
            "tokens": tokens.data_ptr(),
            "lengths": cache.lengths.data_ptr(),
            "count": 3,
            "logits": logits.data_ptr(),
            "scratch": cache.scratch_address,
            "floats": len(cache.scratch),
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


@pytest.mark.parametrize("numbers", [(0, 8, 1), (-1, 8, 1), (2**62, 8, 1), (4, -1, 1), (4, 2**62, 1), (4, 8, 0)])
def test_working_memory_is_counted_without_overflow(numbers: tuple[int, int, int]) -> None:
    model = NativeTransformer(SHAPES["wide"], random_weights(SHAPES["wide"]))
    assert model._library.sybil_scratch(model._address, *numbers) == 0
    assert model._library.sybil_scratch(model._address, 2**24, 2**30, 2**10) > 2**40


def test_c_refuses_a_block_that_no_family_has() -> None:
    """It would go through more stages than there is memory for, and wait forever."""
    shape = replace(SHAPES["opt-350m"], parallel=True)
    with pytest.raises(UnsupportedModel, match="post_norm"):
        NativeTransformer(shape, random_weights(shape))


# ---- NaN and infinity ----

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
    shape = SHAPES["gpt2"]
    weights = random_weights(shape)
    weights["position_embedding"][4, 3] = math.nan  # its tokens' activations; torch has no scale for such
    found = logits_in_parts(Transformer(shape, weights, "int8"), random_tokens(shape, 1, 6), [1] * 6)[0]
    assert found.isnan().all(-1).tolist() == [False, False, False, False, True, True]


def test_a_float64_model_is_left_to_the_operators(tmp_path: Any) -> None:
    folder = save(gpt2(), tmp_path)
    assert isinstance(sybil.load(folder, dtype=torch.float64).target, Transformer)
    assert isinstance(sybil.load(folder, dtype=torch.float32).target, NativeTransformer)
