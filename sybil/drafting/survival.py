"""How likely the next token of a match is to be kept, estimated from the matches seen in this text."""

from __future__ import annotations


class Survival:
    """For each length of match, how often the text continued as the match predicted.

    Every kept token counts, proposed or not, because the text itself shows whether a match was right. Dropped tokens
    don't count. Lengths from one power of two to the next are counted together. Older counts fade, so that the latest
    text weighs most."""

    FADING = 0.9
    SHARES = (0.2, 0.5, 0.8, 0.85, 0.95, 0.95)
    """The shares assumed for matches of 1, 2, 4, 8, 16 tokens and of 32 or more, before the text has shown any. They
    are those of SmolLM2, decoding greedily over 36 of the shipped prompts, 96 tokens each."""
    WEIGHT = 4.0  # the assumption counts as so many tokens seen

    def __init__(self) -> None:
        self._right = [share * self.WEIGHT for share in self.SHARES]
        self._seen = [self.WEIGHT] * len(self.SHARES)

    def learn(self, length: int, right: bool) -> None:
        """Count a match of `length` tokens. right: whether the text continued with the token that it predicted."""
        kind = self._kind(length)
        self._right[kind] = self.FADING * self._right[kind] + right
        self._seen[kind] = self.FADING * self._seen[kind] + 1

    def next(self, length: int) -> float:
        """The share of matches of `length` tokens that predict the next token rightly."""
        kind = self._kind(length)
        return self._right[kind] / self._seen[kind]

    def worth(self, length: int, most: int, least: float) -> int:
        """How many tokens after a match of `length` tokens, at most `most`, are all kept with a likelihood of at least
        `least`."""
        kept = 1.0
        for count in range(most):
            kept *= self.next(length + count)
            if kept < least:
                return count
        return most

    def _kind(self, length: int) -> int:
        return min(length.bit_length(), len(self.SHARES)) - 1
