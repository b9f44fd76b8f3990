"""What texts of token ids look like, whoever wrote them: variety, repetition, and how far two go together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sybil.agreement import in_common

Text = Sequence[int]
RUN = 4
"""Tokens of what counts as a repetition."""


def distinct(texts: Sequence[Text], n: int) -> float:
    """distinct-n (Li et al. 2016, arXiv 1510.03055): different runs of n tokens over all runs of n tokens, the texts'
    runs together; 0 where there are none. It falls as texts grow, so only like amounts of text can be compared."""
    found = [run for text in texts for run in _runs(text, n)]
    return len(set(found)) / len(found) if found else 0.0


def repetition(texts: Sequence[Text], n: int = RUN) -> float:
    """The share of runs of n tokens that stood in the same text before; 0 where there are none."""
    every = [list(_runs(text, n)) for text in texts]
    count = sum(map(len, every))
    return sum(len(runs) - len(set(runs)) for runs in every) / count if count else 0.0


def agreement(texts: Sequence[Text], references: Sequence[Text]) -> float:
    """The share of the references' tokens that come before the first difference of each text from its reference."""
    count = sum(map(len, references))
    shared = sum(in_common(text, reference) for text, reference in zip(texts, references, strict=True))
    return shared / count if count else 0.0


def _runs(text: Text, n: int) -> Iterator[tuple[int, ...]]:
    return (tuple(text[start : start + n]) for start in range(len(text) - n + 1))
