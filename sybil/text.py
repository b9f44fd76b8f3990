"""Text to token ids and back: the few things asked of a Hugging Face fast tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer


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
        text: str = self._tokenizer.decode(self._ids[self._settled :], skip_special_tokens=True)
        return text
