"""Text to token ids and back: the few things asked of a Hugging Face fast tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer

from sybil.errors import NotAModel, SybilError, told
from sybil.pieces import stages

ONE_BY_ONE = ("BPEDecoder", "ByteFallback", "CTC", "Metaspace", "Replace", "Strip", "WordPiece")
FUSING = ("ByteLevel", "Fuse")  # what makes one text of tokens
WINDOW, KEPT = 64, 16  # tokens: decoded together at most while all is whole, and decoded again after that


@contextmanager
def tokenizing(what: str) -> Iterator[None]:
    """Any error of the library in here is NotAModel, also a panic, which is no Exception; what: went wrong then."""
    try:
        yield
    except SybilError:
        raise
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        raise NotAModel(f"{what} ({told(error)}): export the model again") from None


def is_of_a_library(error: BaseException) -> bool:
    """Whether it is an Exception, or the panic of a library in Rust; not Ctrl-C nor an exit."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def encode(tokenizer: Tokenizer, text: str, *, special: bool = True) -> list[int]:
    """A text's token ids; special: with the tokens that the tokenizer puts around a text, such as a first one. Raises
    NotAModel where the library gives up."""
    with tokenizing("the tokenizer can't encode the text"):
        return list(tokenizer.encode(text, add_special_tokens=special).ids)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens left out; raises NotAModel where the library gives up."""
    with tokenizing("the tokenizer can't decode the tokens"):
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))


class TextStream:
    """Turns token ids into text as soon as no further token can change it. The pieces join up to the whole text,
    decoded.

    Held back until more is known, or until finish(): the first bytes of a character; tokens of one byte each, because a
    run of them is text only if all of it is; everything, where the tokenizer's decoder may change text of long ago."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._unseen = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        steps = stages(tokenizer.decoder)
        self._can_stream = steps is not None and _leaves_earlier_text_alone(steps)
        kinds = {step["type"]: step for step in steps or ()}
        self._level, self._fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        self._suffix: str | None = kinds["BPEDecoder"]["suffix"] if "BPEDecoder" in kinds else None
        self._ids: list[int] = []  # what is still decoded
        self._closed = 0  # of these, how many were decoded and can't be changed by what follows
        self._shown = 0  # characters of their text that were given out

    def push(self, ids: Iterable[int]) -> str:
        """The text that becomes final with these tokens, perhaps ''."""
        self._ids += [token for token in ids if self._is_seen(token)]
        closed = len(self._ids) if self._can_stream else 0
        while closed > self._closed and self._is_open(self._ids[closed - 1]):
            closed -= 1
        if closed == self._closed:
            return ""
        self._closed = closed
        text = self._decode(self._ids[:closed])
        whole = len(text) - (self._level and text.endswith("\N{REPLACEMENT CHARACTER}"))  # half a character, perhaps
        piece = text[self._shown : whole]
        self._shown += len(piece)
        if len(self._ids) > WINDOW and closed == len(self._ids) and whole == len(text):
            self._forget(text)
        return piece

    def finish(self) -> str:
        """The text that was still held back."""
        return self._decode(self._ids)[self._shown :] if self._ids else ""

    def _forget(self, text: str) -> None:
        """Go on with the last tokens alone, if their text ends as the whole text did. That isn't sure, because a text's
        first token is decoded in a way of its own, and a character may be cut there."""
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
        # the last token loses the suffix that becomes a space elsewhere, even inside it
        return self._suffix is not None and 0 <= name.find(self._suffix) < len(name) - len(self._suffix)

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self._tokenizer, ids)


def _leaves_earlier_text_alone(steps: Sequence[dict[str, Any]]) -> bool:
    """Whether a decoder of these steps only adds to the text when tokens are added, but for what is held back: each
    token by itself or by the one before it, then all as one text, of which only the beginning may be cut."""
    kinds = [step["type"] for step in steps]
    fused = next((place for place, kind in enumerate(kinds) if kind in FUSING), len(kinds))
    single, whole = steps[:fused], steps[fused + 1 :]
    if not all(kind in ONE_BY_ONE for kind in kinds[:fused]):
        return False
    if not all(step["type"] == "Fuse" or (step["type"] == "Strip" and not step["stop"]) for step in whole):
        return False
    if "BPEDecoder" in kinds and (len(kinds) > 1 or not steps[0]["suffix"]):
        return False
    if "ByteFallback" in kinds:  # its tokens are known by their names, which no step before it may change
        place = kinds.index("ByteFallback")
        return kinds.count("ByteFallback") == 1 and all(_makes_spaces(step) for step in single[:place])
    return True


def _makes_spaces(step: dict[str, Any]) -> bool:
    return step["type"] == "Replace" and "String" in step["pattern"] and step["content"] == " "
