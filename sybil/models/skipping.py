"""Which layers a model may leave out when it drafts for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from torch import Tensor

from sybil.models import Model
from sybil.models.shape import Shape

LONGEST = 8
"""The most tokens that a round is assumed to propose when layers are chosen."""


class Layered(Model, Protocol):
    """A model of which some layers may compute by themselves, over its own caches."""

    shape: Shape

    def with_layers(self, layers: Sequence[int]) -> Self: ...


def kept(model: Layered, text: Tensor, count: int | None = None) -> tuple[int, ...]:
    """The layers that are left when `count` of them, 1 or more and not all, are left out; None: as many as pay.

    text: (rows, tokens) of the model's own. A layer's cost is how far the predictions diverge from the whole model's
    when that layer alone is left out. Layers of the least cost are left out first. As many pay as give the most tokens
    for the time; a drafted token's chance to be kept is taken to be the share of the whole model's choices that the
    remaining layers make too."""
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
    """Tokens for the time of a target's step, at the best number proposed: agreed is the chance that a drafted token is
    kept where those before it are, cost a draft's step in target's steps (Leviathan et al. 2023, section 3.3)."""
    return max(_expected(agreed, gamma) / (1 + gamma * cost) for gamma in range(1, LONGEST + 1))


def share(shape: Shape, layers: int) -> float:
    """What share of the model's products a step of so many of its layers multiplies by."""
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
    """Kullback-Leibler, nats a token."""
    here, there = wanted.float().log_softmax(-1), found.float().log_softmax(-1)
    return float((here.exp() * (here - there)).sum(-1).mean())
