"""Copies in few bits: what a weight becomes, the sums of integers by every set of instructions, and the forward's
numbers beside a reference that computes what integers.h says."""

from __future__ import annotations

import copy
import ctypes
import pickle
import platform
import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sanitizing import random_rounding, random_shape
from shapes import (
    SHAPES,
    assert_same_bits,
    compiled,
    logits_in_parts,
    random_tokens,
    random_weights,
    shapes,
    widths,
)
from torch import Tensor

from sybil.errors import InvalidSetting
from sybil.models.native import NativeTransformer, compiler, making, packing, records
from sybil.models.operators import blocks
from sybil.models.operators.linear import activate
from sybil.models.operators.transformer import Transformer
from sybil.models.rounding import BLOCK, _packed, block_bytes, decoded, rounded
from sybil.models.shape import Shape
from sybil.models.storage import Bits, Rounding

BITS: tuple[Bits, ...] = (4, 5, 6, 8)
every_bits = pytest.mark.parametrize("bits", BITS)


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def fields(numbers: Tensor, bits: Bits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d and m (outputs, blocks) in float64, q (outputs, blocks, 32), byte by byte as rounding.py says."""
    blocks = numbers.numpy().reshape(len(numbers), -1, block_bytes(bits))
    scales = blocks[..., :4].copy().view(np.float16).astype(np.float64)
    q = np.zeros((*blocks.shape[:2], BLOCK), np.int64)
    for i in range(BLOCK):
        g, b = divmod(i, 4)
        byte = lambda word, b=b: blocks[..., 4 + 4 * word + b].astype(np.int64)  # noqa: E731
        if bits == 8:
            q[..., i] = byte(g)
            continue
        q[..., i] = byte(g // 2) >> g % 2 * 4 & 15
        if bits == 5:
            q[..., i] |= (byte(4) >> g & 1) << 4
        if bits == 6:
            q[..., i] |= (byte(4 + g // 4) >> g % 4 * 2 & 3) << 4
    return scales[..., 0], scales[..., 1], q


@every_bits
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 100])
def test_a_weight_is_rounded_to_the_nearest_of_its_block_and_none_is_clipped(
    bits: Bits, scale: float, inputs: int
) -> None:
    weight = normal(50, inputs) * scale + scale / 3
    numbers = rounded(weight, bits)
    d, m, q = fields(numbers, bits)
    full = torch.nn.functional.pad(weight[None], (0, -inputs % BLOCK), "replicate")[0].double().numpy()
    full = full.reshape(*d.shape, BLOCK)
    assert (m <= full.min(2)).all()
    assert (d * (2**bits - 1) + m >= full.max(2) - 1e-5 * scale).all()
    nearest = np.clip(np.rint((full - m[..., None]) / np.maximum(d, 1e-30)[..., None]), 0, 2**bits - 1)
    away, least = (np.abs(d[..., None] * each + m[..., None] - full) for each in (q, nearest))
    assert (away <= least + 1e-6 * scale).all()
    assert (away <= d[..., None] * 0.5001 + 1e-5 * scale).all()
    assert (d <= (full.max(2) - m) / (2**bits - 1) * 1.001 + 6e-8).all()  # no coarser than it has to be
    wanted = (d[..., None] * q + m[..., None]).astype(np.float32).reshape(50, -1)[:, :inputs]
    assert_same_bits(decoded(numbers, bits, inputs), torch.from_numpy(wanted))


@every_bits
def test_weights_on_a_grid_stay_where_they_are(bits: Bits) -> None:
    """As those of a file's blocks that coincide with ours."""
    generator = np.random.default_rng(0)
    d, m = generator.uniform(0.01, 0.1, (2, 40, 3, 1)).astype(np.float16).astype(np.float32)
    q = generator.integers(0, 2**bits, (40, 3, BLOCK)).astype(np.float32)
    q[..., 0], q[..., 1] = 0, 2**bits - 1
    weight = torch.from_numpy((d * q - m).reshape(40, -1))
    assert torch.equal(decoded(rounded(weight, bits), bits, 96), weight)
    one = torch.full((2, 40), 0.25)
    assert torch.equal(decoded(rounded(one, bits), bits, 40), one)
    assert torch.equal(decoded(rounded(0 * one, bits), bits, 40), 0 * one)


@every_bits
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e8, -1e8])
def test_a_block_with_what_float16_has_no_number_for_is_nan(bits: Bits, bad: float) -> None:
    weight = normal(5, 70)
    weight[2, 33] = bad
    found = decoded(rounded(weight, bits), bits, 70)
    assert found[2, 32:64].isnan().all()
    found[2, 32:64] = 0
    assert found.isfinite().all()


