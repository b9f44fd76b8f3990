"""The decode loop's samples, counted, against the target's exact distribution.

transformers runs a tiny target over four tokens, with its own processors, over every sequence of a few tokens: that
gives the expected distribution. The loop's samples are counted in two ways. "joint" counts whole sequences. "places"
counts tokens, by their prefix and by the place in a block at which the token came to stand: the token must follow the
target's distribution at every place. The test is Pearson's chi-square; rare cells are pooled until 5 are expected."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy import stats
from tiny import foreign, gpt2, in_sybil, letters, llama, perturbed
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from translating import drafting, letters_of

from sybil import Decoder
from sybil.drafting import (
    DrafterFactory,
    DraftHybrid,
    DraftIntersection,
    DraftLookup,
    DraftModel,
    DraftSelf,
    DraftStrings,
)

VOCAB, TOKENS, END, BATCH = 4, 4, 2, 3_000
ALPHA = 1e-9
TARGET = gpt2(seed=5, vocab=VOCAB, layers=2, width=8)
DECODED = in_sybil(TARGET)
PROMPTS = ((1, 3, 2, 1), (0,), (3, 3, 0, 1, 2, 0, 3))


class Small(DraftModel):
    """A draft that reports that it is small, so gamma="auto" decides to draft with it."""

    step_bytes = (1,)


class SmallIntersection(DraftIntersection):
    """A draft with another tokenizer that reports that it is small."""

    step_bytes = (1,)


class SmallStrings(DraftStrings):
    """A draft that is translated by its text and reports that it is small."""

    step_bytes = (1,)


class SmallSelf(DraftSelf):
    """A self-draft in the target's own cache that reports that it is small."""

    step_bytes = (1,)


def translated(way: str) -> Any:
    """A draft that shares three of the target's four tokens, under other ids, and has one of its own."""
    draft = gpt2(9, vocab=VOCAB, layers=1, width=8)
    return drafting(way, TARGET, draft, letters(VOCAB), letters_of("c?!a"))


DRAFTERS: dict[str, DrafterFactory] = {
    "model": Small(in_sybil(perturbed(TARGET, 0.12))),
    "transformers": Small(foreign(llama(seed=3, vocab=VOCAB, layers=1, width=8))),
    "lookup": DraftLookup(least=0.0),
    "short": Small(in_sybil(gpt2(seed=4, vocab=VOCAB, layers=1, width=8, context=6))),  # ends before the text does
    "self": SmallSelf(in_sybil(perturbed(TARGET, 0.05, seed=2))),
    "skip": SmallSelf(DECODED.with_layers([1])),
    "intersection": SmallIntersection(translated("intersection").model),
    "strings": SmallStrings(translated("strings").model),
    "hybrid": DraftHybrid(DraftLookup(least=0.0), Small(in_sybil(perturbed(TARGET, 0.12)))),
    "cascade": SmallSelf(in_sybil(perturbed(TARGET, 0.05, seed=2)), helper=DraftLookup(least=0.0)),
}
COMPOSED = ("self", "skip", "hybrid", "cascade")
"""Drafters in the target's own cache, and drafters that are made of others."""
TRANSLATED = ("intersection", "strings")
"""Drafters with another tokenizer."""
PROCESSORS: dict[str, tuple[dict[str, object], LogitsProcessorList]] = {
    "none": ({}, LogitsProcessorList()),
    "filters": (
        {"temperature": 0.8, "top_p": 0.9},
        LogitsProcessorList([TemperatureLogitsWarper(0.8), TopPLogitsWarper(0.9)]),
    ),
    "history": (
        {"repetition_penalty": 1.5, "logits_processor": [NoRepeatNGramLogitsProcessor(3)]},
        LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5), NoRepeatNGramLogitsProcessor(3)]),
    ),
}
LEVELS = {
    "rule": ("token", "block", "coupled"),
    "drafter": tuple(DRAFTERS),
    "window": ("constant", "heuristic", "confident", "auto"),
    "batch": ("alike", "mixed"),
    "processors": tuple(PROCESSORS),
    "stop": ("none", "end token"),
}


@dataclass(frozen=True)
class Case:
    """What is decoded, and how. batch: the rows, either of one prompt, or of three prompts of unequal lengths."""

    rule: str = "token"
    drafter: str = "model"
    window: str = "constant"
    batch: str = "alike"
    processors: str = "none"
    stop: str = "none"

    def __str__(self) -> str:
        return "-".join(astuple(self))


def every_case() -> list[Case]:
    return [Case(*levels) for levels in itertools.product(*LEVELS.values())]


