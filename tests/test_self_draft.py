"""The target drafts for itself, in its own cache: the text is plain decoding's, and so is what the cache holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from shapes import SHAPES, assert_same_bits, random_weights
from tiny import alternating, fixed, gpt2, in_sybil, perturbed, prompts, windowed
from torch import Tensor

from sybil import Decoder
from sybil.drafting import Context, DraftSelf, Generating, SelfDrafter
from sybil.models import Model, prefill
from sybil.models.checkpoints.families import understand
from sybil.models.checkpoints.weights import State, arrange
from sybil.models.native import NativeTransformer, library
from sybil.models.native.cache import NativeCache
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape
from sybil.models.storage import Rounding
from sybil.noise import Noise
from sybil.sampling import Sampling, draw, probabilities
from sybil.transfer import integers

COUNT = 24
TEXTS = prompts([3, 8, 1, 5])


def of_shape(kind: str, shape: Shape, rounded: bool = False) -> Model:
    """Random weights by that forward; rounded: to 5 bits, or int8 by operators."""
    weights = random_weights(shape)
    if kind == "native":
        return NativeTransformer(shape, weights, Rounding(5) if rounded else "float32", 1)
    return Transformer(shape, weights, "int8" if rounded else None)


def every_pair() -> dict[str, tuple[Model, Model]]:
    """A target and a model that computes over its caches."""
    found: dict[str, tuple[Model, Model]] = {
        "a near model": (in_sybil(gpt2()), in_sybil(perturbed(gpt2(), 0.02))),
        "a wrong model": (in_sybil(gpt2()), in_sybil(gpt2(seed=3))),
        "fixed shapes": (fixed(gpt2()), in_sybil(perturbed(gpt2(), 0.02))),
        "int8 of float64": (
            in_sybil(windowed()),
            Transformer(in_sybil(windowed()).shape, _weights(windowed()), "int8"),
        ),
        "one layer": (in_sybil(windowed()), in_sybil(windowed()).with_layers([1])),
        "sliding windows": (in_sybil(alternating()), in_sybil(alternating()).with_layers([0, 2])),
    }
    for kind in ("operators", "native") if library.load() else ("operators",):
        for name, shape in SHAPES.items():
            found[f"{kind}, {name}"] = of_shape(kind, shape), of_shape(kind, shape, rounded=True)
    return found


def _weights(model: Any) -> dict[str, Tensor]:
    """Those of a tiny model, by our names."""
    config, state = model.config.to_dict(), State(model.state_dict())
    return dict(arrange("tiny", config, understand(config), state, model.dtype, torch.device("cpu"))[1])


PAIRS = every_pair()
pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))


@pairs
def test_greedy_text_is_plain_decodings(pair: tuple[Model, Model]) -> None:
    """Rows of unequal lengths, some of which end early, near the end of the context too."""
    target, copy = pair
    plain, drafted = Decoder(target), Decoder(target, DraftSelf(copy))
    for gamma in (1, 4, 7):
        settings: dict[str, Any] = {"max_new_tokens": COUNT, "eos_token_id": [5]}
        wanted = plain.generate(TEXTS, **settings)
        found = drafted.generate(TEXTS, gamma=gamma, **settings)
        assert [row.tolist() for row in found.tokens] == [row.tolist() for row in wanted.tokens]
        assert found.finish_reasons == wanted.finish_reasons
    long = prompts([target.context - 9, target.context - 3])
    wanted = plain.generate(long, max_new_tokens=COUNT, eos_token_id=[])
    found = drafted.generate(long, max_new_tokens=COUNT, eos_token_id=[], gamma=5)
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in wanted.tokens]
    assert found.finish_reasons == ("context", "context")


@pairs
def test_the_cache_holds_what_plain_decodings_holds(pair: tuple[Model, Model]) -> None:
    """After every round, bit for bit in the C forward; to rounding by torch's operators, whose products have other
    bits when other tokens are beside them."""
    target, copy = pair
    settings: dict[str, Any] = {"max_new_tokens": COUNT, "eos_token_id": []}
    plain = Decoder(target)._run(TEXTS, settings)
    list(plain)
    run = Decoder(target, DraftSelf(copy))._run(TEXTS, {**settings, "gamma": 4})
    for _ in run:
        for row, length in enumerate(run.cache.lengths.tolist()):
            for one, other in zip(held(run.cache, row, length), held(plain.cache, row, length), strict=True):
                if isinstance(target, NativeTransformer):
                    assert_same_bits(one, other)
                else:
                    torch.testing.assert_close(one, other)


def held(cache: Any, row: int, count: int) -> Iterator[Tensor]:
    """Keys and values of a row's first tokens."""
    store = getattr(cache, "store", cache)
    keys = store.keys.transpose(-1, -2) if isinstance(cache, NativeCache) else store.keys
    for each in (keys, store.values):
        yield each[:, row, :, :count].clone()


