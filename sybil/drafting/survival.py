"""How likely the next token of a match is to be kept, estimated from the matches seen in this text."""

from __future__ import annotations


class Survival:
    """For each length of match, how often the text went on as the match said.

    Every kept token counts, proposed or not: the text itself tells whether a match was right. Dropped tokens don't
    count. Lengths from one power of two to the next are counted together. Older counts fade, so that the latest text
    weighs most."""

    FADING = 0.9
    SHARES = (0.2, 0.5, 0.8, 0.85, 0.95, 0.95)
    """What is assumed of matches of 1, 2, 4, 8, 16, 32 tokens and more, before the text has shown anything: SmolLM2's,
    greedy, over 36 of the shipped prompts, 96 tokens each."""
    WEIGHT = 4.0  # of the assumption, in tokens seen

    def __init__(self) -> None:
        self._right = [share * self.WEIGHT for share in self.SHARES]
        self._seen = [self.WEIGHT] * len(self.SHARES)

    def learn(self, length: int, right: bool) -> None:
        """Count a match of so many tokens: whether the token that it predicted came."""
        kind = self._kind(length)
        self._right[kind] = self.FADING * self._right[kind] + right
        self._seen[kind] = self.FADING * self._seen[kind] + 1

    def next(self, length: int) -> float:
        """The share of matches of so many tokens that hold for a token more."""
        kind = self._kind(length)
        return self._right[kind] / self._seen[kind]

    def worth(self, length: int, most: int, least: float) -> int:
        """How many tokens, at most `most`, are all kept with a likelihood of `least` or more."""
        kept = 1.0
        for count in range(most):
            kept *= self.next(length + count)
            if kept < least:
                return count
        return most

    def _kind(self, length: int) -> int:
        return min(length.bit_length(), len(self.SHARES)) - 1
