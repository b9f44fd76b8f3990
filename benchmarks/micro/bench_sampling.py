"""The costs of turning logits into distributions and distributions into tokens, over the vocabularies of GPT-2 and
Gemma 3."""

from __future__ import annotations

import pytest
import torch
from conftest import Measure, spread_logits

from sybil.noise import Exponentials, Noise
from sybil.sampling import Sampling, draw, likeliest, probabilities, race
from sybil.transfer import upload

VOCAB, POSITION = 50_257, 128
LARGEST = 262_144  # Gemma 3's vocabulary
SAMPLINGS = {
    "temperature": Sampling(0.8),
    "top-k": Sampling(0.8, top_k=50),
    "top-p": Sampling(0.8, top_p=0.95),
    "min-p": Sampling(0.8, min_p=0.05),
    "all": Sampling(0.8, top_k=50, top_p=0.95, min_p=0.05),
}
by_rows = pytest.mark.parametrize("rows", [1, 5], ids="rows {}".format)  # a draft's step, and a verification
by_vocab = pytest.mark.parametrize("vocab", [VOCAB, LARGEST], ids="vocabulary {}".format)


@by_vocab
@by_rows
@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.benchmark(group="probabilities")
def test_probabilities(name: str, rows: int, vocab: int, measure: Measure, device: torch.device) -> None:
    """Turn rows of logits into the distributions that are sampled from."""
    logits = spread_logits(rows, vocab).to(device)
    probs = measure(lambda: probabilities(logits, SAMPLINGS[name]), rounds=30)
    torch.testing.assert_close(probs.sum(-1).cpu(), torch.ones(rows))
    measure.tokens(rows, "one whose distribution is made")


@by_vocab
@by_rows
@pytest.mark.benchmark(group="draws")
def test_draw(rows: int, vocab: int, measure: Measure, device: torch.device) -> None:
    """Draw a token of each distribution by inverting its cumulative sums."""
    probs = probabilities(spread_logits(rows, vocab).to(device), Sampling(0.8))
    uniforms = upload(Noise(0).uniforms(torch.arange(1), torch.tensor([POSITION]), rows, Noise.JUDGE)[0], device)
    tokens = measure(lambda: draw(probs, uniforms), rounds=30)
    assert probs.gather(-1, tokens[:, None]).min() > 0
    measure.tokens(rows, "one drawn")


@by_vocab
@by_rows
@pytest.mark.benchmark(group="draws")
def test_race(rows: int, vocab: int, measure: Measure, device: torch.device) -> None:
    """Draw a token of each distribution by a race, which makes only the noise that it needs."""
    probs = probabilities(spread_logits(rows, vocab).to(device), Sampling(0.8))
    positions = POSITION + torch.arange(rows)
    noise = Exponentials(Noise(0), torch.zeros_like(positions), positions, vocab).on(device)
    tokens = measure(lambda: race(probs, noise), rounds=30)
    assert probs.gather(-1, tokens[:, None]).min() > 0
    measure.tokens(rows, "one drawn")


@by_rows
@pytest.mark.benchmark(group="draws")
def test_exponentials(rows: int, measure: Measure, device: torch.device) -> None:
    """Make all exponentials of a race on the CPU and send them to the device, as for a GPU."""
    noise, row, positions = Noise(0), torch.arange(1), POSITION + torch.arange(rows)[None]
    made = measure(lambda: upload(noise.exponentials(row, positions, VOCAB), device), rounds=30)
    assert made.shape == (1, rows, VOCAB)
    measure.tokens(rows, "one that can be drawn")


@by_rows
@pytest.mark.benchmark(group="draws")
def test_likeliest(rows: int, measure: Measure, device: torch.device) -> None:
    """The greedy token of each row of logits."""
    logits = spread_logits(rows, VOCAB).to(device)
    tokens = measure(lambda: likeliest(logits), rounds=30, iterations=10)
    assert tokens.tolist() == logits.argmax(-1).tolist()
    measure.tokens(rows, "one chosen")
