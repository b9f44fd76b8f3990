"""The costs of ending a round: rolling the draft's cache back, and feeding the draft what the target added."""

from __future__ import annotations

import pytest
import torch
from conftest import Measure

from sybil.decoding import Decoder
from sybil.drafting import Generating, ModelDrafter, Outcome
from sybil.models import feed
from sybil.sampling import Sampling

pytestmark = pytest.mark.benchmark(group="cache commit")
DEPTH, GAMMA = 128, 4
ACCEPTED = {
    "none of 4": [0],
    "all of 4": [4],  # the draft was never fed the last proposed token, so it is fed two tokens
    "batch 4 alike": [2, 2, 2, 2],
    "batch 4 unequal": [0, 1, 2, 4],
}


def _drafter(pair: Decoder, batch: int) -> tuple[ModelDrafter, torch.Tensor]:
    """A drafter that has proposed once after DEPTH tokens in each row, and the texts (batch, capacity)."""
    (_, model), capacity = pair.models, DEPTH + GAMMA + 1
    cache = pair.target.new_cache(batch, capacity)
    drafter = ModelDrafter(model, Generating(batch, capacity, model.vocab_size, Sampling(), cache))
    texts = torch.arange(capacity).repeat(batch, 1) % model.vocab_size
    model.prefill(texts[:, : DEPTH + GAMMA - 1], drafter.cache)
    return drafter, texts


@pytest.mark.parametrize("accepted", ACCEPTED.values(), ids=ACCEPTED)
def test_roll_back(accepted: list[int], measure: Measure, pair: Decoder) -> None:
    """Set the lengths of both models' caches. What lies beyond a length needs no clearing."""
    drafter, _ = _drafter(pair, len(accepted))
    target = pair.target.new_cache(len(accepted), DEPTH + GAMMA + 1)
    drafted, committed = drafter.cache.lengths, [DEPTH + kept + 1 for kept in accepted]

    def commit() -> None:
        drafter.cache.lengths = drafted
        lengths = torch.tensor(committed)
        target.lengths = lengths - 1
        drafter.observe(Outcome(accepted, lengths))

    measure(commit, rounds=30, iterations=100)
    assert drafter.cache.lengths.tolist() == [DEPTH + min(kept, GAMMA - 1) for kept in accepted]
    measure.tokens(sum(accepted) + len(accepted), "one committed")


@pytest.mark.parametrize("accepted", ACCEPTED.values(), ids=ACCEPTED)
def test_feed(accepted: list[int], measure: Measure, pair: Decoder) -> None:
    """Roll back, then run the draft's forward over the tokens that it lacks, with which its next proposal begins."""
    drafter, texts = _drafter(pair, len(accepted))
    drafted, lengths = drafter.cache.lengths, torch.tensor([DEPTH + kept + 1 for kept in accepted])

    def commit() -> torch.Tensor:
        drafter.cache.lengths = drafted
        drafter.observe(Outcome(accepted, lengths))
        return feed(drafter.model, drafter.cache, texts, lengths)

    logits = measure(commit, rounds=30, iterations=5)
    assert logits.shape == (len(accepted), drafter.model.vocab_size)
    assert drafter.cache.lengths.tolist() == lengths.tolist()
    measure.tokens(sum(accepted) + len(accepted), "one committed")
