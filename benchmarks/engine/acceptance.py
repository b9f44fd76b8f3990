"""What a target's copy in few bits, or with layers left out, is worth as its draft: acceptance, and tokens a round.

The copies are the shipped ones, by bits and by layers; and, for a model whose file was four bits before, one whose
blocks don't coincide with the file's: its inputs are shifted by half a block before they are rounded, and back after.
That one computes in float32; bits are what is compared, and not speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sybil.drafting import DrafterFactory, DraftSelf
from sybil.drafts import DraftMaker, parse
from sybil.loading import load, read
from sybil.measuring import prompts as texts
from sybil.models.activations import mean_squares
from sybil.models.checkpoints.weights import arrange
from sybil.models.copies import rounding
from sybil.models.native import NativeTransformer
from sybil.models.rounding import BLOCK, decoded, rounded
from sybil.models.storage import Bits
from sybil.transfer import CPU, integers

SETTINGS: Mapping[str, Mapping[str, object]] = {
    "greedy, gamma 4": {"gamma": 4},
    "greedy, gamma 8": {"gamma": 8},
    "sampled, gamma 4": {"gamma": 4, "do_sample": True, "temperature": 1.0, "top_k": 0, "seed": 0},
}
MOST = 96
"""Tokens of a prompt."""


@dataclass(frozen=True, slots=True)
class CopyAcceptance:
    """accepted: of the tokens proposed; tokens: in a round, of a row."""

    copy: str
    setting: str
    accepted: float
    tokens: float
    megabytes: float


def measure(
    target: str, prompts: str, names: Sequence[str], shifted: Sequence[Bits], count: int, new_tokens: int
) -> Iterator[CopyAcceptance]:
    """Each of the drafts' names, and copies of so many bits whose blocks are shifted, over so many prompts at once."""
    decoder = load(target, dtype="float32", device=CPU)
    checkpoint = read(target)
    chosen = texts.spread(texts.load(shipped=prompts), count)
    encoded = [integers(texts.encode(prompt, decoder)[-MOST:]) for prompt in chosen]
    maker = DraftMaker(checkpoint, decoder.target, _no_model)
    makers: dict[str, Callable[[], DrafterFactory]] = {
        name: lambda name=name: maker.make(parse(name)) for name in names
    }
    for bits in shifted:
        makers[f"self:{bits}, blocks shifted"] = lambda bits=bits: DraftSelf(_shifted(maker, bits))
    for name, make in makers.items():
        drafted = decoder.with_draft(make())
        for setting, keywords in SETTINGS.items():
            stats = drafted.generate(encoded, max_new_tokens=new_tokens, eos_token_id=[], **keywords).stats
            size = sum(drafted.draft.step_bytes) / 1e6 if drafted.draft else 0.0
            yield CopyAcceptance(name, setting, stats.acceptance_rate, stats.tokens_per_round, size)


def _no_model(name: str) -> DraftSelf:
    raise ValueError(f"{name} is no copy")


def _shifted(maker: DraftMaker, bits: Bits) -> NativeTransformer:
    """A copy in float32 of what the shipped rounding makes of weights whose inputs were shifted."""
    checkpoint = maker.checkpoint
    assert checkpoint.known
    assert checkpoint.stored
    shape, weights = arrange(
        checkpoint.name, checkpoint.config, checkpoint.known, checkpoint.stored, torch.float32, CPU
    )
    kept = rounding(shape, bits, mean_squares(shape, weights, maker.text) if bits < 8 else {})

    def copied(name: str) -> Tensor:
        weight, product = weights[name], name.removesuffix(".weight")
        if weight.ndim == 1 or name == "position_embedding":
            return weight
        importance, many = kept.importance.get(product), kept.bits_of(product)
        shifted = None if importance is None else importance.roll(BLOCK // 2)
        return decoded(rounded(weight.roll(BLOCK // 2, 1), many, shifted), many, weight.shape[1]).roll(-BLOCK // 2, 1)

    return NativeTransformer(shape, {name: copied(name) for name in weights})
