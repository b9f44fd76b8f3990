"""What a drafter promises: how many times as fast as plain decoding, by how many of its tokens are kept.

DESIGN's formula: a round of k drafted tokens, each kept with the chance a where those before it are, emits
1 + a + a^2 + ... + a^k tokens and costs d(k) + T(k + 1), in forwards of the target over one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sybil.drafting.auto import MOST, MOST_FOR_NOTHING
from sybil.drafting.costs import VERIFIED, SizedCosts
from sybil.models.storage import Kept, Rounding

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
    costs = costs_of(target_bytes, step_bytes, verified)
    return Promise(costs.steps[0], verified, tuple(_best(costs, each) for each in acceptances))


def costs_of(target_bytes: int, step_bytes: int, verified: float) -> SizedCosts:
    """What rounds cost."""
    return SizedCosts(MOST if step_bytes else MOST_FOR_NOTHING, target_bytes, [step_bytes], verified)


def speed_up(costs: SizedCosts, gamma: int, emitted: float) -> float:
    """How many times as fast as plain decoding rounds are that draft gamma tokens and emit so many."""
    return emitted / (costs.draft[0][gamma] + costs.verify[gamma + 1])


def emitted(acceptance: float, gamma: int) -> float:
    """The tokens of a round that are to be expected."""
    return sum(acceptance**place for place in range(gamma + 1))


def verified_in(kept: Kept, *, on_cpu: bool) -> float:
    """What each further token adds to a target's forward, by what its weights are kept in."""
    if not on_cpu:
        return VERIFIED
    in_blocks = kept == "stored" or isinstance(kept, Rounding)
    return IN_BLOCKS if in_blocks else IN_BFLOAT16 if kept == "bfloat16" else VERIFIED


def _best(costs: SizedCosts, acceptance: float) -> Speed:
    times = [speed_up(costs, gamma, emitted(acceptance, gamma)) for gamma in range(costs.most + 1)]
    return Speed(acceptance, max(times), times.index(max(times)))
