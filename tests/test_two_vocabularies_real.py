"""Gemma 3 270M drafted for by SmolLM2, and the other way round: two real tokenizers, for `nox -s real`."""

from __future__ import annotations

from pathlib import Path

import pytest
from real import gemma_file, smollm2_file

import sybil
from sybil.drafting import DraftIntersection, DraftStrings
from sybil.drafting.reader import RetokenizingReader
from sybil.fit import way_of
from sybil.measuring import prompts
from sybil.transfer import integers

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
TEXTS = prompts.spread(prompts.load(shipped=sybil.PAIRS["smollm2"].prompts), 20)


@pytest.mark.parametrize("gemma_is", ["target", "draft"])
def test_greedy_texts_are_the_targets_by_both_ways(gemma_is: str) -> None:
    files: list[Path] = [gemma_file(), smollm2_file()]
    target, draft = files if gemma_is == "target" else reversed(files)
    decoder = sybil.load(target, draft, device="cpu")
    assert way_of(decoder.draft) == "intersection"
    assert isinstance(decoder.draft, DraftIntersection)
    model = decoder.draft.model
    strings = decoder.with_draft(
        DraftStrings(RetokenizingReader(model.model, model.target, model.draft, model.context))
    )  # type: ignore[attr-defined]
    for prompt in TEXTS:
        ids = [integers(prompts.encode(prompt, decoder))]
        plain = decoder.without_draft().generate(ids, max_new_tokens=64)
        for drafted in (decoder, strings):
            out = drafted.generate(ids, max_new_tokens=64, gamma=4)
            assert out.tokens[0].tolist() == plain.tokens[0].tolist(), prompt.id
            assert out.stats.accepted
