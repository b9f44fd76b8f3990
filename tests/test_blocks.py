"""Weights that stay in a file's blocks: each is the float32 number that ggml's reference says, and a forward over them
has the bits of the same forward over those numbers."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from lying import Lying, random_bytes
from shapes import SHAPES, assert_same_bits, compiled, logits_in_parts, random_tokens, widths
from torch import Tensor

from benchmarks.engine import blocks as engine
from sybil.errors import WeightsMismatch
from sybil.models.native import NativeTransformer, library, packing, records
from sybil.models.native.packing import Arena, Piece, pack
from sybil.models.shape import Shape
from sybil.models.storage import BLOCKS, BlockStorage, dequantised

formats = pytest.mark.parametrize("storage", BLOCKS, ids=str)
CPU = torch.device("cpu")
SHAPE = replace(SHAPES["qwen3, windowed"], width=256, inner=512, head_size=64, tied_head=True)


def half(two: np.ndarray) -> float:
    return float(two.view(np.float16)[0])


def sixes(b: np.ndarray) -> tuple[list[int], list[int]]:
    """The scales and minima of Q4_K's and Q5_K's twelve bytes."""
    b = b.astype(int)
    scales = [b[j] & 63 if j < 4 else (b[j + 4] & 15) | b[j - 4] >> 6 << 4 for j in range(8)]
    minima = [b[j + 4] & 63 if j < 4 else b[j + 4] >> 4 | b[j] >> 6 << 4 for j in range(8)]
    return scales, minima


def written_out(storage: BlockStorage, block: np.ndarray) -> list[float]:
    """A block's weights in float64, element by element, by the formulas of the formats' description."""
    low = lambda q, i: int(q[i % 16]) >> 4 * (i // 16) & 15  # noqa: E731
    bit = lambda q, i: int(q[i // 8]) >> i % 8 & 1  # noqa: E731
    if storage in ("f32", "f16", "bf16"):
        wide = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[storage]
        value = block.view(wide)
        return [float((value.astype(np.uint32) << 16).view(np.float32)[0] if storage == "bf16" else value[0])]
    if storage == "q8_0":
        return [half(block[:2]) * int(q) for q in block[2:].view(np.int8)]
    if storage == "mxfp4":
        values = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
        return [2.0 ** (int(block[0]) - 127) / 2 * values[low(block[1:], i)] for i in range(32)]
    if storage == "iq4_nl":
        values = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
        return [half(block[:2]) * values[low(block[2:], i)] for i in range(32)]
    if storage in ("q4_0", "q4_1"):
        shift, offset = (0, half(block[2:4])) if storage == "q4_1" else (8, 0.0)
        q = block[-16:]
        return [half(block[:2]) * (low(q, i) - shift) + offset for i in range(32)]
    if storage in ("q5_0", "q5_1"):
        shift, offset = (0, half(block[2:4])) if storage == "q5_1" else (16, 0.0)
        high, q = block[-20:-16], block[-16:]
        return [half(block[:2]) * ((low(q, i) | bit(high, i) << 4) - shift) + offset for i in range(32)]
    if storage in ("q4_k", "q5_k"):
        scales, minima = sixes(block[4:16])
        q = block[-128:]
        found = []
        for i in range(256):
            sub, lane = i // 32, i % 32
            number = int(q[32 * (sub // 2) + lane]) >> 4 * (sub % 2) & 15
            if storage == "q5_k":
                number |= (int(block[16 + lane]) >> sub & 1) << 4
            found.append(half(block[:2]) * scales[sub] * number - half(block[2:4]) * minima[sub])
        return found
    found, scales = [], block[192:208].view(np.int8)
    for i in range(256):
        part, run, lane = i // 128, i % 128 // 32, i % 32
        number = int(block[64 * part + 32 * (run % 2) + lane]) >> 4 * (run // 2) & 15
        number |= (int(block[128 + 32 * part + lane]) >> 2 * run & 3) << 4
        found.append(half(block[208:]) * int(scales[i // 16]) * (number - 32))
    return found


@formats
def test_the_way_back_to_float32_is_the_formats_own(storage: BlockStorage) -> None:
    """gguf's, held to the formulas; a float32 number is at most one rounding away from them."""
    inputs, nbytes = BLOCKS[storage]
    kind = gguf.GGMLQuantizationType[storage.upper()]
    assert gguf.GGML_QUANT_SIZES[kind] == (inputs, nbytes)
    blocks = random_bytes(storage, 40, 3 * inputs)
    found = dequantised(blocks)
    assert (found.dtype, found.shape) == (torch.float32, (40, 3 * inputs))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        wanted = [written_out(storage, block) for block in blocks.numbers.numpy().reshape(-1, nbytes)]
        rounded = torch.from_numpy(np.array(wanted).reshape(40, -1).astype(np.float32))
    torch.testing.assert_close(found, rounded, rtol=0, atol=0, equal_nan=True)