def covering_cases() -> list[Case]:
    """A small set of cases in which each level of a factor meets each level of every other factor. It is chosen
    greedily."""
    cases, chosen = every_case(), []
    names = [field.name for field in fields(Case)]

    def pairs(case: Case) -> set[tuple[str, str, str, str]]:
        levels = zip(names, astuple(case), strict=True)
        return {(*one, *other) for one, other in itertools.combinations(levels, 2)}

    missing = set().union(*map(pairs, cases))
    while missing:
        best = max(cases, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


@lru_cache
@torch.no_grad()
def conditionals(prompt: tuple[int, ...], processors: str) -> dict[tuple[int, ...], np.ndarray]:
    """The distribution of the next token after every sequence of fewer than TOKENS new ones."""
    found = {}
    for depth in range(TOKENS):
        prefixes = list(itertools.product(range(VOCAB), repeat=depth))
        ids = torch.tensor([[*prompt, *prefix] for prefix in prefixes])
        logits = PROCESSORS[processors][1](ids, TARGET(input_ids=ids).logits[:, -1])
        found.update(zip(prefixes, logits.softmax(-1).numpy(), strict=True))
    return found


def expected(prompt: tuple[int, ...], processors: str, end: int | None) -> dict[tuple[int, ...], float]:
    """The probability of every whole sequence: TOKENS long, or ended by the end token."""
    rows = conditionals(prompt, processors)
    whole: dict[tuple[int, ...], float] = {}

    def grow(prefix: tuple[int, ...], probability: float) -> None:
        if len(prefix) == TOKENS or (prefix and prefix[-1] == end):
            whole[prefix] = probability
            return
        for token, share in enumerate(rows[prefix].tolist()):
            if share > 0:
                grow((*prefix, token), probability * share)

    grow((), 1.0)
    return whole


def sampled(
    case: Case, seed: int, sequences: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """(prompt, tokens, places) of each row. A row's noise is keyed by its place in the batch, so every batch has its
    own seed."""
    decoder = Decoder(DECODED, DRAFTERS[case.drafter])
    prompts = PROMPTS[:1] if case.batch == "alike" else PROMPTS
    for batch in range(sequences // BATCH):
        chosen = [prompts[row % len(prompts)] for row in range(BATCH)]
        tokens: list[list[int]] = [[] for _ in chosen]
        places: list[list[int]] = [[] for _ in chosen]
        for step in decoder.stream(
            [torch.tensor(prompt) for prompt in chosen],
            max_new_tokens=TOKENS,
            do_sample=True,
            gamma={"confident": 3, "auto": "auto"}.get(case.window, 2),
            rule=case.rule,
            window="constant" if case.window == "auto" else case.window,
            seed=1000 * seed + batch,
            eos_token_id=[END] if case.stop == "end token" else [],
            **{"top_k": 0, **PROCESSORS[case.processors][0]},
        ):
            for row, gained in enumerate(step.tokens):
                tokens[row] += gained
                places[row] += range(len(gained))
        yield from zip(chosen, map(tuple, tokens), map(tuple, places), strict=True)


def p_values(case: Case, seed: int = 0, sequences: int = 30_000) -> dict[str, float]:
    """The p-values of the whole sequences, and of the tokens by place. They are 0 if something impossible was
    emitted."""
    end = END if case.stop == "end token" else None
    whole: dict[tuple[int, ...], Counter[tuple[int, ...]]] = defaultdict(Counter)
    by_place: dict[tuple[tuple[int, ...], tuple[int, ...], int], Counter[int]] = defaultdict(Counter)
    for prompt, tokens, places in sampled(case, seed, sequences):
        whole[prompt][tokens] += 1
        for index, (token, place) in enumerate(zip(tokens, places, strict=True)):
            by_place[prompt, tokens[:index], place][token] += 1
    joint, placed = ChiSquare(), ChiSquare()
    for prompt, counts in whole.items():
        joint.add(counts, expected(prompt, case.processors, end))
    for (prompt, prefix, _), tokens_there in by_place.items():
        placed.add(tokens_there, dict(enumerate(conditionals(prompt, case.processors)[prefix].tolist())))
    return {"joint": joint.p_value, "places": placed.p_value}


class ChiSquare:
    """Pearson's chi-square statistic, summed over independent tables of counts."""

    def __init__(self) -> None:
        self.statistic, self.freedom = 0.0, 0

    def add(self, counts: Counter[Any], probabilities: dict[Any, float]) -> None:
        """Add one table. Its rarest cells are pooled until 5 are expected in each. A table with fewer than two cells
        left is ignored."""
        total = sum(counts.values())
        if any(probabilities.get(cell, 0.0) == 0 for cell in counts):
            self.statistic = float("inf")
        due = np.array([total * share for share in probabilities.values()])
        found = np.array([counts[cell] for cell in probabilities])
        order = due.argsort()
        due, found = due[order], found[order]
        pooled = int(np.searchsorted(due.cumsum(), 5.0)) + 1
        due = np.concatenate([[due[:pooled].sum()], due[pooled:]])
        found = np.concatenate([[found[:pooled].sum()], found[pooled:]])
        if len(due) > 1:
            self.statistic += float(((found - due) ** 2 / due).sum())
            self.freedom += len(due) - 1

    @property
    def p_value(self) -> float:
        return float(stats.chi2.sf(self.statistic, self.freedom))
