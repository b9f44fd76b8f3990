"""Hybrid: which rows look up, what the other is told, one proposal of two, and the target's text under every rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counting import ALPHA, DECODED, DRAFTERS, Case, p_values
from tiny import gpt2, in_sybil, perturbed, prompts
from torch import Tensor

from sybil import Decoder
from sybil.drafting import Context, Drafter, DraftHybrid, DraftLookup, DraftModel, Generating, Outcome, Proposal, hybrid
from sybil.drafting.hybrid import mixed
from sybil.noise import Noise
from sybil.sampling import Sampling

TURNING = [[1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5], [7, 8, 9, 10], [5, 4, 5, 4, 5, 4, 5]]
"""The first row and the last repeat themselves, the second doesn't."""
MODEL = gpt2(context=128)
TARGET, DRAFT = in_sybil(MODEL), in_sybil(perturbed(MODEL, 0.05))
EAGER = DraftHybrid(DraftLookup(least=0.0), DraftModel(DRAFT))


def asked_about(rows: list[list[int]], sampling: Sampling, factory: DraftHybrid = EAGER) -> tuple[Any, Context]:
    tokens = torch.zeros(len(rows), 40, dtype=torch.int64)
    for row, text in enumerate(rows):
        tokens[row, : len(text)] = torch.tensor(text)
    generating = Generating(len(rows), 40, 31, sampling, TARGET.new_cache(len(rows), 40))
    return factory(generating), Context(tokens, torch.tensor([len(row) for row in rows]), Noise(0))


def test_each_row_has_its_own_source_and_the_others_are_numbered_after_lookup_s() -> None:
    drafter, context = asked_about(TURNING, Sampling())
    assert list(drafter.sources(context)) == [0, 1, 0]
    nested = DraftHybrid(DraftLookup(), EAGER)
    assert nested.step_bytes == (0, 0, DRAFT.weight_bytes)
    drafter, context = asked_about(TURNING[1:2], Sampling(), nested)
    assert list(drafter.sources(context)) == [2]
    assert EAGER.models == (DRAFT,)
    assert EAGER.over(TARGET).models == (TARGET,)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_proposal_of_both_kinds_has_each_row_s_own_tokens_and_what_they_were_drawn_from(temperature: float) -> None:
    drafter, context = asked_about(TURNING, Sampling(temperature))
    alone = DraftModel(DRAFT)(Generating(3, 40, 31, Sampling(temperature), TARGET.new_cache(3, 40)))
    wanted, found = alone.propose(context, 3), drafter.propose(context, 3)
    assert found.tokens[0].tolist() == [6, 1, 2]
    assert found.tokens[2].tolist() == [4, 5, 4]
    assert found.tokens[1].tolist() == wanted.tokens[1].tolist()
    assert found.counts == [3, 3, 3]
    if not temperature:
        assert found.probs is None
        return
    assert found.probs is not None
    assert found.probs[1].equal(wanted.probs[1])
    for row in (0, 2):
        assert found.probs[row].equal(torch.nn.functional.one_hot(found.tokens[row], 31).to(found.probs))


def test_where_all_rows_are_looked_up_the_model_rests_and_catches_up_by_one_prefill() -> None:
    """Rounds of lookup leave its cache behind; then it reads all that it lacks, and says what it says of the text."""
    read: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(DRAFT, name)

        def forward(self, tokens: Tensor, cache: Any) -> Tensor:
            read.append(tokens.shape[1])
            return DRAFT.forward(tokens, cache)

        def prefill(self, tokens: Tensor, cache: Any) -> None:
            read.append(tokens.shape[1])
            DRAFT.prefill(tokens, cache)

    factory = DraftHybrid(DraftLookup(), DraftModel(Watched()))
    drafter, context = asked_about([[7, 8, 9, 10]], Sampling(), factory)
    drafter.propose(context, 3)
    read.clear()
    drafter.observe(Outcome([1], context.lengths + 2))
    text = [7, 8, 9, 10, *[1, 2, 3, 4, 5] * 5]
    for length in (20, 22, 25):
        context.tokens[0, : len(text)] = torch.tensor(text)
        context.lengths = torch.tensor([length])
        assert drafter.propose(context, 2).counts == [2]
        drafter.observe(Outcome([1], context.lengths + 2))
    assert read == []
    context.tokens[0, 28] = 20
    context.lengths = torch.tensor([29])
    found = drafter.propose(context, 2)
    assert read == [23, 1, 1]  # of 28 tokens it held 5
    fresh = DraftModel(DRAFT)(Generating(1, 40, 31, Sampling(), TARGET.new_cache(1, 40)))
    assert found.tokens.tolist() == fresh.propose(context, 2).tokens.tolist()