@compiled
@formats
def test_c_takes_blocks_to_the_same_float32_numbers(storage: BlockStorage) -> None:
    """By way of panels, which the outputs may fill or not."""
    for outputs in (1, 47, 48, 49, 300):
        blocks = random_bytes(storage, outputs, 3 * max(32, BLOCKS[storage][0]), outputs)
        wanted, found = dequantised(blocks), records.unpacked(blocks)
        assert found.isnan().equal(wanted.isnan())
        assert_same_bits(found.where(~found.isnan(), 0.0), wanted.where(~wanted.isnan(), 0.0))


def alone(storage: BlockStorage, name: str, outputs: int, seed: int) -> tuple[Shape, Lying]:
    """A model of one layer, of which one weight is of random bytes and everything else float32."""
    width = 3 * max(32, BLOCKS[storage][0])
    shape = Shape(
        vocab_size=outputs, context=48, layers=1, heads=1, head_size=8, width=width, inner=5, epsilon=1e-5,
        activation="none", tied_head=False, final_norm=False,
    )  # fmt: skip
    return shape, Lying(shape, ("f32",), seed, {name: random_bytes(storage, outputs, width, seed)})


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """The same bits, but that NaN is NaN."""
    assert found.isnan().equal(wanted.isnan())
    assert_same_bits(found.where(~found.isnan(), 0.0), wanted.where(~wanted.isnan(), 0.0))


@compiled
@widths
@formats
def test_any_bytes_are_multiplied_as_the_float32_numbers_that_they_stand_for(storage: BlockStorage, lanes: int) -> None:
    """One row or several; outputs that fill no panel; scales that are denormal, infinite and NaN; denormal numbers
    taken for zero or not. As a head, and as an embedding."""
    for outputs in (1, 50, 99):
        for flushed in (False, True):
            shape, weights = alone(storage, "head.weight", outputs, outputs)
            kept, plain = (NativeTransformer(shape, weights, how, 1, lanes) for how in ("stored", "float32"))
            tokens = random_tokens(shape, 1, 16)
            torch.set_flush_denormal(flushed)
            try:
                wanted = logits_in_parts(plain, tokens, [16])
                found = [logits_in_parts(kept, tokens, parts) for parts in ([1] * 16, [2, 3, 4, 7], [9, 6, 1])]
            finally:
                torch.set_flush_denormal(False)
            assert wanted.isfinite().any() or outputs == 1 or storage == "f16"
            for each in found:
                assert_same(each, wanted)
    shape, weights = alone(storage, "token_embedding", 50, 7)
    kept, plain = (NativeTransformer(shape, weights, how, 1, lanes) for how in ("stored", "float32"))
    tokens = torch.arange(50)[:, None]  # a row each: one that isn't a number would spread
    assert_same(logits_in_parts(kept, tokens, [1]), logits_in_parts(plain, tokens, [1]))


@compiled
@widths
@pytest.mark.parametrize("storages", [(storage,) for storage in BLOCKS] + [tuple(BLOCKS)], ids="-".join)
def test_a_whole_forward_has_the_bits_of_the_one_over_float32(storages: tuple[BlockStorage, ...], lanes: int) -> None:
    """Parts in storages of their own; gates; a tied head; whatever is verified beside a token."""
    if len(storages) > 1:
        storages = tuple(storage for storage in storages if storage != "f32")
    weights = Lying(SHAPE, storages, 3)
    kept, plain = (NativeTransformer(SHAPE, weights, how, 1, lanes) for how in ("stored", "float32"))
    assert kept.storage == "stored"
    tokens = random_tokens(SHAPE, 4, 24)
    wanted = torch.cat([logits_in_parts(plain, row[None], [24]) for row in tokens])
    assert wanted.isfinite().all()
    for batch, parts in ((4, [1] * 24), (2, [2, 3, 4, 15]), (3, [5, 9, 6, 4]), (1, [7, 8, 9])):
        assert_same_bits(logits_in_parts(kept, tokens[:batch], parts), wanted[:batch])
    if len(storages) > 1:
        kinds = [{part.storage for part in packed.parts} for packed in kept._products.values()]
        assert max(map(len, kinds)) == 3


