"""The real loop's output, counted, against the target's joint distribution, enumerated exactly.

Null hypothesis of each test: the tokens that generate() samples have the joint distribution that the target's
own probabilities give, from running it over every sequence. Pearson's chi-square on counts (cells pooled to at
least 5 expected), sequences independent, fixed seeds. Each of the tests alarms falsely with probability 1e-8;
there are under 20, so the file does with less than 2e-7. With 30,000 sequences and 63 degrees of freedom a test
sees, with power 0.99, a relative error of 6.9 % (root mean square over the cells, noncentrality 141).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import foreign, gpt2, in_sybil, joint, llama, perturbed
from torch import Tensor

from sybil import Decoder, verification
from sybil.drafting import Context, DraftModel, ModelDrafter, Proposal
from sybil.sampling import Sampling, draw, probabilities
from sybil.verification import Proposed, Verdict

VOCAB, SEQUENCES, ALPHA = 4, 30_000, 1e-8
PROMPT = torch.tensor([1, 3, 2])
TARGET = gpt2(seed=5, vocab=VOCAB, layers=2, width=8)
DRAFT = in_sybil(perturbed(TARGET, 0.12))


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Pearson's chi-square on counts, the rarest cells pooled."""
    order = expected.flatten().argsort()
    found, due = counts.flatten()[order].double().numpy(), expected.flatten()[order].double().numpy()
    pooled = int(np.searchsorted(due.cumsum(), 5.0)) + 1
    found = np.concatenate([[found[:pooled].sum()], found[pooled:]])
    due = np.concatenate([[due[:pooled].sum()], due[pooled:]])
    return float(stats.chisquare(found, due).pvalue)


def sample(decoder: Decoder, count: int, seed: int = 0, **settings: object) -> Tensor:
    """(SEQUENCES, count) tokens; a row's noise is keyed by its place in a batch, so every batch has its own seed."""
    rows = 3_000
    parts = []
    for batch in range(SEQUENCES // rows):
        out = decoder.generate(
            [PROMPT],
            num_return_sequences=rows,
            max_new_tokens=count,
            do_sample=True,
            eos_token_id=[],
            seed=seed + batch,
            **{"top_k": 0, **settings},
        )
        parts.append(torch.stack(out.tokens))
    return torch.cat(parts)


def check(tokens: Tensor, expected: Tensor, first: int) -> float:
    """The p-value of three tokens from place `first` on, jointly."""
    places = tuple(place for place in range(expected.ndim) if not first <= place < first + 3)
    marginal = expected.sum(places) if places else expected
    cells = tokens[:, first] * VOCAB**2 + tokens[:, first + 1] * VOCAB + tokens[:, first + 2]
    return p_value(torch.bincount(cells, minlength=VOCAB**3), marginal * len(tokens))


@pytest.mark.parametrize("gamma", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 2])
def test_three_tokens_jointly(gamma: int, first: int) -> None:
    """At first 0 a block's own tokens; at 2 those that stand astride rounds, after rollbacks and full acceptances."""
    tokens = sample(Decoder(in_sybil(TARGET), DraftModel(DRAFT)), first + 3, seed=100 * gamma, gamma=gamma)
    assert check(tokens, joint(TARGET, PROMPT, first + 3), first) > ALPHA


def test_autoregressive_sampling() -> None:
    assert check(sample(Decoder(in_sybil(TARGET)), 4, seed=900), joint(TARGET, PROMPT, 4), 1) > ALPHA


def test_other_models_behind_the_loop() -> None:
    """transformers' forward on both sides, its cache full of holes."""
    model = llama(seed=2, vocab=VOCAB, layers=1, width=8)
    decoder = Decoder(foreign(model), DraftModel(foreign(llama(seed=3, vocab=VOCAB, layers=1, width=8))))
    assert check(sample(decoder, 4, seed=1000, gamma=2), joint(model, PROMPT, 4), 1) > ALPHA


