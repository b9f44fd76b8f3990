"""Tiny drafts whose tokenizer differs from the target's."""

from __future__ import annotations

import json
from typing import Any

import torch
from tiny import in_sybil, letters, perturbed
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from sybil.drafting import DraftIntersection, DraftStrings
from sybil.drafting.reader import RetokenizingReader
from sybil.drafting.surfaces import Vocabulary
from sybil.drafting.vocabulary import Intersection


def whole(target: Vocabulary, draft: Vocabulary, tokens: list[int]) -> list[int]:
    """The draft's tokens of the text of the target's tokens, encoded at once."""
    text = b"".join(target.surfaces[token] for token in tokens)
    if tokens[0] not in target.special:
        text = b" " * draft.opens + text.removeprefix(b" " * target.opens)
    return draft.spelled(text)[0]


def letters_of(alphabet: str) -> Tokenizer:
    tokenizer = letters(1)
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"] = {letter: token for token, letter in enumerate(alphabet)}
    return Tokenizer.from_str(json.dumps(state))


def drafting(way: str, target: GPT2LMHeadModel, draft: GPT2LMHeadModel, theirs: Tokenizer, own: Tokenizer) -> Any:
    """The factory of drafters that translate in that way."""
    of_target, of_draft = Vocabulary(theirs), Vocabulary(own)
    if way == "strings":
        return DraftStrings(RetokenizingReader(in_sybil(draft), of_target, of_draft, target.config.n_positions))
    return DraftIntersection(Intersection(in_sybil(draft), of_target, of_draft, in_sybil(target)))


def with_turned_ids(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The same model with its ids in reverse: the last token comes first."""
    copy = perturbed(model, 0.0)
    with torch.no_grad():
        copy.transformer.wte.weight.copy_(model.transformer.wte.weight.flip(0))
    return copy
