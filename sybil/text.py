"""Turns text into token ids and back by a Hugging Face fast tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer

from sybil.errors import NotAModel, SybilError, told
from sybil.pieces import stages

ONE_BY_ONE = ("BPEDecoder", "ByteFallback", "CTC", "Metaspace", "Replace", "Strip", "WordPiece")
FUSING = ("ByteLevel", "Fuse")  # decoder steps that join the tokens' texts into one
WINDOW, KEPT = 64, 16  # tokens; above WINDOW only the last KEPT tokens are decoded again


@contextmanager
def tokenizing(what: str) -> Iterator[None]:
    """A context manager that turns any error of the tokenizer's library into NotAModel, even a panic, which is no
    Exception. what: what went wrong, for the message."""
    try:
        yield
    except SybilError:
        raise
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        raise NotAModel(f"{what} ({told(error)}): export the model again") from None


def is_of_a_library(error: BaseException) -> bool:
    """Whether an error is an Exception or the panic of a library in Rust. Ctrl-C and exits are neither."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def encode(tokenizer: Tokenizer, text: str, *, special: bool = True) -> list[int]:
    """A text's token ids. special: whether the tokenizer adds its special tokens, such as one at the beginning. Raises
    NotAModel where the library fails."""
    with tokenizing("the tokenizer can't encode the text"):
        return list(tokenizer.encode(text, add_special_tokens=special).ids)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens. Raises NotAModel where the library fails."""
    with tokenizing("the tokenizer can't decode the tokens"):
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))


class TextStream:
    """Turns token ids into text, piece by piece. A piece is given out as soon as no further token can change it. All
    pieces joined are the text that decode() gives for all tokens.

    Some text is held back until more tokens are known, or until finish(). The first bytes of an incomplete character
    are held back. So are tokens of one byte each (byte fallback), because a run of them is valid text only as a whole.
    Everything is held back where the tokenizer's decoder may change text anywhere."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._unseen = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        steps = stages(tokenizer.decoder)
        self._can_stream = steps is not None and _leaves_earlier_text_alone(steps)
        kinds = {step["type"]: step for step in steps or ()}
        self._level, self._fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        self._suffix: str | None = kinds["BPEDecoder"]["suffix"] if "BPEDecoder" in kinds else None
        self._ids: list[int] = []  # the tokens that are decoded again at each push()
        self._closed = 0  # how many of them have text that later tokens can't change
        self._shown = 0  # how many characters of their text were given out

    def push(self, ids: Iterable[int]) -> str:
        """Add tokens, and return the text that becomes final with them; it may be ''."""
        self._ids += [token for token in ids if self._is_seen(token)]
        closed = len(self._ids) if self._can_stream else 0
        while closed > self._closed and self._is_open(self._ids[closed - 1]):
            closed -= 1
        if closed == self._closed:
            return ""
        self._closed = closed
        text = self._decode(self._ids[:closed])
        whole = len(text) - (self._level and text.endswith("\N{REPLACEMENT CHARACTER}"))  # perhaps incomplete
        piece = text[self._shown : whole]
        self._shown += len(piece)
        if len(self._ids) > WINDOW and closed == len(self._ids) and whole == len(text):
            self._forget(text)
        return piece

    def finish(self) -> str:
        """The text that is still held back, at the end."""
        return self._decode(self._ids)[self._shown :] if self._ids else ""

    def _forget(self, text: str) -> None:
        """Keep only the last KEPT tokens, if their text ends as the whole text does. It may not: a text's first token
        is decoded differently, and the cut may fall inside a character."""
        kept = self._ids[-KEPT:]
        rest = self._decode(kept)
        if rest and rest[-1] == text[-1]:
            self._ids, self._closed, self._shown = kept, len(kept), len(rest)

    def _is_seen(self, token: int) -> bool:
        return token not in self._unseen and self._tokenizer.id_to_token(token) is not None

    def _is_open(self, token: int) -> bool:
        """Whether further tokens may change this token's text, or the text of the run that it is in."""
        name = str(self._tokenizer.id_to_token(token))
        if self._fallback and len(name.encode()) == 6 and name.startswith("<0x") and name.endswith(">"):
            return True
        # the suffix becomes a space in every token but the last, which loses it, even where it is inside the token
        return self._suffix is not None and 0 <= name.find(self._suffix) < len(name) - len(self._suffix)

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self._tokenizer, ids)


def _leaves_earlier_text_alone(steps: Sequence[dict[str, Any]]) -> bool:
    """Whether a decoder with these steps leaves earlier text unchanged when tokens are added, except the text that
    TextStream holds back. Its steps must treat each token by itself or by the token before it, then join all texts, and
    then change at most the beginning of the joined text."""
    kinds = [step["type"] for step in steps]
    fused = next((place for place, kind in enumerate(kinds) if kind in FUSING), len(kinds))
    single, whole = steps[:fused], steps[fused + 1 :]
    if not all(kind in ONE_BY_ONE for kind in kinds[:fused]):
        return False
    if not all(step["type"] == "Fuse" or (step["type"] == "Strip" and not step["stop"]) for step in whole):
        return False
    if "BPEDecoder" in kinds and (len(kinds) > 1 or not steps[0]["suffix"]):
        return False
    if "ByteFallback" in kinds:  # it knows byte tokens by their names, which no earlier step may change
        place = kinds.index("ByteFallback")
        return kinds.count("ByteFallback") == 1 and all(_makes_spaces(step) for step in single[:place])
    return True


def _makes_spaces(step: dict[str, Any]) -> bool:
    return step["type"] == "Replace" and "String" in step["pattern"] and step["content"] == " "
