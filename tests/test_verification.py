"""The rules are exact: integrated over every proposal and all noise, each gives the target (proof.py says how)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proof import BELOW_ONE, Problem, error, orders
from torch import Tensor

from sybil import verification
from sybil.errors import InvalidSetting
from sybil.sampling import Sampling, probabilities, race
from sybil.verification import RULES, Proposed

SMALL = 1e-12
SIZES = [(2, 1), (2, 2), (2, 3), (2, 5), (3, 1), (3, 2), (4, 1)]


def normalised(weights: list[float]) -> Tensor:
    row = torch.tensor(weights, dtype=torch.float64)
    return row / row.sum()


@st.composite
def distributions(draw_from: st.DrawFn, vocab: int) -> Tensor:
    """Zeros, ties, one-hots, masses many magnitudes apart, and what filters leave of logits."""
    kind = draw_from(st.sampled_from(["weights", "one-hot", "filtered"]))
    if kind == "one-hot":
        return torch.eye(vocab, dtype=torch.float64)[draw_from(st.integers(0, vocab - 1))]
    if kind == "filtered":
        logits = draw_from(st.lists(st.sampled_from([0.0, 0.5, -1.0, 2.0]), min_size=vocab, max_size=vocab))
        filters = draw_from(
            st.sampled_from([Sampling(0.7, top_k=2), Sampling(1.0, top_p=0.7), Sampling(1.3, min_p=0.3), Sampling(2.0)])
        )
        return probabilities(torch.tensor(logits, dtype=torch.float64), filters)
    weights = draw_from(
        st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, 0.3, 1e-3, 1e-9]), min_size=vocab, max_size=vocab)
    )
    return normalised(weights if any(weights) else [1.0] * vocab)


@st.composite
def problems(draw_from: st.DrawFn) -> Problem:
    """A distribution of either model for every prefix, equal, nearly equal, disjoint or anything; a window that ends
    the proposal at any set of prefixes."""
    vocab, gamma = draw_from(st.sampled_from(SIZES))
    target, draft = [], []
    for depth in range(gamma + 1):
        for _ in range(vocab**depth):
            kind = draw_from(st.sampled_from(["any", "any", "equal", "near", "disjoint"]))
            row = draw_from(distributions(vocab))
            other = draw_from(distributions(vocab)) if kind == "any" else row.clone()
            if kind == "near":
                other = normalised([mass + 1e-10 for mass in row.tolist()])
            if kind == "disjoint" and bool((row == 0).any()):
                other = normalised((row == 0).double().tolist())
            target.append(row)
            draft.append(other)
    stops = draw_from(st.frozensets(st.integers(0, len(target) - 1), max_size=3))
    deterministic = draw_from(st.booleans())
    return Problem(gamma, torch.stack(target), None if deterministic else torch.stack(draft), stops)


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
@settings(max_examples=60)
@given(problem=problems())
def test_a_rule_gives_the_target_exactly(rule: str, problem: Problem) -> None:
    assert error(RULES[rule], problem, coupled=rule == "coupled") < SMALL


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
@pytest.mark.parametrize(("vocab", "gamma"), [(2, 4), (2, 5), (3, 3)])
def test_long_proposals_by_every_rule(rule: str, vocab: int, gamma: int) -> None:
    generator = torch.Generator().manual_seed(gamma)
    nodes = sum(vocab**depth for depth in range(gamma + 1))
    target, draft = torch.randn(2, nodes, vocab, dtype=torch.float64, generator=generator).mul(1.5).softmax(-1)
    for stops in (frozenset[int](), frozenset({2, 4, 5})):
        assert error(RULES[rule], Problem(gamma, target, draft, stops), coupled=rule == "coupled") < SMALL


@given(row=distributions(4))
def test_a_race_draws_by_the_probabilities(row: Tensor) -> None:
    found = torch.zeros_like(row)
    for exponentials, probability in orders(row):
        found[race(row, exponentials)] += probability
    assert (found - row).abs().max() < SMALL


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_rows_are_judged_by_themselves(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(6, 4, 5, generator=generator).softmax(-1)
    draft = torch.rand(6, 3, 5, generator=generator).softmax(-1)
    tokens = torch.randint(5, (6, 3), generator=generator)
    noise = torch.rand((6, 4, 5) if rule == "coupled" else (6, 4), generator=generator)
    counts = torch.tensor([0, 1, 2, 3, 3, 3])
    together = RULES[rule](Proposed(tokens, draft, target, counts), noise)
    for row in range(6):
        one = slice(row, row + 1)
        alone = RULES[rule](Proposed(tokens[one], draft[one], target[one], counts[one]), noise[one])
        assert int(alone.accepted) == together.accepted[row] <= counts[row]
        assert int(alone.next_token) == together.next_token[row]


def test_block_keeps_more_than_token_and_as_much_where_it_must() -> None:
    """2,000 rounds of 64 random problems, the same proposals and noise for both; with one token they are the same."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(64, 5, 8, generator=generator).mul(1.5).softmax(-1)
    draft = torch.randn(64, 4, 8, generator=generator).softmax(-1)
    kept = dict.fromkeys(("token", "block"), 0)
    for _ in range(2_000):
        tokens = torch.multinomial(draft.flatten(0, 1), 1, generator=generator).reshape(64, 4)
        noise = torch.rand(64, 5, generator=generator)
        for name in kept:
            kept[name] += int(RULES[name](Proposed(tokens, draft, target, torch.full((64,), 4)), noise).accepted.sum())
    assert kept["block"] > 1.01 * kept["token"]
    single = Proposed(tokens[:, :1], draft[:, :1], target[:, :2], torch.ones(64, dtype=torch.int64))
    block, token = (RULES[name](single, noise[:, :2]) for name in ("block", "token"))
    assert torch.equal(block.accepted, token.accepted)
    assert torch.equal(block.next_token, token.next_token)


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
@given(st.integers(0, 2**32), st.integers(0, 4))
def test_greedy_is_every_rule_of_a_certain_target(rule: str, seed: int, gamma: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 3, (6, gamma), generator=generator)
    chosen = torch.randint(0, 3, (6, gamma + 1), generator=generator)
    counts = torch.randint(0, gamma + 1, (6,), generator=generator)
    certain = torch.nn.functional.one_hot(chosen, 3).double()
    noise = torch.rand((6, gamma + 1, 3) if rule == "coupled" else (6, gamma + 1), generator=generator)
    wanted = RULES[rule](Proposed(tokens, None, certain, counts), noise)
    for row, count in enumerate(counts.tolist()):
        found = verification.greedy(tokens[row, :count].tolist(), chosen[row].tolist())
        assert found == (int(wanted.accepted[row]), int(wanted.next_token[row]))


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("uniform", [0.0, BELOW_ONE])
def test_a_token_of_no_mass_is_never_kept_by_any_noise(rule: str, uniform: float) -> None:
    target = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    proposed = Proposed(torch.tensor([[0]]), torch.tensor([[[1.0, 0.0]]]), target, torch.tensor([1]))
    verdict = RULES[rule](proposed, torch.full((1, 2), uniform, dtype=torch.float64))
    assert (int(verdict.accepted), int(verdict.next_token)) == (0, 1)


