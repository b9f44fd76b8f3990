"""Keeps a text of the target's tokens encoded in the draft's own tokens while tokens are added and removed."""

from __future__ import annotations

from collections.abc import Sequence

from sybil.agreement import in_common
from sybil.drafting.surfaces import NOWHERE, Vocabulary

BACK = 8  # the draft's tokens before a change that are encoded again


class ReencodedRow:
    """The text of a row of the target's tokens, encoded by the draft's tokenizer. own: the draft's tokens. They are the
    same as if the whole text had been encoded at once.

    When the text changes, only its end is encoded again, because a tokenizer looks only at nearby characters. If the
    first token of that end comes out different, the change reaches further back, and twice as much is encoded."""

    def __init__(self, target: Vocabulary, draft: Vocabulary) -> None:
        self._target, self._draft = target, draft
        self._text = bytearray()
        self._until: list[int] = []  # where in the text each token of the target ends
        self.own: list[int] = []
        self._ends: list[int] = []  # where in the text each own token ends, or NOWHERE

    def write(self, at: int, tokens: Sequence[int]) -> int:
        """Replace everything after the row's first `at` tokens of the target by these tokens. Returns how many of the
        own tokens are unchanged."""
        del self._until[at:]
        start = self._until[-1] if self._until else 0
        del self._text[start:]
        for place, token in enumerate(tokens, at):
            self._text += self._surface(place, token)
            self._until.append(len(self._text))
        return self._encode_from(start)

    def expect(self, own: Sequence[int]) -> None:
        """Note that the draft's cache holds these own tokens after the text's. The next write may use them."""
        self.own += own
        self._ends += [NOWHERE] * len(own)

    def _surface(self, place: int, token: int) -> bytes:
        """The bytes that a token adds to the text. The tokens that the target puts before every text add nothing; nor
        does a first token with the name of the draft's first token. A special token adds its name."""
        target, draft = self._target, self._draft
        surface = target.surfaces[token] if token < len(target.surfaces) else b""
        begins = target.before[place : place + 1] == [token]
        if begins or (not place and surface in [draft.surfaces[each] for each in draft.before]):
            surface = b""
        if self._text or not surface or token in target.special:
            return surface
        if target.opens:
            surface = surface.removeprefix(b" ")
        return b" " + surface if draft.opens else surface

    def _encode_from(self, changed: int) -> int:
        """Encode the text's end, from a little before the place `changed`. Returns how many own tokens are
        unchanged."""
        settled, back = self._settled(changed), BACK
        while True:
            place = self._beginning(settled - back, changed)
            start = self._ends[place - 1] if place else 0
            ids, ends = self._draft.spelled(bytes(self._text[start:]))
            if not place or ids[:1] == self.own[place : place + 1]:
                break
            back *= 2
        kept = place + in_common(self.own[place:], ids)
        self.own[place:] = ids
        self._ends[place:] = [end if end == NOWHERE else start + end for end in ends]
        return kept

    def _settled(self, changed: int) -> int:
        """How many own tokens end before the change."""
        count = len(self.own)
        while count and not 0 <= self._ends[count - 1] <= changed:
            count -= 1
        return count

    def _beginning(self, place: int, changed: int) -> int:
        """The last own token, up to that place, from which the text can be encoded by itself. It begins with a whole
        character, and before any long or special token that the change may complete."""
        latest = changed - self._draft.reach
        while place > 0:
            end = self._ends[place - 1]
            if 0 <= end <= latest and (end == len(self._text) or self._text[end] & 0xC0 != 0x80):
                return place
            place -= 1
        return 0
