"""A cascade: the draft's proposal is the same, bit for bit, with a helper and without, whatever the helper offers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SHAPES, compiled, random_weights
from tiny import gpt2, in_sybil, perturbed, prompts
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor

from sybil import Decoder
from sybil.drafting import (
    Context,
    Drafter,
    DrafterFactory,
    DraftLookup,
    DraftModel,
    DraftSelf,
    Generating,
    Outcome,
    Proposal,
)
from sybil.drafting.model import ModelDrafter
from sybil.models.native.transformer import NativeTransformer
from sybil.noise import Noise
from sybil.sampling import Sampling

NATIVE = {name: NativeTransformer(SHAPES[name], random_weights(SHAPES[name]), "float32") for name in ("gpt2", "gemma3")}


@dataclass(frozen=True)
class Guessing(DrafterFactory):
    """Offers the tokens that the model itself would draw, some of them wrong, in numbers that differ by row and round;
    models: those it guesses by."""

    wrong: float
    seed: int

    @property
    def models(self) -> tuple[Any, ...]:
        return ()

    def __call__(self, generating: Generating) -> Drafter:
        return _Guesser(self.wrong, self.seed)


class _Guesser(Drafter):
    truth: Tensor
    """(batch, n): what will be drawn, from each row's place of that number on."""
    start: list[int]

    def __init__(self, wrong: float, seed: int) -> None:
        self.wrong, self.generator = wrong, torch.Generator().manual_seed(seed)
        self.asked = 0

    def propose(self, context: Context, gamma: int) -> Proposal:
        assert context.drafted is not None
        assert context.limits is not None
        assert max(context.limits) == gamma
        self.asked += 1
        tokens = torch.zeros(len(context.tokens), gamma, dtype=torch.int64)
        for row, drawn in enumerate(context.drafted):
            ahead = self.truth[row, drawn : drawn + gamma]
            tokens[row, : len(ahead)] = ahead
        spoilt = torch.rand(tokens.shape, generator=self.generator) < self.wrong
        counts = torch.randint(0, gamma + 1, (len(tokens),), generator=self.generator).tolist()
        return Proposal(torch.where(spoilt, (tokens + 1) % 31, tokens), None, counts)

    def observe(self, outcome: Outcome) -> None: ...


def context_of(vocab: int, lengths: list[int], gamma: int, sampling: Sampling, coupled: bool, least: float) -> Context:
    texts = torch.randint(0, vocab, (len(lengths), 48), generator=torch.Generator().manual_seed(sum(lengths)))
    context = Context(texts, torch.tensor(lengths), Noise(5), least_confidence=least)
    if coupled and not sampling.greedy:
        context.exponentials = context.race_noise(gamma + 1, vocab)
    return context


