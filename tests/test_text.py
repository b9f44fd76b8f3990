"""Streaming text loses and invents nothing, whatever the tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import letters
from tokenizers import Tokenizer
from vocabularies import KINDS, STREAMED, bytes_alone

from sybil.fit import differing_tokens
from sybil.text import KEPT, WINDOW, TextStream

BYTES = bytes_alone()


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


@given(st.text(max_size=200), st.integers(1, 7))
def test_pieces_join_to_the_text(text: str, size: int) -> None:
    ids = BYTES.encode(text).ids
    stream = TextStream(BYTES)
    pieces = [stream.push(ids[start : start + size]) for start in range(0, len(ids), size)]
    assert "".join(pieces) + stream.finish() == text


@st.composite
def sequences(draw: st.DrawFn, tokenizer: Tokenizer) -> list[int]:
    """Ids of all kinds, some that no token has, often in runs, and often long enough to be forgotten."""
    size = tokenizer.get_vocab_size()
    bytes_of = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "日本é😀".encode()]
    runs = st.one_of(
        st.lists(st.integers(0, size + 1), min_size=1, max_size=12),
        st.tuples(st.integers(0, size - 1), st.integers(1, 40)).map(lambda pair: [pair[0]] * pair[1]),
        st.lists(st.sampled_from([each for each in bytes_of if each is not None] or [0]), min_size=1, max_size=30),
        st.just([each for each in bytes_of if each is not None]),
    )
    return [token for run in draw(st.lists(runs, max_size=10)) for token in run]


@pytest.mark.parametrize("kind", STREAMED)
@given(data=st.data(), size=st.integers(1, 5))
@settings(max_examples=60)
def test_pieces_join_to_the_decoded_whole(kind: str, data: st.DataObject, size: int) -> None:
    tokenizer = STREAMED[kind]
    ids = data.draw(sequences(tokenizer))
    stream, shown = TextStream(tokenizer), ""
    for start in range(0, len(ids), size):
        shown += stream.push(ids[start : start + size])
        assert decoded(tokenizer, ids).startswith(shown)
    assert shown + stream.finish() == decoded(tokenizer, ids)


@pytest.mark.parametrize("kind", KINDS)
def test_text_goes_out_as_soon_as_it_is_whole(kind: str) -> None:
    """What is held back after a token of plain letters is nothing; in a byte-level text, after any whole character."""
    tokenizer = KINDS[kind]
    plain = [tokenizer.token_to_id(letter) for letter in "stop" * 60]
    stream, shown = TextStream(tokenizer), ""
    for count, token in enumerate(plain, start=1):
        shown += stream.push([token])
        assert shown == decoded(tokenizer, plain[:count])
    stream = TextStream(BYTES)
    text = "日本 é😀 \N{REPLACEMENT CHARACTER}x" * 30
    assert "".join(stream.push(BYTES.encode(letter).ids) for letter in text) == text


class Counting:
    """A tokenizer that notes how many tokens it is asked to decode at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.asked = tokenizer, [0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, ids: list[int], **settings: Any) -> str:
        self.asked.append(len(ids))
        text: str = self._tokenizer.decode(ids, **settings)
        return text


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_a_token_costs_is_bounded(kind: str) -> None:
    tokenizer = KINDS[kind]
    words = [tokenizer.token_to_id(letter) for letter in "abstopabnop" * 30]
    special = [tokenizer.token_to_id("<s>")] * 300
    run = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in ("က" * 23).encode()]  # a word of no vocabulary
    unknown = run if None not in run else []
    for ids in (words, special + words, [*words, *unknown, *words]):
        counting = Counting(tokenizer)
        stream = TextStream(counting)  # type: ignore[arg-type]
        shown = "".join(stream.push([token]) for token in ids)
        assert max(counting.asked) <= WINDOW + 1 + len(unknown)
        assert len(counting.asked) <= len(ids) * (1 + 1 / (WINDOW - KEPT)) + 2
        assert shown + stream.finish() == decoded(tokenizer, ids)


def test_a_word_outside_the_vocabulary_streams_as_what_it_is() -> None:
    tokenizer = KINDS["byte fallback"]
    text = "က" * 23 + "é" * 40
    run = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    space, letter = tokenizer.token_to_id("▁"), tokenizer.token_to_id("a")
    stream = TextStream(tokenizer)
    pieces = [stream.push([token]) for token in [letter, *run, space, letter, *run[:4]]]
    assert "".join(pieces) == f"a{text} a"
    assert pieces[1 : -len(run[:4]) - 2] == [""] * len(run)  # a byte that fits no character would undo the whole run
    assert stream.finish() == "����"  # as the tokenizer has it: the last character is cut


def test_half_a_character_is_held_back() -> None:
    stream = TextStream(BYTES)
    ids = BYTES.encode("aé").ids
    assert [stream.push([token]) for token in ids] == ["a", "", "é"]
    stream.push(ids[1:2])
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_bytes_that_are_no_text_are_not_held_for_ever() -> None:
    stream = TextStream(BYTES)
    never = BYTES.token_to_id("ÿ")  # the byte 0xFF
    assert [stream.push([never]) for _ in range(4)] == ["", "�", "�", "�"]


def test_vocabularies_are_compared_by_text_and_id() -> None:
    assert differing_tokens(letters(), letters()) == 0
    assert differing_tokens(letters(31), letters(24)) == 7
