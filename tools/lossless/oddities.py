"""Lossless ways to speculate, some of which look odd. A round is given the distributions (vocab,) of target and draft
after any text, and returns the tokens that it appends to the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from sybil.sampling import Sampling, probabilities
from sybil.stopping import Stops

Probs = NDArray[np.float64]
After = Callable[[list[int]], Probs]
Round = Callable[[After, After, list[int], int, np.random.Generator], list[int]]
VOCAB, CONTEXT, END = 12, 64, 0
UNSURE = 0.3  # the draft stops proposing after a token to which it gave less than this probability

ROUNDS: dict[str, Round] = {}


def odd(name: str) -> Callable[[Round], Round]:
    """Register a round under a description of what it does."""

    def enter(way: Round) -> Round:
        ROUNDS[name] = way
        return way

    return enter


def pick(weights: Probs, uniform: float) -> int:
    """Draw a token from weights (vocab,) that needn't sum to 1."""
    cdf = weights.cumsum()
    return int(cdf.searchsorted(uniform * cdf[-1], "right"))


def verified(
    target: After, text: list[int], proposed: Sequence[tuple[int, Probs]], rng: np.random.Generator
) -> list[int]:
    """Speculative sampling (Leviathan et al. 2023, Alg. 1) of tokens, each with the distribution that it was drawn
    from."""
    block = list[int]()
    for token, drawn_from in proposed:
        wanted = target(text + block)
        if rng.random() * drawn_from[token] >= wanted[token]:
            return [*block, pick(np.maximum(wanted - drawn_from, 0), rng.random())]
        block.append(token)
    return [*block, pick(target(text + block), rng.random())]


def by(drawn_from: Callable[[Probs], Probs], told: Callable[[Probs, int], Probs] = lambda probs, token: probs) -> Round:
    """A round whose draft draws its token from drawn_from(the draft's probabilities), and hands the rule told(those,
    the token)."""

    def way(target: After, draft: After, text: list[int], gamma: int, rng: np.random.Generator) -> list[int]:
        proposed = list[tuple[int, Probs]]()
        for _ in range(gamma):
            probs = drawn_from(draft(text + [token for token, _ in proposed]))
            token = pick(probs, rng.random())
            proposed.append((token, told(probs, token)))
        return verified(target, text, proposed, rng)

    return way


def only(probs: Probs, token: int) -> Probs:
    """A one-hot distribution."""
    return np.eye(len(probs))[token]


ROUNDS["the token rule"] = by(lambda probs: probs)
ROUNDS["the draft's probabilities squared, and the rule told so"] = by(lambda probs: probs**2 / (probs**2).sum())
ROUNDS["a one-hot draft distribution for a sampled token"] = by(lambda probs: probs, only)
ROUNDS["the draft's likeliest token, one-hot"] = by(lambda probs: only(probs, int(probs.argmax())))


@odd("draws from the target, and goes on while the draft's token is the same")
def same_token(target: After, draft: After, text: list[int], gamma: int, rng: np.random.Generator) -> list[int]:
    """The emitted token is always the one that the target draws itself."""
    return _while_same(target, draft, text, gamma, lambda: (rng.random(), rng.random()))


@odd("the same, target and draft with one uniform a place")
def same_uniform(target: After, draft: After, text: list[int], gamma: int, rng: np.random.Generator) -> list[int]:
    """With the same uniform the draft is right more often, but it decides nothing."""
    return _while_same(target, draft, text, gamma, lambda: (rng.random(),) * 2)


def _while_same(
    target: After, draft: After, text: list[int], gamma: int, uniforms: Callable[[], tuple[float, float]]
) -> list[int]:
    block = list[int]()
    for _ in range(gamma):
        one, other = uniforms()
        proposed, drawn = pick(draft(text + block), one), pick(target(text + block), other)
        block.append(drawn)
        if drawn != proposed:
            return block
    return [*block, pick(target(text + block), uniforms()[1])]


@odd("a proposal ends after a token that the draft is unsure of, which stays")
def ends_unsure(target: After, draft: After, text: list[int], gamma: int, rng: np.random.Generator) -> list[int]:
    """Leaving that token out after looking at it would not be lossless."""
    proposed = list[tuple[int, Probs]]()
    while len(proposed) < gamma:
        probs = draft(text + [token for token, _ in proposed])
        proposed.append((pick(probs, rng.random()), probs))
        if probs[proposed[-1][0]] < UNSURE:
            break
    return verified(target, text, proposed, rng)


def chain(noise: float = 0.0) -> GPT2LMHeadModel:
    """A GPT-2 without layers: the token and its position alone determine the next token's distribution. The end token
    is rare."""
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=16, n_layer=0, n_head=2, initializer_range=0.4,
        tie_word_embeddings=False, bos_token_id=END, eos_token_id=END,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        end = model.lm_head.weight[END]
        model.transformer.ln_f.bias -= 2 * end / end.square().sum()
        model.lm_head.weight += noise * torch.randn_like(model.lm_head.weight)
    return model


@lru_cache
@torch.no_grad()
def table(model: GPT2LMHeadModel, sampling: Sampling) -> Probs:
    """All distributions of a chain: (position, token there, next token)."""
    ids = torch.arange(VOCAB)[:, None].expand(-1, CONTEXT)
    logits: torch.Tensor = model(input_ids=ids).logits
    return probabilities(logits.transpose(0, 1), sampling).numpy()


@dataclass(frozen=True, slots=True)
class Chains:
    """A target chain and a draft chain that speculate."""

    target: GPT2LMHeadModel
    draft: GPT2LMHeadModel
    tokenizer: Tokenizer

    def decoder(self, way: Round) -> Callable[..., tuple[list[int], list[int]]]:
        """The decoder that repeats one kind of round, in the form in which the judge calls decoders."""

        def decode(
            prompt: list[int], *, max_new_tokens: int, seed: int, eos_token_ids: Sequence[int],
            stop_strings: Sequence[str], temperature: float, top_k: int, top_p: float, min_p: float, gamma: int = 4,
        ) -> tuple[list[int], list[int]]:  # fmt: skip
            sampling, rng = Sampling(temperature, top_k, top_p, min_p), np.random.default_rng(seed)
            stops = Stops(frozenset(eos_token_ids), tuple(stop_strings), (), self.tokenizer)
            target, draft = (_after(model, sampling) for model in (self.target, self.draft))
            tokens, places, ended = list[int](), list[int](), None
            while len(tokens) < max_new_tokens and not ended:
                room = max_new_tokens - len(tokens) - 1
                block = way(target, draft, [*prompt, *tokens], min(gamma, room), rng)
                count, ended = stops.keep((), tokens, block)
                tokens, places = [*tokens, *block[:count]], [*places, *range(count)]
            return tokens, places

        return decode


def _after(model: GPT2LMHeadModel, sampling: Sampling) -> After:
    rows = table(model, sampling)
    return lambda text: rows[len(text) - 1, text[-1]]
