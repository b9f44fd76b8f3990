"""The coupled rule gives, for one seed, exactly the tokens of plain sampling: whatever drafts, and however."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import foreign, gpt2, in_sybil, llama, perturbed, prompts

import sybil
from sybil import Decoder
from sybil.drafting import DrafterFactory, DraftLookup, DraftModel
from sybil.measuring import prompts as shipped

MODEL = gpt2(context=128)
TARGET = in_sybil(MODEL)
DRAFTERS: dict[str, DrafterFactory] = {
    "model": DraftModel(in_sybil(perturbed(MODEL, 0.05))),
    "itself": DraftModel(TARGET),
    "transformers": DraftModel(foreign(llama(seed=1, layers=1, context=128))),
    "lookup": DraftLookup(least=0.0),
    "short": DraftModel(in_sybil(gpt2(seed=4, context=16))),
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"top_k": 0},
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 1.5, "top_k": 5, "min_p": 0.02},
)


def ways() -> Iterator[dict[str, Any]]:
    for gamma, window in ((1, "constant"), (3, "heuristic"), (6, "confident")):
        yield {"rule": "coupled", "gamma": gamma, "window": window}


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_coupled_tokens_are_plain_sampling_s(drafter: str) -> None:
    """Per drafter over 10,000 tokens, in batches of unequal prompts and alone; some are kept, some rejected."""
    plain, drafted = Decoder(TARGET), Decoder(TARGET, DRAFTERS[drafter])
    batches = [prompts([4]), prompts([1, 9, 4], seed=1), prompts(list(range(1, 21)), seed=2)]
    compared = accepted = proposed = 0
    for seed, settings in enumerate(SETTINGS):
        for batch in batches:
            asked = dict(do_sample=True, seed=seed, max_new_tokens=48, eos_token_id=[], **settings)
            wanted = plain.generate(batch, **asked)
            for way in ways():
                found = drafted.generate(batch, **asked, **way)
                assert [row.tolist() for row in found.tokens] == [row.tolist() for row in wanted.tokens]
                compared += found.stats.emitted
                accepted, proposed = accepted + found.stats.accepted, proposed + found.stats.proposed
            assert torch.equal(plain.generate(batch[:1], **asked).tokens[0], wanted.tokens[0])
    assert compared > 10_000
    assert proposed > accepted > 0 or drafter == "itself"


def test_another_rule_gives_other_tokens_of_the_same_distribution() -> None:
    """So that the test above can fail."""
    drafted = Decoder(TARGET, DRAFTERS["model"])
    asked: dict[str, Any] = dict(do_sample=True, seed=0, max_new_tokens=48, eos_token_id=[])
    one, *others = (
        drafted.generate(prompts([4]), rule=rule, **asked).tokens[0] for rule in ("coupled", "token", "block")
    )
    assert not any(torch.equal(one, other) for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["embedded:stdlib/draft", "lookup"])
def test_the_embedded_pair_s_coupled_tokens_are_plain_sampling_s(draft: str) -> None:
    """In float32 as shipped, 64 prompts: over 50,000 tokens a drafter, batches of 1 and 8, an int8 draft."""
    drafted = sybil.load("stdlib", draft=draft)
    plain, compared = drafted.without_draft(), 0
    texts = [prompt.text for prompt in shipped.spread(shipped.load(), 64)]
    groups = [texts[start : start + 8] for start in range(0, 64, 8)] + [[text] for text in texts[:16]]
    for seed, group in enumerate(groups):
        asked: dict[str, Any] = dict(do_sample=True, seed=seed, max_new_tokens=160, eos_token_id=[])
        wanted = plain.generate(group, **asked)
        for gamma, window in ((2, "constant"), (4, "heuristic"), (5, "confident"), (4, "constant")):
            found = drafted.generate(group, gamma=gamma, window=window, rule="coupled", **asked)
            assert [row.tolist() for row in found.tokens] == [row.tolist() for row in wanted.tokens]
            compared += found.stats.emitted
    assert compared > 50_000
