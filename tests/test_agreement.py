"""Where two texts part, and how near a tie is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sybil.agreement import FLOAT32, HALF, Tolerance, first_difference, lead

tokens = st.lists(st.integers(0, 3), max_size=8)


@given(tokens, tokens)
def test_the_first_difference_is_where_texts_part(one: list[int], other: list[int]) -> None:
    place = first_difference(one, other)
    assert place == first_difference(other, one)
    if place is None:
        assert one == other
    else:
        assert one[:place] == other[:place]
        assert one[place : place + 1] != other[place : place + 1]


def test_a_text_that_begins_the_other_parts_at_its_end() -> None:
    assert first_difference([1, 2], [1, 2, 3]) == 2
    assert first_difference([], [1]) == 0
    assert first_difference([], []) is None


def test_the_lead_is_the_top_two_gap() -> None:
    logits = torch.tensor([[1.0, 3.5, 3.0], [2.0, 2.0, -math.inf]])
    assert lead(logits).tolist() == [0.5, 0.0]
    assert lead(torch.tensor([7.0])) == math.inf
    assert lead(torch.tensor([7.0, -math.inf])) == math.inf
    assert lead(torch.tensor([math.nan, 1.0])).isnan()
    halves = torch.tensor([2049.0, 2047.5]).half()  # as half precision has them, and their difference exactly
    assert lead(halves) == float(halves[0]) - float(halves[1])


def test_half_precision_rounds_more_than_float32() -> None:
    for half in HALF.values():
        assert half.of(10.0) > FLOAT32.of(10.0)
    assert Tolerance(0.5, 0.1).of(20.0) == pytest.approx(2.5)
