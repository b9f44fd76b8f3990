"""Metrics of texts of token ids, whatever decoder made them: variety, repetition, and agreement of two texts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sybil.agreement import in_common

Text = Sequence[int]
RUN = 4
"""The number of tokens that count as a repetition when they occur again."""


def distinct(texts: Sequence[Text], n: int) -> float:
    """distinct-n (Li et al. 2016, arXiv 1510.03055): the number of different runs of n tokens divided by the number of
    all runs of n tokens, over all texts together; 0 where there are none. It falls as texts grow, so only equal amounts
    of text can be compared."""
    found = [run for text in texts for run in _runs(text, n)]
    return len(set(found)) / len(found) if found else 0.0


def repetition(texts: Sequence[Text], n: int = RUN) -> float:
    """The share of runs of n tokens that occur earlier in the same text; 0 where there are no runs."""
    every = [list(_runs(text, n)) for text in texts]
    count = sum(map(len, every))
    return sum(len(runs) - len(set(runs)) for runs in every) / count if count else 0.0


def agreement(texts: Sequence[Text], references: Sequence[Text]) -> float:
    """The share of the references' tokens that come before the place where each text first differs from its
    reference."""
    count = sum(map(len, references))
    shared = sum(in_common(text, reference) for text, reference in zip(texts, references, strict=True))
    return shared / count if count else 0.0


def _runs(text: Text, n: int) -> Iterator[tuple[int, ...]]:
    return (tuple(text[start : start + n]) for start in range(len(text) - n + 1))
