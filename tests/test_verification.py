"""The token rule is exact: the shipped function, integrated over every proposal and all noise, gives the target.

The rule is piecewise constant in its noise, with a step at target(x) / draft(x) in the noise that accepts and
at the values of the residual's distribution function in the noise that draws. Evaluating it once in the middle
of every piece, weighted by the piece's length, is therefore its integral, to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sybil import verification
from sybil.errors import InvalidSetting
from sybil.sampling import draw
from sybil.verification import Proposed, Rule, Verdict

SMALL = 1e-12


def normalised(weights: list[float]) -> Tensor:
    row = torch.tensor(weights, dtype=torch.float64)
    return row / row.sum()


@st.composite
def distributions(draw_from: st.DrawFn, vocab: int) -> Tensor:
    """Zeros, ties, one-hots, and masses many magnitudes apart."""
    if draw_from(st.booleans()):
        return torch.eye(vocab, dtype=torch.float64)[draw_from(st.integers(0, vocab - 1))]
    weights = draw_from(
        st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, 0.3, 1e-3, 1e-9]), min_size=vocab, max_size=vocab)
    )
    return normalised(weights if any(weights) else [1.0] * vocab)


@st.composite
def problems(draw_from: st.DrawFn) -> tuple[Tensor, Tensor | None, int]:
    """(target (nodes, vocab), draft likewise or None, count): context-dependent distributions, one for every prefix
    of up to gamma proposed tokens, placed as node() says; count is how many of the gamma are really proposed."""
    vocab, gamma = draw_from(st.sampled_from([(2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (4, 1)]))
    target, draft = [], []
    for depth in range(gamma + 1):
        for _ in range(vocab**depth):
            target.append(draw_from(distributions(vocab)))
            kind = draw_from(st.sampled_from(["any", "equal", "near"]))
            row = draw_from(distributions(vocab)) if kind == "any" else target[-1].clone()
            if kind == "near":
                row = normalised([mass + 1e-10 for mass in row.tolist()])
            draft.append(row)
    deterministic = draw_from(st.booleans())
    return torch.stack(target), None if deterministic else torch.stack(draft), draw_from(st.integers(0, gamma))


def node(prefix: tuple[int, ...], vocab: int) -> int:
    """The place of a prefix's distribution in a problem's rows: by depth, then in counting order."""
    before = sum(vocab**depth for depth in range(len(prefix)))
    return before + sum(token * vocab**place for place, token in enumerate(reversed(prefix)))


def pieces(steps: list[float]) -> Iterator[tuple[float, float]]:
    """(middle, length) of each piece of [0, 1) between the steps."""
    edges = [0.0, *sorted(min(max(step, 0.0), 1.0) for step in steps), 1.0]
    for low, high in itertools.pairwise(edges):
        if high > low:
            yield (low + high) / 2, high - low


def emitted(rule: Rule, target: Tensor, draft: Tensor | None, gamma: int, count: int) -> Tensor:
    """The joint distribution of the first gamma + 1 tokens, (vocab,) * (gamma + 1): a round's tokens by the rule,
    and after them, where it kept fewer, the target's own."""
    vocab = target.shape[-1]
    found = torch.zeros((vocab,) * (gamma + 1), dtype=torch.float64)
    for tokens in itertools.product(range(vocab), repeat=gamma):
        nodes = [node(tokens[:depth], vocab) for depth in range(gamma + 1)]
        target_rows = target[nodes]
        if draft is None:  # a deterministic draft proposes one thing: any will do
            weight, draft_rows = float(tokens == (1,) + (0,) * (gamma - 1)), None
        else:
            draft_rows = draft[nodes[:-1]]
            weight = float(draft_rows[range(gamma), tokens].prod())
        if weight == 0:
            continue
        thresholds = [
            float(target_rows[i, token] / (1.0 if draft_rows is None else draft_rows[i, token]))
            for i, token in enumerate(tokens)
        ]
        proposed = Proposed(
            torch.tensor([tokens]),
            None if draft_rows is None else draft_rows[None],
            target_rows[None],
            torch.tensor([count]),
        )
        for noise in itertools.product(*(pieces([threshold]) for threshold in thresholds)):
            accept = torch.tensor([[middle for middle, _ in noise]], dtype=torch.float64)
            share = weight * float(torch.tensor([length for _, length in noise], dtype=torch.float64).prod())
            kept = int(rule(proposed, accept, torch.zeros(1)).accepted)
            before = target_rows[kept]
            after = before if kept == count or draft_rows is None else (before - draft_rows[kept]).clamp(min=0)
            if kept < count and draft_rows is None:
                after = before.index_fill(0, torch.tensor(tokens[kept]), 0.0)
            after = after if after.sum() > 0 else before
            for middle, length in pieces((after.cumsum(0) / after.sum()).tolist()):
                verdict = rule(proposed, accept, torch.tensor([middle], dtype=torch.float64))
                assert int(verdict.accepted) == kept
                add(found, (*tokens[:kept], int(verdict.next_token)), share * length, target)
    return found


