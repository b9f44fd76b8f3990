"""The text of a target that drafts for itself at gamma="auto" is plain decoding's, over 100,000 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from real import smollm2_file

import sybil
from sybil.measuring import prompts as shipped

DRAFTS = ("self", "hybrid:lookup,self", "cascade:lookup,self:5")


def compared(source: Any, draft: str, texts: Sequence[str], new_tokens: int, batches: Sequence[int]) -> int:
    """How many greedy tokens after the texts, in batches of these sizes, are plain decoding's: all of them."""
    drafted = sybil.load(source, draft=draft, dtype="float32")
    plain, count = drafted.without_draft(), 0
    asked: dict[str, Any] = {"max_new_tokens": new_tokens, "eos_token_id": []}
    for batch in batches:
        for start in range(0, len(texts), batch):
            group = list(texts[start : start + batch])
            found, wanted = (each.generate(group, **asked) for each in (drafted, plain))
            assert [row.tolist() for row in found.tokens] == [row.tolist() for row in wanted.tokens]
            count += found.stats.emitted
    return count


@pytest.mark.slow
@pytest.mark.parametrize("draft", DRAFTS)
def test_the_embedded_target_says_what_it_says_without_a_draft(draft: str) -> None:
    texts = [prompt.text for prompt in shipped.spread(shipped.load(), 64)]
    assert compared("stdlib", draft, texts, 270, (1, 8)) > 34_000


@pytest.mark.real
@pytest.mark.parametrize("draft", DRAFTS)
def test_smollm2_says_what_it_says_without_a_draft(draft: str) -> None:
    texts = [prompt.text for prompt in shipped.spread(shipped.load(), 4)]
    assert compared(smollm2_file(), draft, texts, 128, (1, 4)) == 1_024
