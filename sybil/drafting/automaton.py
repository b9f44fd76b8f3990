"""A suffix automaton of a text, which finds earlier occurrences of the text's ending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """A suffix of the text that also occurs earlier in the text. state: the automaton's state. length: the suffix's
    tokens, 0 where there is no such suffix. end: the place of the earlier occurrence's last token."""

    state: int = 0
    length: int = 0
    end: int = -1

    def __bool__(self) -> bool:
        return self.length > 0


class Automaton:
    """The suffix automaton (Blumer et al. 1985) of the tokens read so far. It is extended token by token, in amortised
    constant time.

    A state stands for the strings that end at the same places. The lists have an entry for each state. following: the
    next state, by token. link: the state of the longest suffix that ends at other places too. length: the tokens of the
    state's longest string. end: the latest place at which the state's strings end.

    After a new token every suffix of the text ends at that token, so the ends of the states along the links are
    updated, but only of the STEPS longest suffixes. Where a text repeats itself more often than that, a short suffix
    may be given an earlier place than its latest. Of a text longer than MOST tokens, only the end is known: at least
    the last half of MOST tokens."""

    MOST = 1 << 16
    STEPS = 32

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.tokens: list[int] = []
        self.match = Match()  # the longest suffix that occurs earlier, at its latest earlier place
        self._following: list[dict[int, int]] = [{}]
        self._link, self._length, self._end = [-1], [0], [-1]
        self._last = 0

    def extend(self, more: Sequence[int]) -> None:
        """Read more tokens."""
        if len(self.tokens) + len(more) > self.MOST:
            more = [*self.tokens, *more][-max(self.MOST // 2, min(len(more), self.MOST)) :]
            self._clear()
        for token in more[:-1]:
            self._append(token)
        for token in more[-1:]:
            state, end = self._append(token)
            self.match = Match(state, self._length[state], end)

    def _append(self, token: int) -> tuple[int, int]:
        """Read a token. Returns (the state of the longest suffix that occurs earlier, its latest earlier place)."""
        following, link, length, end = self._following, self._link, self._length, self._end
        place, new, state = len(self.tokens), len(length), self._last
        self.tokens.append(token)
        following.append({})
        link.append(0)
        length.append(place + 1)
        end.append(place)
        while state >= 0 and token not in (after := following[state]):
            after[token] = new
            state = link[state]
        stood = 0
        if state >= 0:
            stood = following[state][token]
            if length[stood] != length[state] + 1:
                stood = self._part(state, token, stood)
            link[new] = stood
        self._last, before = new, end[stood]
        each = stood
        for _ in range(self.STEPS):
            if each <= 0:
                break
            end[each] = place
            each = link[each]
        return stood, before

    def _part(self, state: int, token: int, met: int) -> int:
        """Split the state `met`: its strings that are suffixes of the text (the strings of `state`, followed by token)
        get a new state, which is returned."""
        following, link, length = self._following, self._link, self._length
        part = len(length)
        following.append(following[met].copy())
        link.append(link[met])
        length.append(length[state] + 1)
        self._end.append(self._end[met])
        link[met] = part
        while state >= 0 and following[state].get(token) == met:
            following[state][token] = part
            state = link[state]
        return part

    def after(self, tokens: Sequence[int]) -> Match:
        """The match of the text followed by these tokens. They aren't added to the automaton, because they may be
        dropped."""
        if not tokens:
            return self.match
        state, length = self.match.state, self.match.length
        for token in tokens:
            while state >= 0 and token not in self._following[state]:
                state = self._link[state]
                length = self._length[state] if state >= 0 else 0
            if state < 0:
                state = 0
            else:
                state, length = self._following[state][token], length + 1
        return Match(state, length, self._end[state])

    def continuation(self, match: Match, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` tokens after the match's earlier occurrence. tokens: those that follow the text, as in after().
        Where the occurrence's continuation reaches the end of the text, the tokens proposed so far continue it: a text
        that repeats itself goes on repeating."""
        if not match:
            return []
        start, here = match.end + 1, len(self.tokens)
        known = self.tokens[start : start + count]
        if len(known) < count:
            known += tokens[max(start - here, 0) :][: count - len(known)]
        return [known[index % len(known)] for index in range(count)]
