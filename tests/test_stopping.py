"""Stop strings end a row where transformers' StopStringCriteria does, on every kind of tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import gpt2, greedy, in_sybil, letters, prompts
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, StopStringCriteria
from vocabularies import KINDS, MAKERS, PIECES, SPECIAL, few_letters

from sybil import Decoder
from sybil.drafting import DraftModel
from sybil.stopping import Stops

ALPHABET = "stop é\n日#.'"


def criterion(tokenizer: Tokenizer, strings: list[str]) -> StopStringCriteria:
    return StopStringCriteria(PreTrainedTokenizerFast(tokenizer_object=tokenizer), strings)


def ends(tokenizer: Tokenizer, strings: list[str], prompt: list[int], new: list[int]) -> int | None:
    """Where transformers ends new tokens: how many there are then, None where it does not."""
    try:
        judge = criterion(tokenizer, strings)
    except ValueError as error:  # no token holds the end of a string: transformers refuses them, and nothing ends there
        if "unusual characters" not in str(error):
            raise
        return None
    for count in range(1, len(new) + 1):
        if bool(judge(torch.tensor([[*prompt, *new[:count]]]), None)):
            return count
    return None


@st.composite
def cases(draw: st.DrawFn, kind: str) -> tuple[Tokenizer, list[str], list[int], list[int]]:
    """A vocabulary, tokens over it, and strings, most of which stand somewhere among these tokens."""
    pieces = draw(st.lists(st.text(ALPHABET, min_size=1, max_size=4), min_size=1, max_size=6, unique=True))
    tokenizer = MAKERS[kind](pieces)
    vocabulary = tokenizer.get_vocab()
    likely = [token for name, token in vocabulary.items() if {*name} <= {*ALPHABET, "▁", "Ġ", "#"} or name in SPECIAL]
    token = st.one_of(st.sampled_from(sorted(likely)), st.integers(0, len(vocabulary) + 1))
    ids = draw(st.lists(token, min_size=2, max_size=14))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    standing = st.tuples(st.integers(0, max(len(text) - 1, 0)), st.integers(1, 7)).map(
        lambda place: text[place[0] : place[0] + place[1]] or "s"
    )
    string = st.one_of(standing, standing, st.sampled_from([*SPECIAL, "p<|im_", "stop"]), st.text(ALPHABET, min_size=1))
    cut = draw(st.integers(0, len(ids) - 1))
    return tokenizer, draw(st.lists(string, min_size=1, max_size=3)), ids[:cut], ids[cut:]


@pytest.mark.parametrize("kind", MAKERS)
@given(data=st.data())
@settings(max_examples=40)
def test_a_row_ends_where_transformers_ends_it(kind: str, data: st.DataObject) -> None:
    tokenizer, strings, prompt, new = data.draw(cases(kind))
    wanted = ends(tokenizer, strings, prompt, new)
    stops = Stops(strings=tuple(strings), tokenizer=tokenizer)
    found, reason = stops.keep(prompt, (), new)
    assert (found, reason) == ((len(new), None) if wanted is None else (wanted, "stop_string"))
    before = data.draw(st.integers(0, found - 1))  # the same, asked in two blocks
    assert stops.keep(prompt, new[:before], new[before:]) == (found - before, reason)


@pytest.mark.parametrize("kind", sorted(MAKERS.keys() - {"ctc"}))  # where "|" is a space
def test_a_special_token_is_a_stop_string(kind: str) -> None:
    tokenizer = KINDS[kind]
    one, other = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("s")
    for strings in (["<|im_end|>"], ["im_e", "nowhere"], ["nowhere", "<|im_end|>"]):
        assert ends(tokenizer, strings, [other], [other, one, other]) == 2
        stops = Stops(strings=tuple(strings), tokenizer=tokenizer)
        assert stops.keep([other], (), [other, one, other]) == (2, "stop_string")


LAID = [  # tokens by name, a string, and how many of them are kept
    ("byte-level", ["st", "op"], "stop", 2),
    ("byte-level", ["las", "topper"], "stop", 2),  # begins inside a token, ends inside one
    ("byte-level", ["stop", "a"], "stop", 1),
    ("byte-level", ["a", "Ã", "©", "a"], "é", 3),
    ("byte-level", ["æ", "Ĺ", "¥"], "日", 3),
    ("byte-level", ["Ċ", "Ċ", "User", ":"], "\n\nUser:", 4),
    ("byte-level", ["ĊĊ", "User"], "\nUser", 2),
    ("byte fallback", ["<0xE6>", "<0x97>", "<0xA5>", "a"], "日", 3),
    ("byte fallback", ["a", "▁", "a"], " a", 3),
    ("byte fallback", ["s▁t", "op"], "s to", 2),
    ("wordpiece", ["s", "##t", "##op"], "stop", 3),
    ("wordpiece", ["s", "t"], "s t", 2),
]


@pytest.mark.parametrize(("kind", "names", "string", "kept"), LAID)
def test_strings_over_tokens(kind: str, names: list[str], string: str, kept: int) -> None:
    tokenizer = MAKERS[kind]([*PIECES, *names])
    ids = [tokenizer.token_to_id(name) for name in names]
    assert None not in ids
    assert ends(tokenizer, [string], [], ids) == kept
    assert Stops(strings=(string,), tokenizer=tokenizer).keep((), (), ids) == (kept, "stop_string")


def test_a_tokenizer_that_lacks_the_letters_which_transformers_tries() -> None:
    tokenizer = few_letters()
    with pytest.raises(ValueError, match="substring not found"):
        criterion(tokenizer, ["st"])
    stops = Stops(strings=("st op",), tokenizer=tokenizer)
    assert stops.keep([0], (), [1, 2, 0]) == (2, "stop_string")


class Noting:
    """A tokenizer that notes how often it is asked for the text of many tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.decoded = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, *_: Any, **__: Any) -> str:
        self.decoded += 1
        return ""


def test_no_text_is_decoded_for_a_token() -> None:
    noting = Noting(KINDS["byte-level"])
    stops = Stops(strings=("nowhere",), tokenizer=noting)  # type: ignore[arg-type]
    assert stops.keep([1], (), list(range(200))) == (200, None)
    assert noting.decoded == 0


@pytest.mark.parametrize("gamma", [1, 3, 8])
def test_generate_ends_where_transformers_does_even_across_the_prompt(gamma: int) -> None:
    tokenizer, (prompt,) = letters(), prompts([6])
    plain = greedy(gpt2(), prompt, 24)
    text = tokenizer.decode(prompt.tolist()) + tokenizer.decode(plain)
    drafted = Decoder(in_sybil(gpt2()), DraftModel(in_sybil(gpt2())), tokenizer)
    outer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    for start in range(3, 16):  # the first begin in the prompt
        string = text[start : start + 5]
        wanted = greedy(gpt2(), prompt, 24, stop_strings=[string], tokenizer=outer)
        out = drafted.generate([prompt], max_new_tokens=24, gamma=gamma, stop_strings=string, eos_token_id=[])
        assert out.tokens[0].tolist() == wanted
    string = text[:5]  # stands in the prompt, and is no reason to end
    assert string not in text[1:]
    out = drafted.generate([prompt], max_new_tokens=24, gamma=gamma, stop_strings=string, eos_token_id=[])
    assert out.tokens[0].tolist() == plain
