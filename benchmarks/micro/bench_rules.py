"""The cost of a rule: judging a proposal of 4 tokens, over the vocabularies of GPT-2 and Gemma 3."""

from __future__ import annotations

import pytest
import torch
from conftest import Measure, spread_logits

from sybil.drafting import Context
from sybil.noise import Noise
from sybil.sampling import Sampling, draw, probabilities, race
from sybil.verification import RULES, Proposed

pytestmark = pytest.mark.benchmark(group="rules")
VOCAB, GAMMA, LENGTH = 50_257, 4, 128
LARGEST = 262_144  # Gemma 3's vocabulary


@pytest.mark.parametrize("vocab", [VOCAB, LARGEST], ids="vocabulary {}".format)
@pytest.mark.parametrize("batch", [1, 8], ids="batch {}".format)
@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, batch: int, vocab: int, measure: Measure, device: torch.device) -> None:
    """One verdict on a batch. The draft's distributions are near the target's, as a good draft's are."""
    logits = spread_logits(batch, GAMMA + 1, vocab)
    near = logits[:, :GAMMA] + 0.2 * spread_logits(batch, GAMMA, vocab, seed=1)
    target, draft = (probabilities(each.to(device), Sampling(temperature=1.0)) for each in (logits, near))
    context = Context(torch.zeros(batch, LENGTH, dtype=torch.int64), torch.full((batch,), LENGTH), Noise(0))
    if name == "coupled":
        noise = context.race_noise(GAMMA + 1, vocab).on(device)
        tokens = race(draft, noise[:, :GAMMA])
    else:
        noise = context.uniforms(GAMMA + 1, Noise.JUDGE).to(device)
        tokens = draw(draft, context.uniforms(GAMMA, Noise.PROPOSE))
    proposed = Proposed(tokens, draft, target, torch.full((batch,), GAMMA, device=device))

    verdict = measure(lambda: RULES[name](proposed, noise), rounds=30)
    assert 0 <= int(verdict.accepted.min()) <= int(verdict.accepted.max()) <= GAMMA
    assert int(verdict.next_token.min()) >= 0
    measure.tokens(batch * GAMMA, "one judged")
