"""A token's logits have the same bits whatever is beside it: by vectors of 4, 8 and 16 floats, and in decoders."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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

import sybil
from sybil.models.native import STORAGES, NativeTransformer
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape
from sybil.models.storage import Kept, Rounding

pytestmark = compiled


@st.composite
def partitions(draw: st.DrawFn, whole: int) -> list[int]:
    cuts = sorted(draw(st.sets(st.integers(1, whole - 1))))
    return [end - start for start, end in zip([0, *cuts], [*cuts, whole], strict=True)]


@widths
@shapes
@pytest.mark.parametrize("storage", [*STORAGES, Rounding(5)], ids=str)
@settings(max_examples=3)
@given(data=st.data())
def test_the_bits_depend_on_nothing_beside_a_token(
    lanes: int, shape: Shape, storage: Kept, data: st.DataObject
) -> None:
    """Not on the tokens verified with it nor its place among them, not on rows of the batch, capacity or threads."""
    weights = random_weights(shape, data.draw(st.integers(0, 9)))
    tokens = random_tokens(shape, 4, 24, data.draw(st.integers(0, 99)))
    model = NativeTransformer(shape, weights, storage, 1, lanes)
    alone = torch.cat([logits_in_parts(model, row[None], [1] * 24) for row in tokens])
    assert_same_bits(alone, logits_in_parts(model, tokens, data.draw(partitions(24)), data.draw(st.integers(24, 48))))
    model = NativeTransformer(shape, weights, storage, 2, lanes)
    assert_same_bits(alone, logits_in_parts(model, tokens, data.draw(partitions(24))))


def test_the_check_of_bits_sees_sums_of_another_order() -> None:
    """torch's own products are such."""
    shape = SHAPES["wide"]
    model = Transformer(shape, random_weights(shape), "plain")
    tokens = random_tokens(shape, 1, 24)
    with pytest.raises(AssertionError):
        assert_same_bits(logits_in_parts(model, tokens, [1] * 24), logits_in_parts(model, tokens, [5, 5, 9, 5]))


@widths
def test_a_prompt_of_many_parts_has_the_same_bits(lanes: int) -> None:
    shape = replace(SHAPES["qwen3, windowed"], context=700)
    model = NativeTransformer(shape, random_weights(shape), lanes=lanes)
    tokens = random_tokens(shape, 2, 600)
    cache = model.new_cache(2, 640)
    model.prefill(tokens[:, :-1], cache)
    assert_same_bits(model.forward(tokens[:, -1:], cache), logits_in_parts(model, tokens, [600])[:, -1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_greedy_speculative_output_is_autoregressive_output_bit_for_bit(dtype: torch.dtype) -> None:
    decoder = sybil.load("stdlib", dtype=dtype)
    assert isinstance(decoder.target, NativeTransformer)
    texts = ["def read(path):\n", "import os\n", "The list of", "class Node:\n    def"]
    wanted = [decoder.without_draft().generate(text, max_new_tokens=60).tokens[0].tolist() for text in texts]
    for gamma in (1, 4, 8):
        found = decoder.generate(texts, max_new_tokens=60, gamma=gamma)
        assert [row.tolist() for row in found.tokens] == wanted
        assert 0 < found.stats.accepted < found.stats.proposed


def test_two_threads_of_a_program_may_use_one_model() -> None:
    shape = SHAPES["wide"]
    model = NativeTransformer(shape, random_weights(shape), threads=2)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(shape.vocab_size, (1, 40), generator=generator) for _ in range(6)]
    wanted = [logits_in_parts(model, row, [4] * 10) for row in rows]
    found: dict[int, list[Tensor]] = {}

    def work(index: int) -> None:
        found[index] = [logits_in_parts(model, rows[index], [4] * 10) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, row in enumerate(wanted):
        for again in found[index]:
            assert_same_bits(row, again)