@compiled
@settings(max_examples=60)
@given(
    name=st.sampled_from(list(NATIVE)),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    gamma=st.integers(1, 7),
    wrong=st.sampled_from([0.0, 0.2, 1.0]),
    how=st.sampled_from(["greedy", "sampled", "coupled", "confident", "processors"]),
    limited=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_helper_changes_no_token_and_no_probability(
    name: str, lengths: list[int], gamma: int, wrong: float, how: str, limited: bool, seed: int
) -> None:
    model = NATIVE[name]
    vocab = model.vocab_size
    processors = (NoRepeatNGramLogitsProcessor(2),) if how == "processors" else ()
    sampling = Sampling(0.0 if how == "greedy" else 1.0, processors=processors)
    least = 0.05 if how == "confident" else 0.0
    contexts = [context_of(vocab, lengths, gamma, sampling, how == "coupled", least) for _ in range(2)]
    if limited:
        limits = [(length + seed) % (gamma + 1) for length in lengths]
        gamma = max(limits)
        contexts = [replace(context, limits=limits) for context in contexts]
    generating = Generating(len(lengths), 48, vocab, sampling, model.new_cache(len(lengths), 48))
    alone = ModelDrafter(model, generating)
    helped = ModelDrafter(model, generating, Guessing(wrong, seed))
    assert isinstance(helped.helper, _Guesser)
    for later in range(3):  # rounds, so that caches lag behind by unequal numbers
        wanted = alone.propose(contexts[0], gamma)
        helped.helper.truth = wanted.tokens
        found = helped.propose(contexts[1], gamma)
        assert found.counts == wanted.counts
        for row, count in enumerate(wanted.counts):
            assert found.tokens[row, :count].tolist() == wanted.tokens[row, :count].tolist()
            if wanted.probs is not None and count:
                assert found.probs is not None
                assert found.probs[row, :count].equal(wanted.probs[row, :count])
        for drafter, context in ((alone, contexts[0]), (helped, contexts[1])):
            for row, count in enumerate(wanted.counts):
                kept = (row + seed + later) % (count + 1)
                start = int(context.lengths[row])
                context.tokens[row, start : start + kept] = wanted.tokens[row, :kept]
            kept_by_row = [(row + seed + later) % (count + 1) for row, count in enumerate(wanted.counts)]
            context.lengths = context.lengths + torch.tensor(kept_by_row) + 1
            drafter.observe(Outcome(kept_by_row, context.lengths))


def copies(name: str) -> tuple[NativeTransformer, NativeTransformer, NativeTransformer]:
    """A target, a rough copy of it and a rougher one, over the same kind of cache: keys that one leaves in another's
    place change what is said."""
    shape, weights = SHAPES[name], random_weights(SHAPES[name])

    def rough(noise: float) -> NativeTransformer:
        generator = torch.Generator().manual_seed(1)
        moved = {key: value + noise * torch.randn(value.shape, generator=generator) for key, value in weights.items()}
        return NativeTransformer(shape, moved, "float32")

    return NATIVE[name], rough(0.1), rough(0.15)


@compiled
@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(
    "how", [{}, {"do_sample": True, "top_k": 0, "rule": "coupled", "seed": 3}], ids=["greedy", "coupled"]
)
def test_in_the_target_s_own_cache_the_text_is_plain_s(name: str, how: dict[str, Any]) -> None:
    """Rows of unequal progress never write where the target's own keys lie: its text is plain decoding's."""
    target, copy, rougher = copies(name)
    inputs = prompts([5, 1, 9, 3], vocab=target.vocab_size)
    asked: dict[str, Any] = dict(max_new_tokens=30, eos_token_id=[], **how)
    plain = Decoder(target).generate(inputs, **asked).tokens
    alone = Decoder(target, DraftSelf(copy)).generate(inputs, gamma=5, **asked)
    for helper in (DraftSelf(rougher), DraftModel(rougher), DraftLookup(least=0.0)):
        helped = Decoder(target, DraftSelf(copy, helper=helper)).generate(inputs, gamma=5, **asked)
        assert [row.tolist() for row in helped.tokens] == [row.tolist() for row in plain]
        counters = (helped.stats.proposed, helped.stats.accepted, helped.stats.rounds)
        assert counters == (alone.stats.proposed, alone.stats.accepted, alone.stats.rounds)
    assert alone.stats.accepted > 0


def test_a_seeded_text_is_the_same_with_a_helper() -> None:
    """Of every rule, in a batch; the operators' logits in float64 leave no near tie."""
    target, draft = in_sybil(gpt2()), in_sybil(perturbed(gpt2(), 0.05))
    for rule in ("token", "block", "coupled"):
        for window in ("constant", "confident"):
            asked: dict[str, Any] = dict(
                max_new_tokens=24, do_sample=True, seed=4, rule=rule, window=window, gamma=5, eos_token_id=[]
            )
            texts = [
                [row.tolist() for row in Decoder(target, each).generate(prompts([3, 8, 1]), **asked).tokens]
                for each in (
                    DraftModel(draft),
                    DraftModel(draft, helper=DraftLookup(least=0.0)),
                    DraftModel(draft, helper=DraftModel(in_sybil(perturbed(gpt2(), 0.08)))),
                )
            ]
            assert texts[0] == texts[1] == texts[2]


def test_a_cascade_runs_both_its_models_and_reads_the_draft_s_weights() -> None:
    draft, small, other = in_sybil(gpt2()), in_sybil(gpt2(seed=2)), in_sybil(gpt2(seed=3))
    factory = DraftModel(draft, helper=DraftModel(small))
    assert factory.models == (draft, small)
    assert factory.over(draft, other).models == (draft, other)
    assert factory.step_bytes == (draft.weight_bytes,)


def test_a_helper_of_the_draft_s_own_noise_is_right_more_often() -> None:
    """A helper that is the draft itself, and says that it reads next to nothing, offers just what the draft draws, when
    sampling too."""
    model = in_sybil(gpt2())
    forwards = 0

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def forward(self, tokens: Tensor, cache: Any) -> Tensor:
            nonlocal forwards
            forwards += 1
            return model.forward(tokens, cache)

    class Cheap(DraftModel):
        @property
        def step_bytes(self) -> tuple[int, ...]:
            return (1,)

    for rule in ("token", "coupled"):
        forwards = 0
        asked: dict[str, Any] = dict(do_sample=True, seed=1, rule=rule, gamma=5, max_new_tokens=24, eos_token_id=[])
        out = Decoder(model, DraftModel(Counted(), helper=Cheap(model))).generate(prompts([4, 4]), **asked)
        rounds = -(-24 // 6)
        assert out.stats.acceptance_rate == 1.0
        # one for each round, but for the last one's unequal room and for those that were offered less at first
        assert forwards <= rounds + 3
