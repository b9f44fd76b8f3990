"""The rules that decide how much of a proposal is kept. They are pure functions: tensors and noise in, a verdict out.

Of a row's proposed tokens the first `accepted` are kept. One more token follows. Where a proposed token was rejected,
it is *recovered*: drawn from the residual. Where all were accepted, it is the *bonus*: drawn from the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sybil.arguments import described
from sybil.errors import InvalidSetting
from sybil.noise import Exponentials
from sybil.residual import Residual
from sybil.sampling import race
from sybil.transfer import back, cast, counting, filled, native


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
    """noise: (batch, gamma + 1) independent uniforms in [0, 1), the first of a row for its next token and one more for
    each proposed token; for `coupled`, what it says."""

    def __call__(self, proposed: Proposed, noise: Any) -> Verdict: ...


def token(proposed: Proposed, noise: Tensor) -> Verdict:
    """Speculative sampling, Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1.

    Each token x is kept with probability min(1, target(x) / draft(x)) while all before it were; the
    first one rejected is replaced by a draw from norm(max(target - draft, 0))."""
    target_at, draft_at = _at_tokens(proposed)  # p_i(x_i), q_i(x_i), each (batch, gamma)

    # r_i > p_i(x) / q_i(x) rejects: written without the division, so that 0/0 can't arise
    kept = cast(native(noise)[:, 1:], target_at) * draft_at < target_at
    kept &= _places(proposed) <= native(proposed.counts)[:, None]
    accepted = kept.cumprod(1).sum(1)  # n = min({i - 1 | r_i > p_i(x) / q_i(x)} + {gamma})

    # p'(x) = norm(max(0, p_{n+1}(x) - q_{n+1}(x)))
    return Verdict(back(accepted), _next_token(proposed, accepted, 1.0, noise[:, 0]))


def block(proposed: Proposed, noise: Tensor) -> Verdict:
    """Block verification, Sun et al. 2024 (arXiv 2403.10444), Algorithm 2: never keeps less than `token` on average.

    Every place is asked, and the last one that agrees wins: a token may be kept for the sake of those after it."""
    target_at, draft_at = map(back, _at_tokens(proposed))
    counts, gamma, places = proposed.counts[:, None], proposed.tokens.shape[1], back(_places(proposed))

    # w_0 = 1, w_i = min(1, w_{i-1} * target(x_i) / draft(x_i)); a token that no draft could draw weighs nothing
    ratios = torch.where(draft_at > 0, target_at / draft_at, 0.0)
    weights = [torch.ones_like(noise[:, 0]).to(target_at)]
    for ratio in ratios.unbind(1):
        weights.append((weights[-1] * ratio).clamp(max=1))
    weight = torch.stack(weights, 1)  # (batch, gamma + 1)

    # Z_i = sum_x max(w_i * target(x) - draft(x), 0), h_i = Z_i / (Z_i + 1 - w_i) with 0/0 = 1; at the block's end, w_i
    inner = weight[:, 1:gamma]
    left = _residual(proposed, places[:-1].expand(inner.shape), inner, torch.ones_like(inner, dtype=torch.bool)).sums()
    left = left.reshape(inner.shape)
    whole = left + 1 - inner
    passing = weight[:, 1:].clone()
    passing[:, :-1] = torch.where(places[:-1] < counts, torch.where(whole == 0, 1.0, left / whole), passing[:, :-1])

    agrees = (noise[:, 1:].to(passing) < passing) & (places <= counts)  # eta_i <= h_i
    accepted = (agrees * places).amax(1) if gamma else counts[:, 0]  # n = max{i | eta_i <= h_i}, else 0
    at_end = weight.gather(1, accepted[:, None])
    return Verdict(accepted, _next_token(proposed, accepted, at_end, noise[:, 0]))


def coupled(proposed: Proposed, noise: Tensor | Exponentials) -> Verdict:
    """Drafter-invariant speculative decoding by Gumbel sampling, Daliri et al. 2024 (arXiv 2408.07978).

    noise: (batch, gamma + 1, vocab), the exponentials of each token's own position. The drafter has drawn with the same
    ones. The target draws with them the token that it would draw without a draft. A proposed token is kept where it is
    that token."""
    tokens, counts = proposed.tokens, proposed.counts
    drawn = race(proposed.target_probs, noise)  # argmax(log p_i(x) + G_i(x)), (batch, gamma + 1)
    kept = (tokens == drawn[:, :-1]) & (back(_places(proposed)) <= counts[:, None])
    accepted = kept.long().cumprod(1).sum(1)
    return Verdict(accepted, drawn.gather(1, accepted[:, None])[:, 0])


def greedy(proposed: Sequence[int], chosen: Sequence[int]) -> tuple[int, int]:
    """(accepted, next token) by any lossless rule where the target is certain, as in greedy decoding: all rules then
    give the same.

    chosen: the target's likeliest token at each place, one place more than are proposed. A proposed token is kept where
    it is the chosen one and all before it were kept."""
    accepted = 0
    while accepted < len(proposed) and proposed[accepted] == chosen[accepted]:
        accepted += 1
    return accepted, chosen[accepted]


def _next_token(proposed: Proposed, accepted: Any, weight: Any, uniforms: Tensor) -> Tensor:
    """(batch,) from norm(max(weight * target - draft, 0)) where a proposed token was rejected, else from the target."""
    accepted, counts, target_probs = native(accepted), native(proposed.counts), native(proposed.target_probs)
    weights = native(weight) if isinstance(weight, Tensor) else filled(cast(counts, target_probs), weight)[:, None]
    return _residual(proposed, accepted[:, None], weights, (accepted < counts)[:, None]).draw(uniforms)


def _residual(proposed: Proposed, places: Any, weights: Any, drafted: Any) -> Residual:
    """max(weight * target - draft, 0) at some places of each row; all of them (batch, places of a row)."""
    places = native(places)
    rows = counting(len(places), places)[:, None] + filled(places, 0)
    at = (native(each).reshape(-1) for each in (rows, places, weights, drafted))
    return Residual(proposed.target_probs, proposed.draft_probs, proposed.tokens, *at)


def _at_tokens(proposed: Proposed) -> tuple[Any, Any]:
    """The target's and the draft's probabilities of the proposed tokens, each (batch, gamma)."""
    tokens, target_probs = native(proposed.tokens), native(proposed.target_probs)
    rows, places = counting(len(tokens), tokens)[:, None], _places(proposed) - 1
    target_at = target_probs[rows, places, tokens]
    if proposed.draft_probs is None:
        return target_at, filled(target_at, 1.0)
    return target_at, native(proposed.draft_probs)[rows, places, tokens]


def _places(proposed: Proposed) -> Any:
    """1 .. gamma."""
    return counting(proposed.tokens.shape[1], native(proposed.tokens)) + 1


RULES: dict[str, Rule] = {"token": token, "block": block, "coupled": coupled}


def rule_named(name: str) -> Rule:
    """The lossless rule of that name; raises InvalidSetting."""
    if not isinstance(name, str) or name not in RULES:
        raise InvalidSetting(f"rule is {described(name)}: the lossless rules are {', '.join(sorted(RULES))}")
    return RULES[name]
