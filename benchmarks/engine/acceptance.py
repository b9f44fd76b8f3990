"""How good a draft a target's own copy is, in few bits or with layers left out: acceptance rate, and tokens a round.

Most of the copies are the ones that Sybil ships, by bits and by layers. One more copy is for a model whose file already
has four bits: its blocks don't coincide with the file's blocks. Its weights' inputs are shifted by half a block before
they are rounded, and shifted back afterwards. That copy computes in float32, so it compares bits, and not speed."""

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
"""The most tokens of a prompt that are used; they are its last ones."""


@dataclass(frozen=True, slots=True)
class CopyAcceptance:
    """What one copy gave at one setting. accepted: the share of the proposed tokens that were accepted. tokens: tokens
    a round and row. megabytes: the bytes that the copy reads for a step, in MB."""

    copy: str
    setting: str
    accepted: float
    tokens: float
    megabytes: float


def measure(
    target: str, prompts: str, names: Sequence[str], shifted: Sequence[Bits], count: int, new_tokens: int
) -> Iterator[CopyAcceptance]:
    """Decode `count` prompts together with each draft, at each of SETTINGS. names: drafts by their names; shifted: the
    bits of further copies whose blocks are shifted."""
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
    """A copy in float32. Its weights are shifted by half a block, rounded as the shipped copies are, and shifted
    back."""
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