def test_a_copy_that_is_the_target_is_always_kept() -> None:
    """So the draft reads the target's own keys, and its own of what it drafts."""
    for target in (in_sybil(gpt2()), in_sybil(windowed()), in_sybil(alternating())):
        found = Decoder(target, DraftSelf(target)).generate(TEXTS, max_new_tokens=COUNT, gamma=5, eos_token_id=[])
        assert found.stats.accepted == found.stats.proposed > 0


def test_what_is_handed_on_is_what_tokens_were_drawn_from() -> None:
    """A token's probabilities are the copy's after the target's keys of the prefix and the copy's own of the rest; the
    token is the one that its uniform draws of them."""
    target, copy = in_sybil(gpt2()), in_sybil(perturbed(gpt2(), 0.05))
    sampling = Sampling(0.8, top_k=0, top_p=0.9)
    tokens = torch.stack(prompts([12, 12]))
    lengths, noise = integers([9, 5]), Noise(3)
    cache = target.new_cache(2, 16)
    prefill(target, cache, tokens, lengths - 1)
    context = Context(tokens, lengths, noise)
    proposal = SelfDrafter(copy, Generating(2, 16, target.vocab_size, sampling, cache)).propose(context, 3)
    assert proposal.probs is not None
    uniforms = context.uniforms(3, Noise.PROPOSE)
    for row, length in enumerate(lengths.tolist()):
        alone = target.new_cache(1, 16)
        prefill(target, alone, tokens[row : row + 1], lengths[row : row + 1] - 1)
        said = torch.cat([tokens[row, length - 1 : length], proposal.tokens[row]])
        logits = copy.forward(said[None, :3], alone)[0]
        torch.testing.assert_close(proposal.probs[row], probabilities(logits, sampling))
        assert draw(proposal.probs[row], uniforms[row]).tolist() == proposal.tokens[row].tolist()
    assert cache.lengths.tolist() == (lengths - 1).tolist()


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_lengths_are_put_back_whatever_happens(failing: int, error: type[BaseException]) -> None:
    """Ctrl-C and a failure in any of the draft's forwards, before and after it has written."""
    target = in_sybil(gpt2())
    for late in (False, True):
        calls = 0

        class Failing:
            vocab_size, context, device, weight_bytes = target.vocab_size, target.context, target.device, 0

            def forward(self, tokens: Tensor, cache: Any, late: bool = late) -> Tensor:
                nonlocal calls
                calls += 1
                if calls < failing:
                    return target.forward(tokens, cache)
                if late:
                    target.forward(tokens, cache)
                raise error

        cache = target.new_cache(1, 16)
        tokens, lengths = torch.stack(prompts([12])), integers([9])
        prefill(target, cache, tokens, lengths - 1)
        drafter = SelfDrafter(Failing(), Generating(1, 16, target.vocab_size, Sampling(), cache))
        with pytest.raises(error):
            drafter.propose(Context(tokens, lengths, Noise(0)), 4)
        assert cache.lengths.tolist() == [8]


def test_no_cache_is_made_for_the_copy() -> None:
    target, copy = in_sybil(gpt2()), in_sybil(perturbed(gpt2(), 0.02))

    def none(batch: int, capacity: int) -> None:
        raise AssertionError("a copy drafts in the target's cache")

    copy.new_cache = none
    decoder = Decoder(target, DraftSelf(copy))
    assert decoder.models == (target, copy)
    assert decoder.generate(TEXTS, max_new_tokens=8, gamma=4).stats.accepted > 0


def test_one_cache_is_replayed_by_each_model_itself() -> None:
    """Forwards of fixed shapes are kept by model: a graph of the target's must not run for the copy."""
    target, copy = fixed(gpt2()), fixed(perturbed(gpt2(), 0.3))
    cache = target.new_cache(1, 16)
    token = torch.tensor([[3]])
    for model in (target, copy):
        cache.lengths = integers([0])
        model.forward(token, cache)
    forwards = [cache._held.forwards_of(model, model._masks) for model in (target, copy)]
    assert [list(each._kept) for each in forwards] == [[(1, 128)], [(1, 128)]]
    assert forwards[0] is not forwards[1]
