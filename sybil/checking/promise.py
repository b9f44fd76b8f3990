"""What a drafter promises: how many times as fast as plain decoding, by how many of its tokens are kept.

The formula is that of gamma="auto" (drafting/auto.py), with one acceptance rate a for every place. A round of k drafted
tokens emits 1 + a + ... + a^k tokens on average. It costs d(k) + T(k + 1): the time to draft k tokens and the time to
verify k + 1, in units of a forward of the target over one token. Here both times grow linearly with k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sybil.drafting.auto import MOST, MOST_FOR_NOTHING
from sybil.drafting.costs import VERIFIED, SizedCosts
from sybil.models.storage import QUANTISED, Kept, Rounding

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)
IN_BFLOAT16, IN_BLOCKS = 0.09, 0.19
"""What each further token adds to a forward over one, as costs.VERIFIED says it of float32, where weights take work to
become float32 on a CPU: docs/performance.md has 9 tokens at 1.73 and at 2.3 to 2.7 times one."""


@dataclass(frozen=True, slots=True)
class Speed:
    """At an acceptance: how many times as fast as plain decoding, drafting as many tokens in a round as pay most."""

    acceptance: float
    times: float
    gamma: int


@dataclass(frozen=True, slots=True)
class Promise:
    """cost: a drafted token's, in forwards of the target over one token; verified: what each further token of a forward
    adds, in the same."""

    cost: float
    verified: float
    speeds: tuple[Speed, ...]


def promise(target_bytes: int, step_bytes: int, verified: float, acceptances: Sequence[float] = ACCEPTANCES) -> Promise:
    """By the bytes that a forward of the target over one token reads, and a drafted token."""
    most = MOST if step_bytes else MOST_FOR_NOTHING
    (cost,) = SizedCosts(most, target_bytes, [step_bytes], verified).steps
    return Promise(cost, verified, tuple(_best(cost, verified, most, each) for each in acceptances))


def speed_up(cost: float, verified: float, drafted: float, emitted: float) -> float:
    """How many times as fast as plain decoding rounds are in which so many tokens are drafted and emitted in the mean.
    cost, verified: see Promise."""
    return emitted / (1 + (cost + verified) * drafted)


def emitted(acceptance: float, gamma: int) -> float:
    """The tokens of a round that are to be expected."""
    return sum(acceptance**place for place in range(gamma + 1))


def verified_in(kept: Kept, *, on_cpu: bool) -> float:
    """What each further token adds to a target's forward, by what its weights are kept in."""
    if not on_cpu:
        return VERIFIED
    in_blocks = kept == "stored" or kept in QUANTISED or isinstance(kept, Rounding)
    return IN_BLOCKS if in_blocks else IN_BFLOAT16 if kept == "bfloat16" else VERIFIED


def _best(cost: float, verified: float, most: int, acceptance: float) -> Speed:
    times = [speed_up(cost, verified, gamma, emitted(acceptance, gamma)) for gamma in range(most + 1)]
    return Speed(acceptance, max(times), times.index(max(times)))
