"""The tokens of a tokenizer as bytes, by which two vocabularies are compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from sybil.pieces import Pieces
from sybil.text import encode, tokenizing

NOWHERE = -1
"""The end of a token whose place in the text isn't known, because the tokenizer has changed the text."""
SHORTEST, LONGEST = 16, 64  # bytes of a token that is looked for in a text


class Vocabulary:
    """A tokenizer's tokens as bytes, and bytes as the tokenizer's tokens.

    - surfaces: for each id, the bytes that its token adds in the middle of a text. A special token's surface is its
      name; an id without a token has none.
    - special: the ids that decoding leaves out.
    - before: the tokens that the tokenizer puts before a text.
    - ids: the token of each surface, without special tokens.
    - ends: the model's end tokens.
    - opens: whether the tokenizer adds a space at a text's beginning.
    - reach: the bytes of the longest added token, which the tokenizer searches for before it splits a text."""

    def __init__(self, tokenizer: Tokenizer, ends: Sequence[int] = ()) -> None:
        added, names = tokenizer.get_added_tokens_decoder(), tokenizer.get_vocab(with_added_tokens=True)
        self.surfaces = [b""] * (max(names.values(), default=-1) + 1)
        with tokenizing("the tokenizer doesn't say what its tokens stand for"):
            pieces = Pieces(tokenizer)
            for name, token in names.items():
                piece = (pieces.of(token) if token in added else pieces.named(name)) or b""
                self.surfaces[token] = piece.encode() if isinstance(piece, str) else piece
        self.special = {token for token, each in added.items() if each.special}
        for token in self.special:
            self.surfaces[token] = added[token].content.encode()
        self.ends = [token for token in ends if token < len(self.surfaces)]
        self.reach = min(max([SHORTEST, *(len(each.content.encode()) for each in added.values())]), LONGEST)
        self._tokenizer = _within(tokenizer)
        plain, around = (encode(tokenizer, "a", special=special) for special in (False, True))
        self.before = around[: around.index(plain[0])] if plain and plain[0] in around else []
        self.opens = bool(plain) and self.surfaces[plain[0]].startswith(b" ")
        self.ids: dict[bytes, int] = {}
        for token, surface in enumerate(self.surfaces):
            if surface and token not in self.special and (surface not in self.ids or self._is(surface, token)):
                self.ids[surface] = token

    def _is(self, surface: bytes, token: int) -> bool:
        """Whether the tokenizer encodes the surface's text as this token. A newline, for example, may be both a token
        of its own and a byte token."""
        return self.spelled(surface)[0] == [token]

    def spelled(self, data: bytes) -> tuple[list[int], list[int]]:
        """(the tokens of bytes in the middle of a text, the place in data where each token ends, or NOWHERE).

        Bytes that are no whole character, such as the first bytes of an incomplete one, become a token each."""
        ids: list[int] = []
        ends: list[int] = []
        start = 0
        for text, broken in _characters(data):
            if text:
                found, whole = encode(self._tokenizer, text, special=False), text.encode()
                ids += found
                ends += self._ends(found, whole, start)
                start += len(whole)
            for byte in broken:
                start += 1
                token = self.ids.get(bytes([byte]))
                if token is not None:
                    ids.append(token)
                    ends.append(start)
        return ids, ends

    def _ends(self, ids: Sequence[int], whole: bytes, start: int) -> list[int]:
        """Where each token of a text ends, as far as the tokens' surfaces match the text; NOWHERE after that."""
        ends, place = [], 0
        for token in ids:
            surface = self.surfaces[token]
            if place != NOWHERE:
                place = place + len(surface) if whole.startswith(surface, place) else NOWHERE
            ends.append(start + place if place != NOWHERE else NOWHERE)
        if ends and place != len(whole):
            ends[-1] = start + len(whole) if place == NOWHERE else NOWHERE
        return ends


def shared(target: Vocabulary, draft: Vocabulary) -> tuple[list[int], list[int]]:
    """The tokens that both vocabularies have, compared by surface: (their ids in the target's vocabulary, ascending;
    their ids in the draft's). Of the special tokens only end tokens are included, because a special token's name
    doesn't tell what a model uses it for."""
    pairs = {token: draft.ids[surface] for surface, token in target.ids.items() if surface in draft.ids}
    pairs |= same_ends(target, draft)
    ascending = sorted(pairs)
    return ascending, [pairs[token] for token in ascending]


def same_ends(target: Vocabulary, draft: Vocabulary) -> dict[int, int]:
    """The draft's end token for each of the target's end tokens that the draft has too: the one of the same name. Where
    no names agree, the two models' first end tokens correspond."""
    theirs, own = ([token for token in each.ends if token in each.special] for each in (target, draft))
    named = {draft.surfaces[token]: token for token in own}
    alike = {token: named[target.surfaces[token]] for token in theirs if target.surfaces[token] in named}
    return alike or dict(zip(theirs[:1], own[:1], strict=False))


def share_of(target: Vocabulary, draft: Vocabulary, text: str) -> float:
    """The share of a text's tokens, by the target's tokenizer, that the draft's vocabulary has too."""
    ids, _ = target.spelled(text.encode())
    return sum(target.surfaces[token] in draft.ids for token in ids) / max(len(ids), 1)


def _characters(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Splits data into pairs: whole characters, and the bytes after them that are no whole character."""
    while data:
        try:
            yield data.decode(), b""
            return
        except UnicodeDecodeError as error:
            yield data[: error.start].decode(), data[error.start : error.end]
            data = data[error.end :]


def _within(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without the space that it may add at a text's beginning, for use in the middle of a text."""
    state = json.loads(tokenizer.to_str()) if _adds_space(tokenizer) else None
    if state is None:
        return tokenizer
    for part in ("normalizer", "pre_tokenizer"):
        state[part] = _without_space(state[part])
    return Tokenizer.from_str(json.dumps(state))


def _adds_space(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts anything before a letter at a text's beginning."""
    with tokenizing("the tokenizer can't encode a letter"):
        found = tokenizer.encode("a", add_special_tokens=False).tokens
    return bool(found) and found[0] != "a"


def _without_space(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step, or a sequence of steps, changed so that it adds no space at the beginning; None where no step is left."""
    if step is None or step["type"] == "Prepend":
        return None
    for name in ("normalizers", "pretokenizers"):
        if name in step:
            step[name] = [each for each in map(_without_space, step[name]) if each is not None]
    if step["type"] == "Metaspace":
        step["prepend_scheme"] = "never"
    if step["type"] == "ByteLevel":
        step["add_prefix_space"] = False
    return step
