"""The rules that decide how much of a proposal stays. Pure: tensors and noise in, a verdict out.

`accepted` tokens of a row are kept; after them comes one token more: *recovered* from the residual
where a proposed token was rejected, the *bonus* from the target where none was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sybil.errors import InvalidSetting
from sybil.sampling import draw


@dataclass(frozen=True, slots=True)
class Proposed:
    """What a rule judges, rows of a batch side by side.

    tokens: (batch, gamma); draft_probs: (batch, gamma, vocab), those the tokens were really drawn from,
    or None where the proposal was deterministic; target_probs: (batch, gamma + 1, vocab), the last
    being the distribution after the whole proposal; counts: (batch,), how many of a row's tokens are
    proposed at all (the rest is padding that no row may keep).
    """

    tokens: Tensor
    draft_probs: Tensor | None
    target_probs: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """accepted: (batch,) in 0..counts; next_token: (batch,), the recovered or bonus token, -1 where what it
    would be drawn from is no distribution (logits of NaN or infinity)."""

    accepted: Tensor
    next_token: Tensor


class Rule(Protocol):
    """accept_noise: (batch, gamma), next_noise: (batch,), independent uniforms in [0, 1)."""

    def __call__(self, proposed: Proposed, accept_noise: Tensor, next_noise: Tensor) -> Verdict: ...


def token(proposed: Proposed, accept_noise: Tensor, next_noise: Tensor) -> Verdict:
    """Speculative sampling, Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1.

    Each token x is kept with probability min(1, target(x) / draft(x)) while all before it were; the
    first one rejected is replaced by a draw from norm(max(target - draft, 0))."""
    tokens, counts, target_probs = proposed.tokens, proposed.counts, proposed.target_probs
    gamma = tokens.shape[1]

    # r_i > p_i(x) / q_i(x) rejects: written without the division, so that 0/0 can't arise
    target_at = target_probs[:, :gamma].gather(-1, tokens[..., None]).squeeze(-1)  # (batch, gamma)
    draft_at = _draft_at(proposed.draft_probs, tokens, target_at)
    kept = accept_noise.to(target_at) * draft_at < target_at
    kept &= torch.arange(gamma, device=tokens.device) < counts[:, None]
    accepted = kept.long().cumprod(1).sum(1)  # n = min({i - 1 | r_i > p_i / q_i} + {gamma})

    # p'(x) = norm(max(0, p_{n+1}(x) - q_{n+1}(x))), or p_{n+1} itself where nothing was rejected
    rows = torch.arange(len(tokens), device=tokens.device)
    next_probs = target_probs[rows, accepted]  # (batch, vocab)
    if gamma:
        draft_row = _draft_row(proposed, rows, accepted.clamp(max=gamma - 1))
        left = residual(next_probs, draft_row.nan_to_num(0.0))  # a draft of no numbers is always rejected: p itself
        next_probs = torch.where((accepted < counts)[:, None], left, next_probs)
    return Verdict(accepted, draw(next_probs, next_noise))


def greedy(proposed: Sequence[int], chosen: Sequence[int]) -> tuple[int, int]:
    """What every lossless rule says of a row whose target is certain: (accepted, next token).

    Kept is what the target would have chosen itself; chosen: its likeliest tokens, one more than are proposed."""
    accepted = 0
    while accepted < len(proposed) and proposed[accepted] == chosen[accepted]:
        accepted += 1
    return accepted, chosen[accepted]


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """max(target - draft, 0), (batch, vocab), not normalised; the target where they agree everywhere.

    They agree only where a rejection has probability 0 but for rounding, so what stands there is harmless."""
    left = (target_probs - draft_probs).clamp_(min=0)
    return torch.where(left.sum(-1, keepdim=True) == 0, target_probs, left)


def _draft_at(draft_probs: Tensor | None, tokens: Tensor, like: Tensor) -> Tensor:
    if draft_probs is None:
        return torch.ones_like(like)
    return draft_probs.gather(-1, tokens[..., None]).squeeze(-1)


def _draft_row(proposed: Proposed, rows: Tensor, place: Tensor) -> Tensor:
    if proposed.draft_probs is not None:
        return proposed.draft_probs[rows, place]
    one_hot = torch.zeros_like(proposed.target_probs[:, 0])
    return one_hot.scatter_(-1, proposed.tokens[rows, place][:, None], 1.0)


RULES: dict[str, Rule] = {"token": token}


def rule_named(name: str) -> Rule:
    """The lossless rule of that name; raises InvalidSetting."""
    if name not in RULES:
        raise InvalidSetting(f"rule is {name!r}: the lossless rules are {', '.join(sorted(RULES))}")
    return RULES[name]