def test_memory_is_the_files_and_a_tenth() -> None:
    """Panels are whole here."""
    for storage in BLOCKS:
        blocks = random_bytes(storage, 96, 512)
        for lanes in library.WIDTHS:
            packed = pack([Piece.lying(blocks)], None, lanes, False, Arena())
            assert blocks.numbers.nbytes <= packed.parts[0].weight.nbytes <= 1.05 * blocks.numbers.nbytes


@compiled
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_their_parts(copied: Any) -> None:
    model = NativeTransformer(SHAPE, Lying(SHAPE, seed=1), "stored", 1, 8)
    other = copied(model)
    assert (other.storage, other.weight_bytes) == ("stored", model.weight_bytes)
    tokens = random_tokens(SHAPE, 1, 9)
    assert_same_bits(logits_in_parts(other, tokens, [9]), logits_in_parts(model, tokens, [9]))


@compiled
@pytest.mark.parametrize("fault", ["nibbles", "scales", "minima", "rows"])
def test_a_planted_fault_changes_bits(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of packing: the check above sees it."""
    fill = packing.fill

    def spoilt(into: Tensor, word: records.Word, numbers: Tensor, lanes: int) -> None:
        blocks = numbers.clone().view(len(numbers), -1, records.LAYOUTS[word].nbytes)
        if word == "q4_k" and fault == "nibbles":
            blocks[..., 16:] = blocks[..., 16:] << 4 | blocks[..., 16:] >> 4
        if word == "q4_k" and fault == "scales":
            blocks[..., 4:16] &= 0xCF
        if word == "q4_k" and fault == "minima":
            blocks[..., :4] = blocks[..., :4].roll(2, -1)
        if fault == "rows":
            blocks[..., 16:] = blocks[..., 16:].flip(0)
        fill(into, word, blocks.view(numbers.shape), lanes)

    weights = Lying(SHAPE, ("q4_k",), 3)
    plain = NativeTransformer(SHAPE, weights, "float32", 1)
    monkeypatch.setattr(packing, "fill", spoilt)
    kept = NativeTransformer(SHAPE, weights, "stored", 1)
    tokens = random_tokens(SHAPE, 1, 9)
    with pytest.raises(AssertionError):
        assert_same_bits(logits_in_parts(kept, tokens, [9]), logits_in_parts(plain, tokens, [9]))


@formats
def test_bytes_that_are_no_whole_blocks_are_refused(storage: BlockStorage) -> None:
    good = random_bytes(storage, 10, 512)
    for other in (
        replace(good, numbers=good.numbers[:, :-1]),
        replace(good, inputs=512 - 1),
        replace(good, inputs=1024),
        replace(good, numbers=good.numbers.flatten()),
    ):
        with pytest.raises(WeightsMismatch, match="don't fit"):
            pack([Piece.lying(good), Piece.lying(other)], None, 8, False, Arena())
    with pytest.raises(WeightsMismatch, match="don't fit"):
        pack([Piece.lying(good)], torch.zeros(9), 8, False, Arena())
    odd = replace(good, numbers=good.numbers[:9])
    for pieces in ([odd], [good, odd]):
        with pytest.raises(WeightsMismatch, match="don't fit"):
            pack([Piece.lying(piece) for piece in pieces], None, 8, True, Arena())


@compiled
def test_what_steps_cost_is_measured_for_each_format(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine.shape_of
    monkeypatch.setattr(engine, "shape_of", lambda width: whole(width, layers=1, vocab_size=64))
    result = engine.measure(2, lambda what: None)
    assert len(result.bars) == (1 + len(BLOCKS)) * 4
    assert [bar.at_most for bar in result.bars[:4]] == [None, None, 1.8, 2.6]
    assert all(0 < bar.found.value < 1000 for bar in result.bars)
