"""What each drafter hands over, judged by the token and the block rule, is the target's distribution, exactly.

proof.py integrates a rule over distributions that are made up. Here they are those of a drafter and a target at work:
each path that a proposal may take is forced upon the drafter, in a batch of all of them, and what it hands over there
is what the rule is given. What the target says afterwards, in the cache in which some drafters have written, is held to
transformers' forward without one.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from counting import DECODED, DRAFTERS, PROMPTS, VOCAB, conditionals
from proof import Problem, error
from torch import Tensor

from sybil import verification
from sybil.drafting import Context, Generating, ModelDrafter
from sybil.models import prefill
from sybil.noise import Noise
from sybil.sampling import Sampling, probabilities

GAMMA = 2
REPEATING = (1, 2, 1, 2, 1, 2, 1)
"""A prompt whose continuation is looked up."""
DRAWING = (
    ("self", PROMPTS[0]),
    ("skip", REPEATING),
    ("hybrid", PROMPTS[1]),
    ("hybrid", REPEATING),
    ("cascade", PROMPTS[0]),
    ("cascade", REPEATING),
)


def forced(path: Tensor) -> object:
    """In place of ModelDrafter._draws: tokens (rows, gamma) are drawn, whatever their probabilities."""
    return lambda *_: lambda probs, index: path[torch.arange(len(path)), index]


def handed_over(drafter: str, prompt: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Proposed tokens (rows, gamma), a row for each path, their probs, and the target's in the same round."""
    paths = torch.tensor(list(itertools.product(range(VOCAB), repeat=GAMMA)))
    rows, capacity = len(paths), len(prompt) + GAMMA + 1
    tokens = torch.zeros(rows, capacity, dtype=torch.int64)
    tokens[:, : len(prompt)] = torch.tensor(prompt)
    lengths, cache = torch.full((rows,), len(prompt)), DECODED.new_cache(rows, capacity)
    prefill(DECODED, cache, tokens, lengths - 1)
    sampling = Sampling(1.0)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(ModelDrafter, "_draws", forced(paths))
        made = DRAFTERS[drafter](Generating(rows, capacity, VOCAB, sampling, cache))
        proposal = made.propose(Context(tokens, lengths, Noise(0)), GAMMA)
        assert proposal.counts == [GAMMA] * rows
        assert cache.lengths.equal(lengths - 1)
        logits = DECODED.forward(torch.cat([tokens[:, len(prompt) - 1 : len(prompt)], proposal.tokens], 1), cache)
    probs = proposal.probs
    if probs is None:
        probs = torch.nn.functional.one_hot(proposal.tokens, VOCAB).double()
    return proposal.tokens, probs, probabilities(logits, sampling)


@pytest.mark.parametrize(("drafter", "prompt"), DRAWING, ids=str)
def test_what_is_handed_over_makes_the_rules_exact(drafter: str, prompt: tuple[int, ...]) -> None:
    """To 1e-12, and the target's own to 1e-9: rounding of sums in float64. The coupled rule doesn't look at what is
    handed over: test_seeds.py holds it to plain sampling."""
    tokens, draft_probs, target_probs = handed_over(drafter, prompt)
    due = conditionals(prompt, "none")
    nodes = [prefix for depth in range(GAMMA + 1) for prefix in itertools.product(range(VOCAB), repeat=depth)]
    target = torch.stack([torch.tensor(due[prefix]) for prefix in nodes])
    target /= target.sum(-1, keepdim=True)
    draft = torch.full_like(target, 1 / VOCAB)  # where no proposal comes
    problem = Problem(GAMMA, target, draft)
    for row, path in enumerate(tokens.tolist()):
        for depth in range(GAMMA + 1):
            node = problem.node(tuple(path[:depth]))
            assert (target_probs[row, depth] - target[node]).abs().max() < 1e-9
            if depth < GAMMA:
                draft[node] = draft_probs[row, depth]
    assert (draft[0].max() == 1) == (drafter == "hybrid" and prompt is REPEATING)
    for rule in (verification.token, verification.block):
        assert error(rule, problem) < 1e-12, rule.__name__