def test_few_rows_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(50, 70)
    wanted = rounded(weight, 5)
    monkeypatch.setattr("sybil.models.rounding.AT_ONCE", 300)
    assert torch.equal(rounded(weight.double(), 5), wanted)


@compiled
@every_bits
@pytest.mark.parametrize("inputs", [1, 31, 33, 96])
def test_c_rounds_to_the_same_bytes(bits: Bits, inputs: int) -> None:
    """Of many sizes, with outliers, on a grid, and with what is no number."""
    generator = torch.Generator().manual_seed(100 * bits + inputs)
    plain = torch.randn(300, inputs, generator=generator)
    wide = plain * (10 ** torch.empty(300, 1).uniform_(-9, 6, generator=generator)) + plain[:, :1]
    outliers = plain.where(torch.rand(plain.shape, generator=generator) > 0.05, 100 * plain)
    odd = plain.clone()
    for number in (torch.nan, torch.inf, -torch.inf, 1e8, -1e8, 0.0, -0.0, 1e-40, 65504.0, 65520.0):
        odd[torch.rand(plain.shape, generator=generator) < 0.005] = number
    for importance in (None, torch.randn(inputs, generator=generator).mul(2).exp(), torch.zeros(inputs)):
        for weight in (plain, wide, outliers, odd, (4 * plain).round(), plain.T.contiguous().T):
            wanted = rounded(weight, bits, importance)
            assert torch.equal(making.rounded(weight, bits, importance), wanted)
            if importance is not None:  # the check would see a fit left out
                assert (
                    inputs == 1
                    or weight is odd
                    or importance.sum() == 0
                    or not torch.equal(wanted, rounded(weight, bits))
                )


@pytest.mark.parametrize("bits", [3, 7, 16, "4", None, True])
def test_other_bits_are_refused(bits: Any) -> None:
    with pytest.raises(InvalidSetting, match="every product is to be rounded"):
        Rounding(bits)
    with pytest.raises(InvalidSetting, match=r"0\.mlp_in is to be rounded"):
        Rounding(4, {"0.mlp_in": bits})