class Recording(Drafter):
    """Proposes nothing, and remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[list[int], list[int]]] = []

    def propose(self, context: Context, gamma: int) -> Proposal:
        return Proposal.nothing(len(context.tokens))

    def observe(self, outcome: Outcome) -> None:
        self.told.append((outcome.accepted, outcome.lengths.tolist()))


def test_the_other_is_told_that_nothing_of_its_own_was_kept_where_lookup_proposed() -> None:
    drafter, context = asked_about(TURNING, Sampling())
    drafter.other = other = Recording()
    drafter.propose(context, 3)
    drafter.observe(Outcome([3, 2, 1], torch.tensor([15, 7, 9])))
    drafter.observe(Outcome([0, 0, 0], torch.tensor([16, 8, 10])))  # a round in which nobody was asked
    assert other.told == [([0, 2, 0], [12, 7, 8]), ([0, 0, 0], [16, 8, 10])]


def test_one_proposal_of_two() -> None:
    looked_up = Proposal(torch.tensor([[1, 2, 3], [0, 0, 0]]), None, [3, 0])
    probs = torch.full((2, 2, 4), 0.25)
    other = Proposal(torch.tensor([[3, 3], [2, 1]]), probs, [0, 1])
    both = mixed(looked_up, other, [True, False])
    assert both.tokens.tolist() == [[1, 2, 3], [2, 1, 0]]
    assert both.counts == [3, 1]
    assert both.probs is not None
    assert both.probs.sum(-1).eq(1).all()
    assert both.probs[1, 0].tolist() == [0.25] * 4
    assert mixed(looked_up, Proposal.nothing(2), [True, False]).probs is None


@pytest.mark.parametrize("how", [{}, {"do_sample": True, "seed": 1, "rule": "coupled", "top_k": 0}], ids=str)
def test_the_text_is_plain_s(how: dict[str, Any]) -> None:
    asked: dict[str, Any] = dict(max_new_tokens=60, eos_token_id=[], **how)
    inputs = [torch.tensor(row) for row in TURNING] + prompts([20])
    plain = Decoder(TARGET).generate(inputs, **asked).tokens
    for other in (DraftModel(DRAFT), DraftModel(DRAFT, helper=DraftLookup(least=0.0))):
        for gamma in (1, 4):
            out = Decoder(TARGET, DraftHybrid(DraftLookup(), other)).generate(inputs, gamma=gamma, **asked)
            assert [row.tolist() for row in out.tokens] == [row.tolist() for row in plain]
            assert out.stats.accepted > 0


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_row_is_the_same_alone_and_beside_others(rule: str) -> None:
    """Whether probs are handed on or none, as where the rows beside it are the model's."""
    inputs = [torch.tensor(row) for row in TURNING]
    for seed in range(4):
        asked: dict[str, Any] = dict(max_new_tokens=30, eos_token_id=[], do_sample=True, seed=seed, rule=rule, gamma=3)
        decoder = Decoder(TARGET, EAGER)
        together = decoder.generate(inputs, **asked)
        assert together.tokens[0].equal(decoder.generate(inputs[:1], **asked).tokens[0])
        assert together.tokens[0].equal(decoder.generate(inputs, **asked).tokens[0])


@pytest.mark.parametrize("case", [Case(), Case(rule="block", batch="mixed")], ids=str)
def test_the_loop_samples_the_target_s_distribution(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The null hypothesis and its power: test_distribution.py. Half of the rows look up, or nearly."""
    monkeypatch.setattr(hybrid, "HOLDING", 0.2)
    monkeypatch.setitem(DRAFTERS, "model", DraftHybrid(DraftLookup(least=0.0), DRAFTERS["model"]))
    sources: set[int] = set()
    ask = hybrid.HybridDrafter.propose

    def counted(self: Any, context: Context, gamma: int) -> Proposal:
        sources.update(self.sources(context))
        return ask(self, context, gamma)

    monkeypatch.setattr(hybrid.HybridDrafter, "propose", counted)
    for name, p_value in p_values(case, sequences=6_000).items():
        assert p_value > ALPHA, (name, p_value)
    assert sources == {0, 1}
    assert DECODED.vocab_size == 4
