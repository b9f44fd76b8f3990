"""The worked example of docs/theory.md: 5 words, two models whose next word depends on the last word alone, and one
round by each rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sybil.verification import Proposed

WORDS = ("the", "cat", "sat", "on", "mat")

TARGET = torch.tensor(
    [  # the  cat  sat  on  mat
        [0.0, 0.5, 0.1, 0.0, 0.4],
        [0.1, 0.0, 0.5, 0.3, 0.1],
        [0.2, 0.1, 0.0, 0.7, 0.0],
        [0.8, 0.1, 0.0, 0.0, 0.1],
        [0.3, 0.1, 0.4, 0.2, 0.0],
    ],
    dtype=torch.float64,
)
"""The target's probabilities. The row is the last word, the column the next one."""

DRAFT = torch.tensor(
    [
        [0.1, 0.4, 0.1, 0.1, 0.3],
        [0.1, 0.0, 0.8, 0.1, 0.0],
        [0.3, 0.1, 0.1, 0.5, 0.0],
        [0.5, 0.2, 0.1, 0.0, 0.2],
        [0.2, 0.2, 0.3, 0.2, 0.1],
    ],
    dtype=torch.float64,
)

PROMPT = "the"
PROPOSAL = ("cat", "sat", "on", "the")

UNIFORMS = torch.tensor([[0.65, 0.30, 0.70, 0.20, 0.90]], dtype=torch.float64)
"""The uniforms that the rules take. The first one draws the next word; the others judge the proposed words."""

EXPONENTIALS = torch.tensor(
    [[1.00, 0.30, 0.50, 2.00, 0.45], [0.90, 1.40, 0.60, 0.25, 0.80]],
    dtype=torch.float64,
)
"""The exponentials of places 1 and 2. The round by the coupled rule ends there."""

OTHER_WORD = ("mat", "dog")
"""A word of the target, and the word that a draft with another vocabulary has in its place."""


def row(models: Tensor, word: str) -> Tensor:
    """A model's distribution (words,) after a word."""
    return models[WORDS.index(word)]


def ids(words: Sequence[str]) -> list[int]:
    return [WORDS.index(word) for word in words]


def proposed(words: Sequence[str] = PROPOSAL, certain: bool = False) -> Proposed:
    """What a rule is given of a proposal after the prompt. certain: the draft gives no probabilities."""
    before = ids([PROMPT, *words])
    counts = torch.tensor([len(words)])
    draft = None if certain else DRAFT[before[:-1]][None]
    return Proposed(torch.tensor([before[1:]]), draft, TARGET[before][None], counts)


def exponentials() -> Tensor:
    """The exponentials as the coupled rule takes them, (1, 5, words). At the places that don't matter they are 1."""
    rest = torch.ones(len(PROPOSAL) + 1 - len(EXPONENTIALS), len(WORDS), dtype=torch.float64)
    return torch.cat([EXPONENTIALS, rest])[None]