WITHOUT = ("-mno-avxvnni", "-mno-avx512vnni")
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "this processor's, 16": ("-march=native", "-DLANES=16"),
    "this processor's, 8": ("-march=native", "-DLANES=8"),
    "a loop, 4": ("-march=native", "-DLANES=4"),
    "a loop": (),
}
if platform.machine() == "x86_64":
    INSTRUCTIONS |= {
        "pairs, 16": ("-march=native", *WITHOUT, "-DLANES=16"),
        "pairs, 8": ("-march=native", *WITHOUT, "-DLANES=8"),
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    folder, source = tmp_path_factory.mktemp("dots"), Path(__file__).parent / "native" / "dots.c"
    flags = ("-O1", "-std=gnu11", "-shared", "-fPIC", "-Wno-psabi", f"-I{compiler.SOURCE.parent}")
    made = {}
    for index, (name, instructions) in enumerate(INSTRUCTIONS.items()):
        file = folder / f"{index}.so"
        subprocess.run([*compiler.command(), *flags, *instructions, "-o", str(file), str(source), "-lm"], check=True)
        made[name] = ctypes.CDLL(str(file))
    return made


@compiled
@every_bits
def test_sums_of_integers_are_exact_by_every_set_of_instructions(bits: Bits, built: dict[str, ctypes.CDLL]) -> None:
    """The largest numbers of both signs among them, where pairs in 16 bits would saturate."""
    generator = np.random.default_rng(bits)
    for name, library in built.items():
        lanes = library.lanes()
        panel, word = 3 * lanes, records.ROUNDED[bits]
        for case in range(12):
            q = generator.integers(0, 2**bits, (panel, BLOCK))
            x = generator.integers(-127, 128, BLOCK).astype(np.int8)
            if case < 4:
                q[:], x[:] = 2**bits - 1, (127, -127, 127, 127)[case]
                x[::2] *= 1 if case < 3 else -1
            numbers = packed(q, bits)
            record = torch.zeros(records.LAYOUTS[word].record_bytes(lanes), dtype=torch.uint8)
            records.fill(record, word, torch.from_numpy(numbers), lanes)
            words, out = record[records.LAYOUTS[word].scale_bytes(lanes) :].numpy().copy(), np.zeros(panel, np.int32)
            library.dots(*(ctypes.c_void_p(each.ctypes.data) for each in (words, x)), storage_of(word), pointer(out))
            assert (out == q @ x.astype(np.int64)).all(), name


def storage_of(word: records.Word) -> ctypes.c_int32:
    return ctypes.c_int32(records.WORDS.index(word))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def packed(q: np.ndarray, bits: Bits) -> np.ndarray:
    """Blocks (outputs, bytes of one) of those numbers (outputs, 32), with zeros for scale and minimum."""
    words = _packed(torch.from_numpy(q.astype(np.uint8)).view(torch.int32), bits).view(torch.uint8)
    return torch.nn.functional.pad(words, (4, 0)).numpy()


def in_integers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (..., n) float32 as integers.h rounds them: numbers (..., blocks, 32), scales (..., blocks), float64."""
    blocks = torch.nn.functional.pad(x, (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(-1)
    sound = (largest >= 2.0**-100) & largest.isfinite()
    factor = torch.div(torch.tensor(127.0), largest).where(sound, 0)  # 127 / largest is 127 * (1 / largest) to torch
    numbers = (blocks.where(sound[..., None], 0).double() * factor.double()[..., None]).round()
    return numbers, (largest / 127).where(sound, 0).where(largest.isfinite(), torch.nan).double()


@compiled
def test_inputs_are_rounded_as_the_reference_rounds_them(built: dict[str, ctypes.CDLL]) -> None:
    """Denormal ones, huge ones, halves, what is no number, and blocks that aren't full."""
    rows = [normal(100) * 2.0**exponent for exponent in (-149, -126, -101, -100, -99, 0, 100, 126)]
    rows += [normal(33), normal(1), torch.zeros(32), torch.arange(-64, 64) / 2, -torch.arange(128.0), -torch.ones(64)]
    for bad in (torch.nan, torch.inf, -torch.inf):
        rows.append(normal(100))
        rows[-1][40] = bad
    fused = {name: library for name, library in built.items() if name != "a loop"}  # which rounds a product by itself
    for x in rows:
        x = x.float().contiguous()
        wanted, wanted_scales = in_integers(x)
        for name, library in fused.items():
            numbers = np.full(wanted.numel(), 99, np.int8)
            scales, sums = (np.full(len(wanted), 99, np.float32) for _ in range(2))
            library.round_inputs(pointer(x.numpy()), len(x), pointer(numbers), pointer(scales), pointer(sums))
            assert (numbers == wanted.flatten().numpy()).all(), name
            np.testing.assert_array_equal(scales, wanted_scales.float().numpy())
            expected = wanted_scales.float() * wanted.sum(-1).float()
            np.testing.assert_array_equal(sums, expected.numpy())


class InIntegers:
    """operators/linear.py's contract: a product in float64 whose inputs are rounded as integers.h rounds them."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: Any = "none", way: Any = None) -> None:
        self.weight, self.bias, self.activation = weight, bias, activation

    def __call__(self, x: Tensor) -> Tensor:
        numbers, scales = in_integers(x.float())
        x = (numbers * scales[..., None]).flatten(-2)[..., : x.shape[-1]]
        return activate(torch.nn.functional.linear(x, self.weight, self.bias), self.activation)


def decoded_weights(shape: Shape, weights: dict[str, Tensor], rounding: Rounding) -> dict[str, Tensor]:
    """In float64: products' weights as the copy has them."""

    def kept(name: str, weight: Tensor) -> Tensor:
        if weight.ndim == 1 or name == "position_embedding":
            return weight.double()
        bits = rounding.bits_of(name.removesuffix(".weight"))
        return decoded(rounded(weight, bits), bits, weight.shape[1]).double()

    return {name: kept(name, weight) for name, weight in weights.items()}


def reference(
    shape: Shape, weights: dict[str, Tensor], rounding: Rounding, monkeypatch: pytest.MonkeyPatch
) -> Transformer:
    monkeypatch.setattr(blocks, "linear", InIntegers)
    return Transformer(shape, decoded_weights(shape, weights, rounding))


def assert_mostly_near(found: Tensor, wanted: Tensor) -> None:
    """Rows (batch, n, vocab): most are float32's rounding apart. In the others an input lay so near to the middle of
    two integers that float32 and float64 took different ones."""
    away = (found.double() - wanted).abs().flatten(1).amax(1) / wanted.abs().max()
    assert (away < 4e-6).float().mean() > 0.5, away
    assert away.max() < 0.05


@compiled
@shapes
@every_bits
def test_the_forward_computes_what_the_reference_says(
    shape: Shape, bits: Bits, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, rounding = random_weights(shape), Rounding(bits, {"token_embedding": 8, "1.mlp_out": 6})
    tokens = random_tokens(shape, 16, 3)
    wanted = logits_in_parts(reference(shape, weights, rounding, monkeypatch), tokens, [3])
    for lanes, threads in ((4, 1), (8, 2), (16, 2)):
        model = NativeTransformer(shape, weights, rounding, threads, lanes)
        found = logits_in_parts(model, tokens, [1, 2])
        assert_mostly_near(found, wanted)
        for parts in ([3], [1, 1, 1]):
            assert_same_bits(logits_in_parts(model, tokens, parts), found)
        assert_same_bits(logits_in_parts(model, tokens[3:4], [2, 1], 40), found[3:4])


@compiled
def test_random_shapes_compute_what_the_reference_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(24):
        chance = random.Random(seed)
        shape = random_shape(chance)
        weights, rounding = random_weights(shape, seed), random_rounding(shape, chance)
        tokens = random_tokens(shape, 8, 4, seed)
        wanted = logits_in_parts(reference(shape, weights, rounding, monkeypatch), tokens, [4])
        found = logits_in_parts(NativeTransformer(shape, weights, rounding, 1), tokens, [3, 1])
        assert_mostly_near(found, wanted)


def product(outputs: int, inputs: int, seed: int = 0) -> tuple[Shape, dict[str, Tensor]]:
    """A model whose logits are one product, its head, of a token's embedding: everything else is zero."""
    shape = Shape(
        vocab_size=outputs, context=48, layers=1, heads=1, head_size=1, width=inputs, inner=1, epsilon=1e-5,
        activation="none", tied_head=False, final_norm=False,
    )  # fmt: skip
    weights = random_weights(shape, seed)
    for name in ("0.attention_out", "0.mlp_out"):
        for part in ("weight", "bias"):
            weights[f"{name}.{part}"] *= 0
    return shape, weights


@compiled
@widths
@every_bits
@pytest.mark.parametrize("inputs", [1, 31, 33, 96, 200])
def test_one_product_is_the_references(bits: Bits, inputs: int, lanes: int) -> None:
    """Whose inputs are known to the bit. Every float32 operation is one of the reference's, in the same order, with
    sums that are rounded once where the processor fuses them."""
    shape, weights = product(50, inputs)
    model = NativeTransformer(shape, weights, Rounding(bits), 1, lanes)
    tokens = torch.arange(50)[:, None]
    found = logits_in_parts(model, tokens, [1])[:, 0]
    x = decoded(rounded(weights["token_embedding"], bits), bits, inputs)
    r, s = in_integers(x)
    d, m, q = (torch.from_numpy(each) for each in fields(rounded(weights["head.weight"], bits), bits))
    total = torch.zeros(50, 50)
    for block in range(r.shape[1]):
        dots = s.float()[:, block, None] * (r[:, block] @ q[:, block].double().T).float()
        total = (d[None, :, block] * dots.double() + total.double()).float()
        sums = s.float()[:, block] * r[:, block].sum(-1).float()
        total = (m[None, :, block] * sums.double()[:, None] + total.double()).float()
    torch.testing.assert_close(found, total, rtol=0, atol=1e-6 * float(total.abs().max()))
    assert (found == total).double().mean() > 0.99
    all_rows = logits_in_parts(model, tokens, [1])
    for count in (2, 3, 5, 6, 7, 13, 19):
        assert_same_bits(logits_in_parts(model, tokens[:count], [1]), all_rows[:count])


@compiled
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_none(bad: float) -> None:
    """In an input: every output of its row. In a weight: its output of every row."""
    shape, weights = product(50, 70)
    shape = replace(shape, position_offset=0)
    weights["position_embedding"] = torch.zeros(48, 70)
    weights["position_embedding"][2, 40] = bad
    for lanes in (4, 8, 16):
        found = logits_in_parts(NativeTransformer(shape, weights, Rounding(5), 1, lanes), torch.arange(6)[None], [6])[0]
        assert found[2].isnan().all()
        assert found[[0, 1]].isfinite().all()
    weights["position_embedding"][2, 40] = 0
    weights["head.weight"][7, 40] = bad
    for lanes in (4, 8, 16):
        found = logits_in_parts(NativeTransformer(shape, weights, Rounding(5), 1, lanes), torch.arange(6)[None], [6])[0]
        assert found[:, 7].isnan().all()
        assert found[:, :7].isfinite().all()
        assert found[:, 8:].isfinite().all()


@compiled
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_their_bits(copied: Any) -> None:
    shape = SHAPES["qwen3, windowed"]
    model = NativeTransformer(shape, random_weights(shape), Rounding(4, {"head": 8}), 1, 8)
    other = copied(model)
    assert (other.storage, other.weight_bytes, other.layers) == (model.storage, model.weight_bytes, (0, 1))
    tokens = random_tokens(shape, 1, 9)
    assert_same_bits(logits_in_parts(other, tokens, [9]), logits_in_parts(model, tokens, [9]))


@compiled
@widths
def test_a_copy_drafts_in_the_cache_of_its_target(lanes: int) -> None:
    """Its keys lie beyond what is committed, and the target's take their places."""
    shape = SHAPES["gemma3"]
    weights = random_weights(shape)
    target = NativeTransformer(shape, weights, lanes=lanes)
    copies = [NativeTransformer(shape, weights, Rounding(bits), lanes=lanes) for bits in BITS]
    tokens = random_tokens(shape, 2, 20)
    wanted = logits_in_parts(target, tokens, [20])
    cache = target.new_cache(2, 20)
    target.prefill(tokens[:, :10], cache)
    for at in range(10, 20):
        for other in [*copies, target.with_layers([0, 2])]:
            lengths = cache.lengths
            drafted = other.forward(tokens[:, at : at + 1], cache)
            assert not torch.equal(drafted[:, 0], wanted[:, at])
            cache.lengths = lengths
        assert_same_bits(target.forward(tokens[:, at : at + 1], cache)[:, 0], wanted[:, at])


@compiled
@widths
@pytest.mark.parametrize("storage", ["float32", Rounding(6)], ids=str)
def test_some_of_the_layers_are_a_model_of_these_alone(storage: Any, lanes: int) -> None:
    """Over the same memory, with the caches of the whole; copies of it keep what it has."""
    shape = SHAPES["gemma3"]
    weights, tokens = random_weights(shape), random_tokens(shape, 2, 12)
    whole = NativeTransformer(shape, weights, storage, lanes=lanes)
    some = whole.with_layers([0, 2])
    fewer = replace(shape, layers=2, attentions=(shape.attentions[0], shape.attentions[2]))
    moved = {name.replace("2.", "1.", 1): weight for name, weight in weights.items() if not name.startswith("1.")}
    alone = NativeTransformer(fewer, moved, storage, lanes=lanes)
    wanted = logits_in_parts(alone, tokens, [5, 1, 6])
    for model in (some, copy.deepcopy(some), pickle.loads(pickle.dumps(some))):
        assert (model.layers, model.weight_bytes) == ((0, 2), alone.weight_bytes)
        cache = whole.new_cache(2, 12)
        found = torch.cat([model.forward(part, cache) for part in tokens.split([5, 1, 6], 1)], 1)
        assert_same_bits(found, wanted)
        assert not cache.keys[1].any()
        assert cache.keys[2].any()
    own = logits_in_parts(some, tokens, [12])
    assert_same_bits(own, wanted)
    assert_same_bits(
        logits_in_parts(some.with_layers([2]), tokens, [3, 9]), logits_in_parts(whole.with_layers([2]), tokens, [12])
    )
    assert {each.data_ptr() for each in some._floats.values()} <= {each.data_ptr() for each in whole._floats.values()}


@compiled
@pytest.mark.parametrize("layers", [[], [3], [-1], [1, 0], [0, 0], [0, 1, 2, 3]])
def test_layers_that_there_are_not_are_refused(layers: list[int]) -> None:
    model = NativeTransformer(SHAPES["gemma3"], random_weights(SHAPES["gemma3"]))
    with pytest.raises(InvalidSetting, match="name some, in their order"):
        model.with_layers(layers)
    with pytest.raises(InvalidSetting, match=r"a model that has \[0, 1\]"):
        model.with_layers([0, 1]).with_layers([2])


@compiled
@pytest.mark.parametrize("fault", ["scales", "minima", "fifth bits"])
def test_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of packing: one block's scale, or minimum, that is another output's; high bits of other inputs."""
    shape = SHAPES["wide"]
    weights, tokens = random_weights(shape), random_tokens(shape, 8, 3)
    fill = packing.fill

    def spoilt(into: Tensor, word: records.Word, numbers: Tensor, lanes: int) -> None:
        numbers = numbers.clone()
        if word == "r5" and fault == "fifth bits":
            words = numbers.view(len(numbers), -1, block_bytes(5))[..., 20:]
            words[:] = words << 1 | words >> 7
        elif word == "r5":
            place = slice(0, 2) if fault == "scales" else slice(2, 4)
            numbers[:2, place] = numbers[:2, place].flip(0)
        fill(into, word, numbers, lanes)

    wanted = logits_in_parts(reference(shape, weights, Rounding(5), monkeypatch), tokens, [3])
    assert_mostly_near(logits_in_parts(NativeTransformer(shape, weights, Rounding(5), 1), tokens, [3]), wanted)
    monkeypatch.setattr(packing, "fill", spoilt)
    with pytest.raises(AssertionError):
        assert_mostly_near(logits_in_parts(NativeTransformer(shape, weights, Rounding(5), 1), tokens, [3]), wanted)
