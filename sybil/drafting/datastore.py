"""The index of texts that lookup searches beside a row's own text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sybil.agreement import in_common
from sybil.drafting.automaton import Match

END = -1
"""The token id after every text. It keeps matches and continuations from crossing into the next text."""
DEPTH = 16
"""The number of last tokens by which places are sorted. A match that is being followed grows longer."""


@dataclass(frozen=True, eq=False, slots=True)
class Datastore:
    """Indexed texts. tokens: (n,) int32, the tokens of all texts, with END after each text. order: all places, sorted
    by the tokens that end at the place, read backwards. Places that agree in DEPTH tokens are in ascending order."""

    tokens: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]]) -> Datastore:
        """The index of texts given as token ids. It is made by prefix doubling (Manber and Myers 1993) with numpy's
        sort, in O(n log n)."""
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
        """The longest suffix of `ending`, up to DEPTH tokens, that occurs in a text; the later one of two such
        places."""
        backwards = list(ending[: -DEPTH - 1 : -1])
        low, high = 0, len(self.order)
        while low < high:
            middle = (low + high) // 2
            if self._ended(middle) <= backwards:
                low = middle + 1
            else:
                high = middle
        best = Match()
        for index in (low, low - 1):  # the best matches are next to the place where the ending would be sorted in
            if 0 <= index < len(self.order):
                length = in_common(self._ended(index), backwards)  # END is in no ending
                if length > best.length:
                    best = Match(0, length, int(self.order[index]))
        return best

    def _ended(self, index: int) -> list[int]:
        """The tokens up to the place order[index], backwards."""
        place = int(self.order[index])
        ended: list[int] = self.tokens[max(place - DEPTH + 1, 0) : place + 1][::-1].tolist()
        return ended

    def after(self, place: int, count: int) -> list[int]:
        """The tokens after a place, up to the end of its text."""
        found: list[int] = self.tokens[place + 1 : place + 1 + count].tolist()
        return found[: found.index(END)] if END in found else found


def _ranks(ascending: np.ndarray) -> np.ndarray:
    """The ranks of ascending keys, from 1; equal keys have equal ranks."""
    steps = np.empty(len(ascending), dtype=np.int64)
    steps[0], steps[1:] = 1, ascending[1:] != ascending[:-1]
    ranks: np.ndarray = steps.cumsum()
    return ranks


class StoreReader:
    """Reads a row's text and finds the text's ending in a datastore, as Automaton finds it in the text itself."""

    def __init__(self, store: Datastore) -> None:
        self.store = store
        self.match = Match()  # the match that is being followed; empty until one is searched for
        self._ending: list[int] = []
        self._is_sought = False  # whether a match was searched for since the last token was read

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
        """At most `count` tokens that follow the match in the datastore. tokens: those that follow the text, as in
        after()."""
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

    An answer's list is held from the beginning of its generation and grows while the answer is generated. Generations
    that begin later search it."""

    MOST = 1 << 14

    def __init__(self) -> None:
        self._texts: deque[list[int]] = deque()

    def keep(self, texts: Sequence[list[int]]) -> None:
        """Hold more texts, which may still grow."""
        self._texts.extend(texts)

    def store(self) -> Datastore | None:
        """The index of the answers so far; None where there are none. An answer that was given twice is held once."""
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
