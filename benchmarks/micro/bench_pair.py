"""The embedded pair with load()'s defaults: the forwards of both models, a round, and a short text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Measure

from sybil.decoding import Decoder
from sybil.measuring.timing import forward_case
from sybil.results import Step

DEPTH, GAMMA, NEW_TOKENS = 128, 4, 48
PROMPT = "def main(argv=None):\n    parser = argparse.ArgumentParser("
FIXED: dict[str, Any] = {"gamma": GAMMA, "seed": 0, "eos_token_id": ()}
"""Settings of every text. No token ends a text, so all are equally long."""
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "token": {"do_sample": True, "top_k": 0},
    "block": {"do_sample": True, "top_k": 0, "rule": "block"},
    "coupled": {"do_sample": True, "top_k": 0, "rule": "coupled"},
}


@pytest.mark.benchmark(group="embedded pair forwards")
def test_draft_step(measure: Measure, pair: Decoder) -> None:
    """The draft's forward over 1 token after 128."""
    _, draft = pair.models
    logits = measure(forward_case(draft, 1, DEPTH), rounds=50, iterations=10)
    assert logits.shape == (1, 1, draft.vocab_size)
    measure.tokens(1, "one proposed")


@pytest.mark.parametrize("tokens", [1, GAMMA + 1], ids="tokens {}".format)
@pytest.mark.benchmark(group="embedded pair forwards")
def test_verification(tokens: int, measure: Measure, pair: Decoder) -> None:
    """The target's forward over the one token of a plain step, or over a round's five: the last kept token and 4
    proposed."""
    logits = measure(forward_case(pair.target, tokens, DEPTH), rounds=50, iterations=4)
    assert logits.shape == (1, tokens, pair.target.vocab_size)
    measure.tokens(tokens, "one verified")


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.benchmark(group="embedded pair round")
def test_round(how: str, measure: Measure, pair: Decoder) -> None:
    """The second round of a text; in the first round the draft reads the prompt."""

    def begin() -> Iterator[Step]:
        steps = pair.stream(PROMPT, max_new_tokens=NEW_TOKENS, **FIXED, **SETTINGS[how])
        next(steps)
        return steps

    step = measure.prepared(begin, next, rounds=30)
    assert step.proposed == (GAMMA,)
    assert len(step.tokens[0]) == step.accepted[0] + 1
    measure.tokens(GAMMA + 1, "one verified")


@pytest.mark.parametrize("how", ["no draft", *SETTINGS])
@pytest.mark.benchmark(group="embedded pair text")
def test_text(how: str, measure: Measure, pair: Decoder) -> None:
    """A seeded text of 48 tokens, reading the prompt included. It is greedy if there is no draft."""
    decoder, settings = (pair, SETTINGS[how]) if how in SETTINGS else (pair.without_draft(), SETTINGS["greedy"])
    out = measure(lambda: decoder.generate(PROMPT, max_new_tokens=NEW_TOKENS, **FIXED, **settings), rounds=10)
    assert out.stats.emitted == len(out.tokens[0]) == NEW_TOKENS
    measure.tokens(NEW_TOKENS, "one that the text gains", out.stats.acceptance_rate if how in SETTINGS else None)