def add(found: Tensor, prefix: tuple[int, ...], mass: float, target: Tensor) -> None:
    """Spread mass over the continuations of prefix by the target."""
    if len(prefix) == found.ndim:
        found[prefix] += mass
        return
    for token, probability in enumerate(target[node(prefix, target.shape[-1])].tolist()):
        if probability:
            add(found, (*prefix, token), mass * probability, target)


def wanted(target: Tensor, gamma: int) -> Tensor:
    found = torch.zeros((target.shape[-1],) * (gamma + 1), dtype=torch.float64)
    add(found, (), 1.0, target)
    return found


def depth_of(target: Tensor) -> int:
    vocab, nodes = target.shape[-1], len(target)
    return next(gamma for gamma in range(9) if sum(vocab**depth for depth in range(gamma + 1)) == nodes)


@given(problems())
def test_the_token_rule_gives_the_target_exactly(problem: tuple[Tensor, Tensor | None, int]) -> None:
    target, draft, count = problem
    gamma = depth_of(target)
    assert (emitted(verification.token, target, draft, gamma, count) - wanted(target, gamma)).abs().max() < SMALL


def from_the_target(proposed: Proposed, accept_noise: Tensor, next_noise: Tensor) -> Verdict:
    """A planted fault: the recovered token is drawn from the target, not from the residual."""
    verdict = verification.token(proposed, accept_noise, next_noise)
    rows = torch.arange(len(verdict.accepted))
    return Verdict(verdict.accepted, draw(proposed.target_probs[rows, verdict.accepted], next_noise))


def without_counts(proposed: Proposed, accept_noise: Tensor, next_noise: Tensor) -> Verdict:
    """A planted fault: padding judged as if it had been proposed, then cut."""
    full = Proposed(proposed.tokens, proposed.draft_probs, proposed.target_probs, torch.full_like(proposed.counts, 2))
    verdict = verification.token(full, accept_noise, next_noise)
    return Verdict(torch.minimum(verdict.accepted, proposed.counts), verdict.next_token)


@pytest.mark.parametrize(("fault", "count"), [(from_the_target, 2), (without_counts, 1)])
def test_a_planted_fault_is_seen(fault: Rule, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    target, draft = torch.rand(2, 13, 3, dtype=torch.float64, generator=generator).softmax(-1)
    assert (emitted(verification.token, target, draft, 2, count) - wanted(target, 2)).abs().max() < SMALL
    assert (emitted(fault, target, draft, 2, count) - wanted(target, 2)).abs().max() > 1e-3


def test_rows_are_judged_by_themselves() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(6, 4, 5, generator=generator).softmax(-1)
    draft = torch.rand(6, 3, 5, generator=generator).softmax(-1)
    tokens = torch.randint(5, (6, 3), generator=generator)
    noise, following = torch.rand(6, 3, generator=generator), torch.rand(6, generator=generator)
    counts = torch.tensor([0, 1, 2, 3, 3, 3])
    together = verification.token(Proposed(tokens, draft, target, counts), noise, following)
    for row in range(6):
        one = slice(row, row + 1)
        alone = verification.token(
            Proposed(tokens[one], draft[one], target[one], counts[one]), noise[one], following[one]
        )
        assert int(alone.accepted) == together.accepted[row] <= counts[row]
        assert int(alone.next_token) == together.next_token[row]


@given(st.integers(0, 2**32), st.integers(0, 4))
def test_greedy_is_the_token_rule_of_a_certain_target(seed: int, gamma: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 3, (6, gamma), generator=generator)
    chosen = torch.randint(0, 3, (6, gamma + 1), generator=generator)
    counts = torch.randint(0, gamma + 1, (6,), generator=generator)
    certain = torch.nn.functional.one_hot(chosen, 3).double()
    noise = torch.rand(6, gamma, generator=generator), torch.rand(6, generator=generator)
    wanted = verification.token(Proposed(tokens, None, certain, counts), *noise)
    for row, count in enumerate(counts.tolist()):
        found = verification.greedy(tokens[row, :count].tolist(), chosen[row].tolist())
        assert found == (int(wanted.accepted[row]), int(wanted.next_token[row]))


def test_a_token_of_no_mass_is_never_kept_even_by_zero_noise() -> None:
    target = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    proposed = Proposed(torch.tensor([[0]]), torch.tensor([[[1.0, 0.0]]]), target, torch.tensor([1]))
    verdict = verification.token(proposed, torch.zeros(1, 1), torch.zeros(1))
    assert (int(verdict.accepted), int(verdict.next_token)) == (0, 1)


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(InvalidSetting, match=r"'typical'.*token"):
        verification.rule_named("typical")
