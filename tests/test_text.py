"""Streaming text loses and invents nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tiny import letters
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sybil.fit import differing_tokens
from sybil.text import TextStream


def bytes_tokenizer() -> Tokenizer:
    """A token a byte: every character beyond ASCII is split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


BYTES = bytes_tokenizer()


@given(st.text(max_size=200), st.integers(1, 7))
def test_pieces_join_to_the_text(text: str, size: int) -> None:
    ids = BYTES.encode(text).ids
    stream = TextStream(BYTES)
    pieces = [stream.push(ids[start : start + size]) for start in range(0, len(ids), size)]
    assert "".join(pieces) + stream.finish() == text


def test_half_a_character_is_held_back() -> None:
    stream = TextStream(BYTES)
    ids = BYTES.encode("aé").ids
    assert [stream.push([token]) for token in ids] == ["a", "", "é"]
    stream.push(ids[1:2])
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_vocabularies_are_compared_by_text_and_id() -> None:
    assert differing_tokens(letters(), letters()) == 0
    assert differing_tokens(letters(31), letters(24)) == 7
