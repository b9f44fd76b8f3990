"""Texts that lookup searches beside a row's own, indexed once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sybil.agreement import in_common
from sybil.drafting.automaton import Match

END = -1
"""Stands after every text, so that no match and no continuation crosses from one to the next."""
DEPTH = 16
"""Tokens of an ending by which its places are ordered; a match that is followed grows beyond."""


@dataclass(frozen=True, eq=False, slots=True)
class Datastore:
    """tokens: (n,) int32, of all texts, END after each. order: their places, in the order of what ends there, read
    backwards; of those that agree in DEPTH tokens the earlier first."""

    tokens: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]]) -> Datastore:
        """Of texts as token ids, by prefix doubling (Manber and Myers 1993): O(n log n) in numpy's own sort."""
        whole = [END]
        for text in texts:
            whole += [*text, END]
        tokens = np.array(whole, dtype=np.int32)
        order = tokens.argsort(kind="stable")
        rank = _ranks(tokens[order])[order.argsort()]
        size = 1
        while size < DEPTH:
            before = np.concatenate([np.zeros(min(size, len(rank)), dtype=np.int64), rank[:-size]])
            keys = rank * (len(rank) + 1) + before
            order = keys.argsort(kind="stable")
            rank = np.empty_like(rank)
            rank[order] = _ranks(keys[order])
            size *= 2
        return cls(tokens, order.astype(np.int32))

    def search(self, ending: Sequence[int]) -> Match:
        """The longest suffix of an ending that stands in a text, up to DEPTH tokens; the latest of two such places."""
        backwards = list(ending[: -DEPTH - 1 : -1])
        low, high = 0, len(self.order)
        while low < high:
            middle = (low + high) // 2
            if self._ended(middle) <= backwards:
                low = middle + 1
            else:
                high = middle
        best = Match()
        for index in (low, low - 1):  # the best matches stand next to the place where the ending would be sorted in
            if 0 <= index < len(self.order):
                length = in_common(self._ended(index), backwards)  # of which none is END
                if length > best.length:
                    best = Match(0, length, int(self.order[index]))
        return best

    def _ended(self, index: int) -> list[int]:
        """The tokens that end at the place of that index, backwards."""
        place = int(self.order[index])
        ended: list[int] = self.tokens[max(place - DEPTH + 1, 0) : place + 1][::-1].tolist()
        return ended

    def after(self, place: int, count: int) -> list[int]:
        """The tokens after a place, up to the end of its text."""
        found: list[int] = self.tokens[place + 1 : place + 1 + count].tolist()
        return found[: found.index(END)] if END in found else found


def _ranks(ascending: np.ndarray) -> np.ndarray:
    """1 for the least of ascending keys, the same for equal ones."""
    steps = np.empty(len(ascending), dtype=np.int64)
    steps[0], steps[1:] = 1, ascending[1:] != ascending[:-1]
    ranks: np.ndarray = steps.cumsum()
    return ranks


class StoreReader:
    """Reads a row's text and finds where its ending stands in a datastore, as Automaton does in the text itself."""

    def __init__(self, store: Datastore) -> None:
        self.store = store
        self.match = Match()  # the one that is being followed; none until one is looked for
        self._ending: list[int] = []
        self._is_sought = False  # since the last token was read

    def extend(self, more: Sequence[int]) -> None:
        """Read more tokens."""
        self.match = self._followed(more)
        self._ending = [*self._ending, *more][-DEPTH:]
        self._is_sought = False

    def after(self, tokens: Sequence[int]) -> Match:
        """The match of the text followed by these tokens. They aren't added, because they may be dropped."""
        found = self._followed(tokens)
        if found or (self._is_sought and not tokens):
            return found
        found = self.store.search([*self._ending, *tokens][-DEPTH:])
        if not tokens:
            self.match, self._is_sought = found, True
        return found

    def continuation(self, match: Match, tokens: Sequence[int], count: int) -> list[int]:
        """At most count tokens after a match of the text and these tokens after it."""
        return self.store.after(match.end, count) if match else []

    def _followed(self, tokens: Sequence[int]) -> Match:
        length, end = self.match.length, self.match.end
        for token in tokens:
            if not length or self.store.tokens[end + 1] != token:
                return Match()
            length, end = length + 1, end + 1
        return Match(0, length, end)


class Answers:
    """The latest answers of a decoder, at most MOST tokens together. Each answer lacks the tokens of its last round.

    An answer's list is held from its beginning and grows while it is generated. Generations that begin later search
    it."""

    MOST = 1 << 14

    def __init__(self) -> None:
        self._texts: deque[list[int]] = deque()

    def keep(self, texts: Sequence[list[int]]) -> None:
        """Hold more texts, which may still grow."""
        self._texts.extend(texts)

    def store(self) -> Datastore | None:
        """The answers so far, indexed; None where there are none. An answer that was given twice is held once."""
        held: deque[list[int]] = deque()
        kept: list[list[int]] = []
        room = self.MOST
        for text in reversed(self._texts.copy()):
            if room <= 0:
                break
            if text and text in held:
                continue
            held.appendleft(text)
            if text:
                kept.append(text[-room:])
            room -= max(len(text), 1)
        self._texts = held
        return Datastore.of(reversed(kept)) if kept else None