def test_temperature_and_filters() -> None:
    settings = dict(temperature=0.7, top_p=0.9)
    expected = torch.zeros((VOCAB,) * 3, dtype=torch.float64)
    steps = torch.cartesian_prod(*[torch.arange(VOCAB)] * 3)
    with torch.no_grad():
        logits = TARGET(input_ids=torch.cat([PROMPT.expand(len(steps), -1), steps], 1)).logits[:, len(PROMPT) - 1 : -1]
    probs = probabilities(logits, Sampling(0.7, 0, 0.9)).gather(-1, steps[..., None]).squeeze(-1).prod(-1)
    expected[tuple(steps.T)] = probs
    tokens = sample(Decoder(in_sybil(TARGET), DraftModel(DRAFT)), 3, seed=1100, gamma=2, **settings)
    assert check(tokens, expected, 0) > ALPHA


def test_the_tokens_after_a_stop_token_are_those_of_plain_decoding() -> None:
    """Conditional on where a row stood: the tokens before the end token, counted by length and content."""
    expected = joint(TARGET, PROMPT, 3)
    eos = 2
    counts: dict[tuple[int, ...], int] = {}
    due: dict[tuple[int, ...], float] = {}

    def cut(sequence: tuple[int, ...]) -> tuple[int, ...]:
        return sequence[: sequence.index(eos) + 1] if eos in sequence else sequence

    for sequence in torch.cartesian_prod(*[torch.arange(VOCAB)] * 3).tolist():
        key = cut(tuple(sequence))
        due[key] = due.get(key, 0.0) + float(expected[tuple(sequence)]) * SEQUENCES
    decoder = Decoder(in_sybil(TARGET), DraftModel(DRAFT))
    for batch in range(SEQUENCES // 3_000):
        out = decoder.generate(
            [PROMPT],
            num_return_sequences=3_000,
            max_new_tokens=3,
            do_sample=True,
            top_k=0,
            eos_token_id=eos,
            seed=1200 + batch,
        )
        for row in out.tokens:
            key = tuple(row.tolist())
            counts[key] = counts.get(key, 0) + 1
    assert counts.keys() <= due.keys()
    keys = list(due)
    assert p_value(torch.tensor([counts.get(k, 0) for k in keys]), torch.tensor([due[k] for k in keys])) > ALPHA


class ArgmaxDrafter(ModelDrafter):
    """A planted fault: proposes the argmax, and claims to have drawn it."""

    def propose(self, context: Context, gamma: int) -> Proposal:
        proposal = super().propose(context, gamma)
        if proposal.probs is None:
            return proposal
        return replace(proposal, tokens=proposal.probs.argmax(-1))


def recovered_from_the_target(proposed: Proposed, accept_noise: Tensor, next_noise: Tensor) -> Verdict:
    verdict = verification.token(proposed, accept_noise, next_noise)
    rows = torch.arange(len(verdict.accepted))
    return Verdict(verdict.accepted, draw(proposed.target_probs[rows, verdict.accepted], next_noise))


def bonus_off_by_one(proposed: Proposed, accept_noise: Tensor, next_noise: Tensor) -> Verdict:
    verdict = verification.token(proposed, accept_noise, next_noise)
    full = verdict.accepted == proposed.counts
    wrong = draw(proposed.target_probs[torch.arange(len(full)), (verdict.accepted - 1).clamp(min=0)], next_noise)
    return Verdict(verdict.accepted, torch.where(full, wrong, verdict.next_token))


def one_uniform_for_all(proposed: Proposed, accept_noise: Tensor, next_noise: Tensor) -> Verdict:
    return verification.token(proposed, accept_noise[:, :1].expand_as(accept_noise), next_noise)


@pytest.mark.parametrize("fault", [recovered_from_the_target, bonus_off_by_one, one_uniform_for_all])
def test_a_planted_rule_is_seen(fault: verification.Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verification.RULES, "token", fault)
    tokens = sample(Decoder(in_sybil(TARGET), DraftModel(DRAFT)), 5, seed=1300, gamma=2)
    assert min(check(tokens, joint(TARGET, PROMPT, 5), first) for first in (0, 2)) < ALPHA


def test_a_planted_drafter_is_seen() -> None:
    decoder = Decoder(
        in_sybil(TARGET),
        lambda *arguments: ArgmaxDrafter(DRAFT, *arguments),
    )
    assert check(sample(decoder, 3, seed=1400, gamma=2), joint(TARGET, PROMPT, 3), 0) < ALPHA
