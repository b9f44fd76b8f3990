"""Documents as tokens of the target: the text that a draft reads, and the prompts that its target answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from sybil.chat import ChatTemplate
from sybil.distilling.documents import Document
from sybil.text import decode, encode

PIECE = 1 << 16
"""Characters that are encoded at once, because a tokenizer takes about a hundred bytes a token while it encodes."""
APART = 256  # tokens from the start of one prompt that is cut from the texts to the start of the next
SHORTEST, LONGEST = 16, 64  # tokens of such a prompt
Ids = np.ndarray


@dataclass(frozen=True, slots=True)
class Reading:
    """How documents become tokens of the target. template: the target's chat template, None where it has none. prompt:
    the most tokens of a prompt; a longer prompt is cut to its last tokens."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    prompt: int


class Material:
    """Documents as tokens. text: (n,) int32, all texts one after another, each with the tokenizer's special tokens."""

    def __init__(self, documents: Sequence[Document], reading: Reading, seed: int) -> None:
        self._reading, self._seed = reading, seed
        texts = [_text(each, reading) for each in documents if not each.messages]
        self.text: Ids = np.concatenate([np.zeros(0, np.int32), *texts])
        self._conversations = [_unanswered(each) for each in documents if each.messages]

    @property
    def prompts(self) -> int:
        """The number of prompts: each conversation is one, and the texts are cut into others."""
        cuts = (len(self.text) - SHORTEST) // APART + 1 if len(self.text) >= SHORTEST else 0
        return len(self._conversations) + cuts

    def asked(self, number: int) -> Document:
        """The prompt of that number. Each run of self.prompts numbers has every prompt once, in an order of its own."""
        turn, place = divmod(number, self.prompts)
        chosen = int(np.random.default_rng((self._seed, turn)).permutation(self.prompts)[place])
        if chosen < len(self._conversations):
            return self._conversations[chosen]
        return self._cut(chosen - len(self._conversations), turn)

    def prompt(self, number: int) -> Ids:
        """The tokens of the prompt of that number, (n,) int32; the last ones where there are too many."""
        ids = _encoded(self.asked(number), self._reading)
        return np.array(ids[-self._reading.prompt :], dtype=np.int32)

    def fits(self, number: int) -> bool:
        """Whether the prompt of that number is used as a whole, and not cut."""
        return len(_encoded(self.asked(number), self._reading)) <= self._reading.prompt

    def _cut(self, number: int, turn: int) -> Document:
        """A prompt cut from the texts. Where the target has a chat template, every second one is a user's message."""
        random = np.random.default_rng((self._seed, number, turn))
        start, length = number * APART, int(random.integers(SHORTEST, LONGEST + 1))
        said = decode(self._reading.tokenizer, self.text[start : start + length].tolist()).strip() or "?"
        if self._reading.template is None or (number + turn) % 2 == 0:
            return Document(said)
        return Document(messages=(("user", said),))

    def windows(self, length: int, first: int, count: int) -> list[Ids]:
        """`count` windows of the text, each of `length` tokens, from window number `first` on, without overlap."""
        return [self.text[index * length : (index + 1) * length] for index in range(first, first + count)]


def _text(document: Document, reading: Reading) -> Ids:
    """A text's tokens, with the special tokens that the tokenizer adds to a text."""
    text = document.text
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    ids = [encode(reading.tokenizer, piece, special=not place) for place, piece in enumerate(pieces)]
    return np.array([token for part in ids for token in part], dtype=np.int32)


def _unanswered(document: Document) -> Document:
    """A conversation without its last answer, which the target is to give itself."""
    messages = document.messages
    if len(messages) > 1 and messages[-1][0] == "assistant":
        messages = messages[:-1]
    return replace(document, messages=messages)


def _encoded(document: Document, reading: Reading) -> list[int]:
    """All tokens of a prompt, before any are cut."""
    if not document.messages:
        return encode(reading.tokenizer, document.text)
    if reading.template is None:
        return encode(reading.tokenizer, "\n\n".join(content for _, content in document.messages))
    said = [{"role": role, "content": content} for role, content in document.messages]
    return encode(reading.tokenizer, reading.template.render(said), special=False)
