"""Acceptance rules that keep more tokens and are faster, but change the output's distribution. Pure.

No such rule is a default, and none is among verification.RULES. A caller names a rule with its strength
("typical:0.09"), and the result is marked lossless=False. Each rule has the interface Rule of verification.py. Greedy
decoding calls the method `greedily`: the draft proposes its likeliest tokens, the rule judges them by the target's
distribution at temperature 1, and the token after the kept ones is the target's likeliest.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sybil.arguments import described
from sybil.errors import InvalidSetting
from sybil.sampling import Sampling, draw, probabilities
from sybil.transfer import count_to, integers, upload
from sybil.verification import Proposed, Rule, Verdict, token
from sybil.verification import rule_named as lossless_rule_named

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,18})?(e-?[0-9]{1,2})?", re.ASCII)
LEAST = 1e-6
"""The least strength. A probability divided by a strength stays far from float32's limits."""


class Lossy(ABC):
    """A rule that decides by the target's distribution alone whether a token is kept; it ignores the draft's
    probabilities.

    The first token that it doesn't keep is replaced by a draw from the target."""

    @abstractmethod
    def keeps(self, target_probs: Tensor, tokens: Tensor) -> Tensor:
        """Which of tokens (batch, n) are kept if all before them are: (batch, n), bool. target_probs: (batch, n,
        vocab), the target's distribution at each token's place."""

    def __call__(self, proposed: Proposed, noise: Tensor) -> Verdict:
        """See verification.Rule. Only the first number of each row of the noise is used."""
        accepted = self._accepted(proposed)
        at_end = proposed.target_probs[upload(count_to(len(accepted)), accepted.device), accepted]
        return Verdict(accepted, draw(at_end, noise[:, 0]))

    def greedily(self, tokens: Tensor, logits: Tensor, counts: Sequence[int]) -> list[int]:
        """How many of each row's tokens (batch, gamma) are kept when decoding greedily. logits: the target's, (batch,
        gamma + 1, vocab). counts: how many tokens of each row are proposed."""
        target_probs = probabilities(logits, Sampling(temperature=1.0))
        proposed = Proposed(tokens, None, target_probs, upload(integers(counts), tokens.device))
        accepted: list[int] = self._accepted(proposed).tolist()
        return accepted

    def _accepted(self, proposed: Proposed) -> Tensor:
        """(batch,): the number of tokens before the first one that isn't kept."""
        gamma = proposed.tokens.shape[1]
        kept = self.keeps(proposed.target_probs[:, :gamma], proposed.tokens)
        kept &= upload(count_to(gamma), kept.device) < proposed.counts[:, None]
        return kept.long().cumprod(1).sum(1)


@dataclass(frozen=True, slots=True)
class Lenience(Lossy):
    """Speculative sampling with lenience, Leviathan et al. 2023 (arXiv 2211.17192), appendix A.5.

    A token is kept with probability min(1, target / (l draft)). The first rejected token is replaced by a draw from
    norm(max(target / l - draft, 0)). So no token's probability is more than 1 / l times the target's. l = 1 is the
    lossless rule `token`. When decoding greedily, a token is kept where target >= l max(target)."""

    l: float  # noqa: E741  the paper's name

    def keeps(self, target_probs: Tensor, tokens: Tensor) -> Tensor:
        return Threshold(self.l).keeps(target_probs, tokens)

    def __call__(self, proposed: Proposed, noise: Tensor) -> Verdict:
        return token(replace(proposed, target_probs=proposed.target_probs / self.l), noise)


@dataclass(frozen=True, slots=True)
class Typical(Lossy):
    """Typical acceptance, Cai et al. 2024 (Medusa, arXiv 2401.10774), section 2.3.1.

    A token is kept where target > min(epsilon, delta exp(-H)). H is the entropy in nats of the target's distribution at
    that place: where the target is less sure, a smaller probability is enough. With epsilon 1 and a delta as large as
    the vocabulary no token is kept, and decoding is autoregressive."""

    epsilon: float
    delta: float

    def keeps(self, target_probs: Tensor, tokens: Tensor) -> Tensor:
        entropy = torch.special.entr(target_probs).sum(-1)
        return _at(target_probs, tokens) > (self.delta * torch.exp(-entropy)).clamp(max=self.epsilon)