@pytest.mark.parametrize("rule", ["token", "block"])
def test_rounding_between_equal_models_costs_nothing(rule: str) -> None:
    """In float32, a draft that is the target but for its last bits: all is kept, but for about that share."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2_000, 5, 50, generator=generator).softmax(-1)
    draft = target[:, :-1] * (1 + 1e-7 * torch.randn(2_000, 4, 50, generator=generator))
    tokens = torch.multinomial(draft.flatten(0, 1), 1, generator=generator).reshape(-1, 4)
    verdict = RULES[rule](
        Proposed(tokens, draft, target, torch.full((2_000,), 4)), torch.rand(2_000, 5, generator=generator)
    )
    assert int((verdict.accepted < 4).sum()) <= 1


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_rejection_between_equal_distributions_draws_from_the_target(rule: str) -> None:
    """In float32 the largest uniforms round to 1, which nothing exceeds; the residual is then 0 everywhere."""
    probs = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    proposed = Proposed(torch.zeros(4, 2, dtype=torch.int64), probs[:, :2], probs, torch.full((4,), 2))
    verdict = RULES[rule](proposed, torch.full((4, 3), BELOW_ONE, dtype=torch.float64))
    assert bool((verdict.accepted < 2).all())
    assert bool((verdict.next_token >= 0).all())


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_a_draft_without_numbers_is_rejected_and_a_target_without_them_draws_nothing(rule: str) -> None:
    target, broken = torch.full((1, 3, 2), 0.5), torch.full((1, 2, 2), float("nan"))
    noise = torch.full((1, 3, 2) if rule == "coupled" else (1, 3), 0.5)
    tokens, counts = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([2])
    if rule != "coupled":  # which never looks at the draft's
        assert int(RULES[rule](Proposed(tokens, broken, target, counts), noise).accepted) == 0
    verdict = RULES[rule](Proposed(tokens, target[:, :2], target * float("nan"), counts), noise)
    assert (int(verdict.accepted), int(verdict.next_token)) == (0, -1)


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(InvalidSetting, match=r"'typical'.*block, coupled, token"):
        verification.rule_named("typical")
