"""Four faults that speculative decoders have really had, each over the embedded pair, and the same loop without any.

`sybil verify --decoder examples.wrong_decoders:typical` finds the fault of `typical`, and `:right` passes. In greedy
decoding all of them give the right text, so comparing greedy outputs finds none of the faults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sybil
from sybil.models import feed, prefill
from sybil.sampling import Sampling, draw, probabilities
from sybil.stopping import Stops

GAMMA = 4
Tokens = tuple[list[int], list[int]]
"""(new tokens, the place of each one in its round's block)"""


def drawn(probs: Tensor, uniform: float) -> int:
    """A token drawn from probs (vocab,)."""
    return int(draw(probs, torch.tensor(uniform)))


def likeliest(probs: Tensor, uniform: float) -> int:
    """The likeliest token of probs (vocab,)."""
    return int(probs.argmax())


def independent(generator: np.random.Generator, count: int) -> list[float]:
    """A uniform number for each of `count` tokens."""
    return generator.random(count).tolist()


def by_ratio(target_probs: Tensor, draft_probs: Tensor, token: int, uniform: float) -> bool:
    """Whether a token is kept: with probability min(1, target / draft)."""
    return bool(uniform * draft_probs[token] < target_probs[token])


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """The weights of the tokens that the draft proposes too seldom, from which a token is drawn after a rejection."""
    left = (target_probs - draft_probs).clamp(min=0)
    return left if left.any() else target_probs  # the two are equal except for rounding


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of speculative sampling (Leviathan et al. 2023, Alg. 1). The defaults are right. Each wrong decoder
    replaces some of them by wrong ones."""

    propose: Callable[[Tensor, float], int] = drawn
    uniforms: Callable[[np.random.Generator, int], list[float]] = independent
    keep: Callable[[Tensor, Tensor, int, float], bool] = by_ratio
    left: Callable[[Tensor, Tensor], Tensor] = residual
    choose: Callable[[Tensor, float], int] = drawn


@torch.inference_mode()
def speculate(pieces: Pieces, prompt: Sequence[int], limit: int, sampling: Sampling, stops: Stops, seed: int) -> Tokens:
    """Continues a prompt by at most `limit` tokens."""
    decoder, generator = pair(), np.random.default_rng(seed)
    (target, draft), capacity = decoder.models, len(prompt) + limit
    target_cache, draft_cache = target.new_cache(1, capacity), draft.new_cache(1, capacity)
    new: list[int] = []
    places: list[int] = []
    prefill(target, target_cache, torch.tensor([prompt]), torch.tensor([len(prompt) - 1]))

    while len(new) < limit:
        committed, gamma = [*prompt, *new], min(GAMMA, limit - len(new) - 1)
        proposed: list[int] = []
        draft_probs: list[Tensor] = []
        for _ in range(gamma):
            known = [*committed, *proposed]
            logits = feed(draft, draft_cache, torch.tensor([known]), torch.tensor([len(known)]))
            draft_probs.append(probabilities(logits[0], sampling))
            proposed.append(pieces.propose(draft_probs[-1], generator.random()))
        logits = target.forward(torch.tensor([[committed[-1], *proposed]]), target_cache)
        target_probs = probabilities(logits[0], sampling)  # (gamma + 1, vocab)

        accepted, uniforms = 0, pieces.uniforms(generator, gamma)
        while accepted < gamma and pieces.keep(
            target_probs[accepted], draft_probs[accepted], proposed[accepted], uniforms[accepted]
        ):
            accepted += 1
        following = target_probs[accepted]
        if accepted < gamma:
            following = pieces.left(following, draft_probs[accepted])
        block = [*proposed[:accepted], pieces.choose(following, generator.random())]

        count, ended = stops.keep((), new, block)
        new += block[:count]
        places += range(count)
        if ended:
            break
        target_cache.lengths = torch.tensor([len(prompt) + len(new) - 1])
        draft_cache.lengths = torch.minimum(draft_cache.lengths, target_cache.lengths)
    return new, places


@cache
def pair() -> sybil.Decoder:
    """The embedded pair's decoder. It is loaded at the first call."""
    return sybil.load("stdlib")


def decoder(pieces: Pieces) -> Callable[..., Tokens]:
    """The loop with these pieces, as a function that `sybil verify` can call."""

    def decode(
        prompt: list[int], *, max_new_tokens: int, seed: int, eos_token_ids: Sequence[int],
        stop_strings: Sequence[str], temperature: float, top_k: int, top_p: float, min_p: float,
    ) -> Tokens:  # fmt: skip
        sampling = Sampling(temperature, top_k, top_p, min_p)
        stops = Stops(frozenset(eos_token_ids), tuple(stop_strings), (), pair().tokenizer)
        return speculate(pieces, prompt, max_new_tokens, sampling, stops, seed)

    return decode


def same_for_all(generator: np.random.Generator, count: int) -> list[float]:
    """One uniform number for a whole block. Wrong: a token that is kept makes it likelier that the next one is kept."""
    return [generator.random()] * count


def if_typical(target_probs: Tensor, draft_probs: Tensor, token: int, uniform: float) -> bool:
    """Typical acceptance (Cai et al. 2024, Medusa). Wrong: it keeps a token that the target finds likely enough,
    however often the draft proposes it."""
    entropy = torch.special.entr(target_probs).sum()
    return bool(target_probs[token] > torch.clamp(0.09 * torch.exp(-entropy), max=0.3))


def target_itself(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """The target's distribution in place of the residual. Wrong: what the draft proposes often comes too often."""
    return target_probs


right: Callable[..., Any] = decoder(Pieces())
argmax_draft: Callable[..., Any] = decoder(Pieces(propose=likeliest))  # but the ratio divides by its softmax
no_residual: Callable[..., Any] = decoder(Pieces(left=target_itself))
one_uniform: Callable[..., Any] = decoder(Pieces(uniforms=same_for_all))
typical: Callable[..., Any] = decoder(Pieces(keep=if_typical, left=target_itself, choose=likeliest))
