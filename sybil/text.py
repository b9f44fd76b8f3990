"""Text to token ids and back: the few things asked of a Hugging Face fast tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from tokenizers import Tokenizer

from sybil.errors import NotAModel, SybilError, told


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


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text's token ids; raises NotAModel where the library gives up."""
    with tokenizing("the tokenizer can't encode the text"):
        return list(tokenizer.encode(text).ids)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens left out; raises NotAModel where the library gives up."""
    with tokenizing("the tokenizer can't decode the tokens"):
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))


class TextStream:
    """Token ids in, text out as soon as it is whole.

    A token may end inside a UTF-8 character: what is not whole is held back until the next token, or finish()."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # characters already given out
        self._settled = 0  # ids before this are no longer decoded

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete, perhaps ''."""
        self._ids += ids
        text = self._unsettled()
        if text.endswith("�"):
            return ""
        piece, self._shown = text[self._shown :], len(text)
        if len(self._ids) - self._settled > 64:  # keep the work a token costs bounded
            self._settled = len(self._ids) - 16
            self._shown = len(self._unsettled())
        return piece

    def finish(self) -> str:
        """What was still held back."""
        return self._unsettled()[self._shown :]

    def _unsettled(self) -> str:
        return decode(self._tokenizer, self._ids[self._settled :])
