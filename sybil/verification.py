"""The rules that decide how many proposed tokens are kept. They are pure functions: tensors and noise in, a verdict
out.

The first `accepted` of a row's proposed tokens are kept, and one more token follows them. Where a proposed token was
rejected, that next token is *recovered*: it is drawn from the residual. Where all were accepted, it is the *bonus*: it
is drawn from the target."""

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
    """The proposal that a rule judges, for all rows of a batch.

    - tokens: (batch, gamma), the proposed token ids.
    - draft_probs: (batch, gamma, vocab), the distributions that the tokens were really drawn from; None where the
      proposal was deterministic.
    - target_probs: (batch, gamma + 1, vocab), the target's distributions; the last one follows the whole proposal.
    - counts: (batch,), how many of a row's tokens are proposed. The rest is padding, which is never kept.
    """

    tokens: Tensor
    draft_probs: Tensor | None
    target_probs: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule's decision. accepted: (batch,), from 0 to counts. next_token: (batch,), the recovered or bonus token; -1
    where there is no distribution to draw it from (logits of NaN or infinity)."""

    accepted: Tensor
    next_token: Tensor


class Rule(Protocol):
    """noise: (batch, gamma + 1) independent uniforms in [0, 1). A row's first one is for its next token, and the others
    are for its proposed tokens. The rule `coupled` takes other noise: see there."""

    def __call__(self, proposed: Proposed, noise: Any) -> Verdict: ...


def token(proposed: Proposed, noise: Tensor) -> Verdict:
    """Speculative sampling, Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1.

    A token x is kept with probability min(1, target(x) / draft(x)) if all tokens before it were kept. The first
    rejected token is replaced by a draw from norm(max(target - draft, 0))."""
    target_at, draft_at = _at_tokens(proposed)  # p_i(x_i), q_i(x_i), each (batch, gamma)

    # the paper rejects where r_i > p_i(x) / q_i(x); multiplied by q_i, so that 0/0 can't arise
    kept = cast(native(noise)[:, 1:], target_at) * draft_at < target_at
    kept &= _places(proposed) <= native(proposed.counts)[:, None]
    accepted = kept.cumprod(1).sum(1)  # n = min({i - 1 | r_i > p_i(x) / q_i(x)} + {gamma})

    # p'(x) = norm(max(0, p_{n+1}(x) - q_{n+1}(x)))
    return Verdict(back(accepted), _next_token(proposed, accepted, 1.0, noise[:, 0]))


def block(proposed: Proposed, noise: Tensor) -> Verdict:
    """Block verification, Sun et al. 2024 (arXiv 2403.10444), Algorithm 2. On average it never keeps fewer tokens than
    `token`.

    Every place gets a test, and all tokens up to the last place that passes are kept. So a token may be kept although
    the test at its own place failed."""
    target_at, draft_at = map(back, _at_tokens(proposed))
    counts, gamma, places = proposed.counts[:, None], proposed.tokens.shape[1], back(_places(proposed))

    # w_0 = 1, w_i = min(1, w_{i-1} * target(x_i) / draft(x_i)); 0 for a token of draft probability 0
    ratios = torch.where(draft_at > 0, target_at / draft_at, 0.0)
    weights = [torch.ones_like(noise[:, 0]).to(target_at)]
    for ratio in ratios.unbind(1):
        weights.append((weights[-1] * ratio).clamp(max=1))
    weight = torch.stack(weights, 1)  # (batch, gamma + 1)

    # Z_i = sum_x max(w_i * target(x) - draft(x), 0), h_i = Z_i / (Z_i + 1 - w_i) with 0/0 = 1; at the end h_i = w_i
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

    noise: (batch, gamma + 1, vocab), exponentials keyed by the position of the token that they draw. The drafter has
    drawn with the same exponentials. The target draws with them the token that it would draw without a draft, and a
    proposed token is kept where it equals the target's and all before it were kept."""
    tokens, counts = proposed.tokens, proposed.counts
    drawn = race(proposed.target_probs, noise)  # argmax(log p_i(x) + G_i(x)), (batch, gamma + 1)
    kept = (tokens == drawn[:, :-1]) & (back(_places(proposed)) <= counts[:, None])
    accepted = kept.long().cumprod(1).sum(1)
    return Verdict(accepted, drawn.gather(1, accepted[:, None])[:, 0])


def greedy(proposed: Sequence[int], chosen: Sequence[int]) -> tuple[int, int]:
    """(accepted, next token) for one row in greedy decoding. All lossless rules give the same there, so the token ids
    are compared and no probabilities are needed.

    chosen: the target's likeliest token at each place, one place more than are proposed. A proposed token is kept where
    it is the chosen one and all before it were kept."""
    accepted = 0
    while accepted < len(proposed) and proposed[accepted] == chosen[accepted]:
        accepted += 1
    return accepted, chosen[accepted]


def _next_token(proposed: Proposed, accepted: Any, weight: Any, uniforms: Tensor) -> Tensor:
    """The next tokens (batch,): drawn from norm(max(weight * target - draft, 0)) where a proposed token was rejected,
    and from the target elsewhere."""
    accepted, counts, target_probs = native(accepted), native(proposed.counts), native(proposed.target_probs)
    weights = native(weight) if isinstance(weight, Tensor) else filled(cast(counts, target_probs), weight)[:, None]
    return _residual(proposed, accepted[:, None], weights, (accepted < counts)[:, None]).draw(uniforms)


def _residual(proposed: Proposed, places: Any, weights: Any, drafted: Any) -> Residual:
    """max(weight * target - draft, 0) at some places of each row. places, weights, drafted: (batch, places of a
    row)."""
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
    """The places of the proposed tokens, counted from 1: 1 .. gamma."""
    return counting(proposed.tokens.shape[1], native(proposed.tokens)) + 1


RULES: dict[str, Rule] = {"token": token, "block": block, "coupled": coupled}


def rule_named(name: str) -> Rule:
    """The lossless rule of that name. Raises InvalidSetting for any other name."""
    if not isinstance(name, str) or name not in RULES:
        raise InvalidSetting(f"rule is {described(name)}: the lossless rules are {', '.join(sorted(RULES))}")
    return RULES[name]
