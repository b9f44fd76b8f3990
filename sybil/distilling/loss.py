"""The distance between a draft's distribution and its target's, over the target's likeliest tokens and a tail. Pure.

Both distributions are over the tokens that the draft can propose. The target's likeliest tokens are known one by one.
All other tokens, the tail, are known by the sum of their probabilities. The loss is the Kullback-Leibler divergence
between target and draft, in which the tail counts as one token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

ROWS = 512
"""Places whose logits are held at once: 32 MB at a vocabulary of 16,384 tokens, which may fit in a CPU's caches."""
LEAST = 1e-6  # the smallest probability that is divided by


@dataclass(frozen=True, slots=True)
class Wanted:
    """The target's distributions at n places, over the tokens that the draft can propose.

    top: (n, k) int64, the likeliest tokens; an unused entry is 0. probs: (n, k) float32, the probabilities of top,
    given that the token is one that the draft can propose; an unused entry is 0. weights: (n,) float32, the
    probability that the target gives to all the tokens that the draft can propose."""

    top: Tensor
    probs: Tensor
    weights: Tensor


class _Divergence(torch.autograd.Function):
    """The weighted mean of the divergences. Logits are computed ROWS places at a time and are not kept for backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, top: Tensor, probs: Tensor, weights: Tensor) -> Tensor:
        to_hidden, to_head = torch.empty_like(hidden), torch.zeros_like(head)
        total, whole = hidden.new_zeros(()), weights.sum().clamp(min=LEAST)
        for start in range(0, len(hidden), ROWS):
            part = slice(start, start + ROWS)
            draft = (hidden[part] @ head.T).softmax(-1)
            wanted, weight = probs[part], (weights[part] / whole)[:, None]
            found = draft.gather(1, top[part]).clamp(min=LEAST)
            known = torch.where(wanted > 0, found, 0.0)
            tail = (1 - wanted.sum(1, keepdim=True)).clamp(min=0)
            left = (1 - known.sum(1, keepdim=True)).clamp(min=LEAST)
            each = torch.xlogy(wanted, wanted / found).sum(1, keepdim=True) + torch.xlogy(tail, tail / left)
            total += (each * weight).sum()
            ratio = tail / left
            # d/dlogit is draft - target, the target's tail being spread as the draft's own
            slope = draft.mul_(1 - ratio).scatter_add_(1, top[part], known * ratio - wanted).mul_(weight)
            to_hidden[part] = slope @ head
            to_head.addmm_(slope.T, hidden[part])
        ctx.save_for_backward(to_hidden, to_head)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:  # one slope: that of the loss
        to_hidden, to_head = ctx.saved_tensors
        return to_hidden * slopes[0], to_head * slopes[0], None, None, None


def divergence(hidden: Tensor, head: Tensor, wanted: Wanted) -> Tensor:
    """The mean divergence, weighted by wanted.weights, in nats a place. hidden: (n, width), the draft's last hidden
    states at the places. head: (tokens, width), a row for each token that the draft can propose."""
    total = _Divergence.apply(hidden, head, wanted.top, wanted.probs, wanted.weights)  # type: ignore[no-untyped-call]
    return cast(Tensor, total)


def estimates(hidden: Tensor, head: Tensor, wanted: Wanted) -> tuple[float, float]:
    """The estimated acceptance rates (sampled, greedy) of a draft, as means over the places. Sampled: the sum of
    min(target, draft) without the tail's part. Greedy: how often both find the same token likeliest."""
    sampled, greedy, places = 0.0, 0.0, len(hidden)
    for start in range(0, places, ROWS):
        part = slice(start, start + ROWS)
        draft = (hidden[part] @ head.T).softmax(-1)
        top, probs = wanted.top[part], wanted.probs[part] * wanted.weights[part, None]
        sampled += float(torch.minimum(draft.gather(1, top), probs).sum())
        greedy += int(((draft.argmax(1) == top[:, 0]) & (probs[:, 0] > 0)).sum())
    return (sampled / places, greedy / places) if places else (0.0, 0.0)
