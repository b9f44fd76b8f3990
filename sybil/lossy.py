"""The acceptance rules that people use to go faster, and that change the output's distribution. Pure.

None is a default, and none is among verification.RULES: a caller names one with its strength ("typical:0.09"), and the
result is marked lossless=False. Each is a Rule of verification.py. When decoding greedily a Lossy rule is asked by
`greedily`: the draft proposes its likeliest tokens, the rule judges them by the target's distribution at temperature
1, and the token after those kept is the target's likeliest.
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
"""The least strength: what is divided by one is far from float32's ends."""


class Lossy(ABC):
    """A rule that keeps a token by what the target's distribution says of it alone: no draft's probability is asked.

    After the first token that it doesn't keep comes one drawn from the target itself."""

    @abstractmethod
    def keeps(self, target_probs: Tensor, tokens: Tensor) -> Tensor:
        """Which of tokens (batch, n) stay, were all before them kept: (batch, n), bool. target_probs: (batch, n,
        vocab), those that each token is judged by."""

    def __call__(self, proposed: Proposed, noise: Tensor) -> Verdict:
        """See verification.Rule; of the noise only a row's first number is used."""
        accepted = self._accepted(proposed)
        at_end = proposed.target_probs[upload(count_to(len(accepted)), accepted.device), accepted]
        return Verdict(accepted, draw(at_end, noise[:, 0]))

    def greedily(self, tokens: Tensor, logits: Tensor, counts: Sequence[int]) -> list[int]:
        """How many of each row's tokens (batch, gamma) stay when decoding greedily; logits: the target's, (batch,
        gamma + 1, vocab); counts: how many tokens of a row are proposed."""
        target_probs = probabilities(logits, Sampling(temperature=1.0))
        proposed = Proposed(tokens, None, target_probs, upload(integers(counts), tokens.device))
        accepted: list[int] = self._accepted(proposed).tolist()
        return accepted

    def _accepted(self, proposed: Proposed) -> Tensor:
        """(batch,): the tokens before the first one that isn't kept."""
        gamma = proposed.tokens.shape[1]
        kept = self.keeps(proposed.target_probs[:, :gamma], proposed.tokens)
        kept &= upload(count_to(gamma), kept.device) < proposed.counts[:, None]
        return kept.long().cumprod(1).sum(1)


@dataclass(frozen=True, slots=True)
class Lenience(Lossy):
    """Speculative sampling with lenience, Leviathan et al. 2023 (arXiv 2211.17192), appendix A.5.

    A token is kept with probability min(1, target / (l draft)); the first one rejected is replaced by a draw from
    norm(max(target / l - draft, 0)). So no token comes more than 1 / l times as often as the target says it. l = 1 is
    the lossless rule `token`. Greedily, a token is kept where target >= l max(target)."""

    l: float  # noqa: E741  the paper's name

    def keeps(self, target_probs: Tensor, tokens: Tensor) -> Tensor:
        return Threshold(self.l).keeps(target_probs, tokens)

    def __call__(self, proposed: Proposed, noise: Tensor) -> Verdict:
        return token(replace(proposed, target_probs=proposed.target_probs / self.l), noise)


@dataclass(frozen=True, slots=True)
class Typical(Lossy):
    """Typical acceptance, Cai et al. 2024 (Medusa, arXiv 2401.10774), section 2.3.1.

    A token is kept where target > min(epsilon, delta exp(-H)), H being the entropy of the target's distribution there,
    in nats: where the target is unsure, less is enough. Nothing is kept with epsilon 1 and a delta as large as the
    vocabulary, and decoding is plain then."""

    epsilon: float
    delta: float

    def keeps(self, target_probs: Tensor, tokens: Tensor) -> Tensor:
        entropy = torch.special.entr(target_probs).sum(-1)
        return _at(target_probs, tokens) > (self.delta * torch.exp(-entropy)).clamp(max=self.epsilon)


@dataclass(frozen=True, slots=True)
class Threshold(Lossy):
    """A token is kept where target >= t max(target). Greedily t = 1 is lossless, but for ties."""

    t: float

    def keeps(self, target_probs: Tensor, tokens: Tensor) -> Tensor:
        return _at(target_probs, tokens) >= self.t * target_probs.amax(-1)


@dataclass(frozen=True, slots=True)
class TopK(Lossy):
    """A token is kept where fewer than k others are likelier, and the target gives it any probability. Greedily k = 1
    is lossless, but for ties."""

    k: int

    def keeps(self, target_probs: Tensor, tokens: Tensor) -> Tensor:
        own = _at(target_probs, tokens)
        return ((target_probs > own[..., None]).sum(-1) < self.k) & (own > 0)


def _at(probs: Tensor, tokens: Tensor) -> Tensor:
    """Each token's own probability, (batch, n)."""
    return probs.gather(-1, tokens[..., None]).squeeze(-1)


def _share(name: str, text: str) -> float:
    """Raises InvalidSetting for what is no number from LEAST to 1."""
    value = _number(name, text)
    if not LEAST <= value <= 1:
        raise InvalidSetting(f"{name} is {text}: use a number from {LEAST:g} to 1")
    return value


def _positive(name: str, text: str) -> float:
    """Raises InvalidSetting for what is no number from LEAST on."""
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
    """Where delta isn't said it is epsilon's square root, as in the paper's experiments."""
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
    """made: the rule of one strength, or of as many as `most`; usage: how it is named."""

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
    """Whether a rule of that name, which rule_named() takes, changes the output's distribution."""
    return name.split(":")[0] in KINDS


def rule_named(name: str) -> Rule:
    """The rule of that name, a lossless one or, with its strength, a lossy one; raises InvalidSetting."""
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
