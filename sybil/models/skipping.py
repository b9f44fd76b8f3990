"""Chooses the layers that a model leaves out when it drafts for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from torch import Tensor

from sybil.models import Model
from sybil.models.shape import Shape

LONGEST = 8
"""The most tokens that a round is assumed to propose when layers are chosen."""


class Layered(Model, Protocol):
    """A model from which a copy with only some of its layers can be made. The copy computes over the model's caches."""

    shape: Shape

    def with_layers(self, layers: Sequence[int]) -> Self: ...


def kept(model: Layered, text: Tensor, count: int | None = None) -> tuple[int, ...]:
    """The layers that are kept when `count` of them are left out. count: at least 1 and not all; None: the number that
    gives the most tokens for the time.

    text: (rows, tokens) that the model has generated. A layer's cost is the divergence between the whole model's
    predictions and those without that layer alone. The layers of the least cost are left out first. The chance that a
    drafted token is accepted is taken to be the share of places of the text where the remaining layers have the same
    likeliest token as the whole model."""
    shape, wanted = model.shape, _logits(model, text)
    every = range(shape.layers)
    costs = {layer: _divergence(wanted, _logits(_without(model, [layer]), text)) for layer in every}
    order = sorted(every, key=costs.__getitem__)
    if count is None:
        choices = wanted.argmax(-1)
        worths = []
        for many in range(1, shape.layers):
            agreed = float((_logits(_without(model, order[:many]), text).argmax(-1) == choices).float().mean())
            worths.append(worth(agreed, share(shape, shape.layers - many)))
            if worths[-1] < 0.9 * max(worths):
                break
        count = 1 + worths.index(max(worths))
    return tuple(sorted(order[count:]))


def worth(agreed: float, cost: float) -> float:
    """The expected number of tokens in the time of one target step, with the best gamma up to LONGEST (Leviathan et al.
    2023, section 3.3). agreed: the chance that a drafted token is accepted if those before it are. cost: the time of a
    draft step, in target steps."""
    return max(_expected(agreed, gamma) / (1 + gamma * cost) for gamma in range(1, LONGEST + 1))


def share(shape: Shape, layers: int) -> float:
    """The share of the model's product weights that a step of so many of its layers multiplies by."""
    heads = shape.heads + 2 * shape.kv_heads
    layer = shape.width * shape.head_size * (heads + shape.heads) + (2 + shape.gated) * shape.width * shape.inner
    ends = shape.vocab_size * shape.embedding_width
    return (layers * layer + ends) / (shape.layers * layer + ends)


def _expected(agreed: float, gamma: int) -> float:
    return float(gamma + 1) if agreed >= 1 else (1 - agreed ** (gamma + 1)) / (1 - agreed)


def _without(model: Layered, left_out: Sequence[int]) -> Model:
    return model.with_layers([layer for layer in range(model.shape.layers) if layer not in left_out])


def _logits(model: Model, text: Tensor) -> Tensor:
    return model.forward(text, model.new_cache(*text.shape)).clone()


def _divergence(wanted: Tensor, found: Tensor) -> float:
    """The Kullback-Leibler divergence of `found` from `wanted`, in nats a token."""
    here, there = wanted.float().log_softmax(-1), found.float().log_softmax(-1)
    return float((here.exp() * (here - there)).sum(-1).mean())
