"""The text that each token adds to the text before it, as transformers' StopStringCriteria sees it (5.23)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

BEFORE = "abcdef"  # put before a token, so that a decoder treats the token as one in the middle of a text
HEX = frozenset("0123456789abcdefABCDEF")
METASPACE = "\u2581"  # a space, as SentencePiece writes it
SENTENCEPIECE = ["Replace", "ByteFallback", "Fuse"]  # the steps of its decoder; a Strip may follow
Piece = str | bytes


def stages(decoder: Any) -> list[dict[str, Any]] | None:
    """The steps of a tokenizer's decoder in one list, nested sequences flattened; None where the decoder doesn't tell
    them."""
    if decoder is None:
        return []
    try:
        return list(_unrolled(json.loads(decoder.__getstate__())))
    except Exception:  # tokenizers raises bare Exception for a decoder written in Python
        return None


def _unrolled(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if state["type"] == "Sequence":
        for each in state["decoders"]:
            yield from _unrolled(each)
    else:
        yield state


def _printable() -> dict[str, int]:
    """The letter that byte-level vocabularies (GPT-2's) write for each byte: printable bytes are written as themselves,
    other bytes as letters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTES = _printable()


def _is_sentencepiece(steps: Sequence[dict[str, Any]]) -> bool:
    """Whether a decoder is that of SentencePiece's models. It may end with a Strip, which changes nothing in the middle
    of a text."""
    kinds = [step["type"] for step in steps]
    spaces = {"pattern": {"String": METASPACE}, "content": " "}.items()
    return kinds[:3] == SENTENCEPIECE and kinds[3:] in ([], ["Strip"]) and steps[0].items() >= spaces


class Pieces:
    """The piece of each of a tokenizer's tokens: bytes where a token may end inside a character, and text elsewhere.

    Special tokens have pieces as other tokens do. An id without a token has none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, tokenizer.decoder
        steps = stages(self._decoder) or []
        kinds = {step["type"] for step in steps}
        self._fallback = "ByteFallback" in kinds
        self._level = "ByteLevel" in kinds and not self._fallback
        self._plain = _is_sentencepiece(steps)
        before = tokenizer.encode(BEFORE, add_special_tokens=False).ids
        self._before = [str(tokenizer.id_to_token(token)) for token in before]
        self._known: dict[int, Piece | None] = {}

    def of(self, token: int) -> Piece | None:
        """The piece of a token id; None for an id without a token."""
        if token not in self._known:
            name = self._tokenizer.id_to_token(token)
            self._known[token] = None if name is None else self.named(name)
        return self._known[token]

    def named(self, name: str) -> Piece:
        """The piece of a token of that name."""
        if self._level and all(letter in BYTES for letter in name):
            return bytes(BYTES[letter] for letter in name)
        if self._fallback and len(name) == 6 and name.startswith("<0x") and name.endswith(">") and {*name[3:5]} <= HEX:
            return bytes.fromhex(name[3:5])
        if self._plain:  # the decoder's result without calling it, for vocabularies of hundreds of thousands
            return name.replace(METASPACE, " ").encode()
        return self._in_kind(self._added(name))

    def complete(self, strings: Sequence[str], tokens: Sequence[int]) -> bool:
        """Whether the last of the tokens completes one of the strings: the string ends inside the last token, and its
        beginning may be in the tokens before.

        At most as many tokens are looked at as the longest string has letters or bytes."""
        wanted = [self._in_kind(string) for string in strings]
        longest, last = max(map(len, wanted)), self.of(tokens[-1])
        if not last:
            return False
        behind, reach = [last], 0
        for token in reversed(tokens[-longest:-1]):
            piece = self.of(token)
            if piece is None or reach >= longest - 1:
                break
            behind.append(piece)
            reach += len(piece)
        text = last[:0].join(reversed(behind))  # type: ignore[arg-type]  # all bytes, or all text
        return any(string in text[max(0, reach - len(string) + 1) :] for string in wanted)  # type: ignore[operator]

    def _in_kind(self, text: str) -> Piece:
        return text.encode() if self._level or self._fallback else text

    def _added(self, name: str) -> str:
        """The text that the decoder adds for a token in the middle of a text."""
        text = self._decode([*self._before, name])
        start = text.find(BEFORE)
        if start >= 0:
            return text[start + len(BEFORE) :]
        return text.removeprefix(self._decode(self._before))  # the vocabulary lacks the letters of BEFORE

    def _decode(self, names: list[str]) -> str:
        return " ".join(names) if self._decoder is None else str(self._decoder.decode(names))