@dataclass(frozen=True, slots=True)
class Threshold(Lossy):
    """A token is kept where target >= t max(target). When decoding greedily, t = 1 is lossless except at ties."""

    t: float

    def keeps(self, target_probs: Tensor, tokens: Tensor) -> Tensor:
        return _at(target_probs, tokens) >= self.t * target_probs.amax(-1)


@dataclass(frozen=True, slots=True)
class TopK(Lossy):
    """A token is kept where fewer than k others are likelier and its own target probability isn't 0. When decoding
    greedily, k = 1 is lossless except at ties."""

    k: int

    def keeps(self, target_probs: Tensor, tokens: Tensor) -> Tensor:
        own = _at(target_probs, tokens)
        return ((target_probs > own[..., None]).sum(-1) < self.k) & (own > 0)


def _at(probs: Tensor, tokens: Tensor) -> Tensor:
    """Each token's own probability, (batch, n)."""
    return probs.gather(-1, tokens[..., None]).squeeze(-1)


def _share(name: str, text: str) -> float:
    """A rule's strength from LEAST to 1. Raises InvalidSetting for anything else."""
    value = _number(name, text)
    if not LEAST <= value <= 1:
        raise InvalidSetting(f"{name} is {text}: use a number from {LEAST:g} to 1")
    return value


def _positive(name: str, text: str) -> float:
    """A rule's strength, LEAST at least. Raises InvalidSetting for anything else."""
    value = _number(name, text)
    if value < LEAST:
        raise InvalidSetting(f"{name} is {text}: use a number from {LEAST:g} on")
    return value


def _number(name: str, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise InvalidSetting(f"{name} is {described(text)}: use a number, such as 0.3")
    return float(text)


def _lenience(l: str) -> Lossy:  # noqa: E741  the paper's name
    return Lenience(_share("l", l))


def _typical(epsilon: str, delta: str | None = None) -> Lossy:
    """delta: by default the square root of epsilon, as in the paper's experiments."""
    share = _share("epsilon", epsilon)
    return Typical(share, share**0.5 if delta is None else _positive("delta", delta))


def _threshold(t: str) -> Lossy:
    return Threshold(_share("t", t))


def _top_k(k: str) -> Lossy:
    if not re.fullmatch("[1-9][0-9]{0,8}", k, re.ASCII):
        raise InvalidSetting(f"k is {described(k)}: use an integer of 1 or more")
    return TopK(int(k))


@dataclass(frozen=True, slots=True)
class _RuleKind:
    """usage: how a rule of this kind is named. made: makes the rule from 1 to `most` strengths, given as text."""

    usage: str
    made: Callable[..., Lossy]
    most: int = 1


KINDS: Mapping[str, _RuleKind] = {
    "lenience": _RuleKind("lenience:L", _lenience),
    "typical": _RuleKind("typical:EPSILON or typical:EPSILON:DELTA", _typical, most=2),
    "threshold": _RuleKind("threshold:T", _threshold),
    "topk": _RuleKind("topk:K", _top_k),
}
"""By the first word of a rule's name; the strength comes after a colon."""


def is_lossy(name: str) -> bool:
    """Whether the rule of that name changes the output's distribution. rule_named() must accept the name."""
    return name.split(":")[0] in KINDS


def rule_named(name: str) -> Rule:
    """The rule of that name: a lossless rule, or a lossy rule named with its strength. Raises InvalidSetting."""
    if not isinstance(name, str) or not is_lossy(name):
        return lossless_rule_named(name)
    first, *strengths = name.split(":")
    kind = KINDS[first]
    if not 1 <= len(strengths) <= kind.most:
        raise InvalidSetting(f"rule is {described(name)}, which isn't lossless: name its strength, {kind.usage}")
    try:
        return kind.made(*strengths)
    except InvalidSetting as error:
        raise InvalidSetting(f"rule is {described(name)}: {error}") from None
