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
"""What each further token adds to a forward, in forwards over one token, for weights that a CPU has to convert to
float32 first. costs.VERIFIED is the same number for float32. docs/performance.md measures forwards over 9 tokens at
1.73 (bfloat16) and 2.3 to 2.7 (blocks) times a forward over one."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed at an acceptance rate. gamma: the tokens a round that pay most. times: as fast as plain decoding."""

    acceptance: float
    times: float
    gamma: int


@dataclass(frozen=True, slots=True)
class Promise:
    """The speeds that a drafter promises, and the costs that they follow from. Both costs are in units of a forward of
    the target over one token. cost: of drafting one token. verified: what each further token adds to a forward."""

    cost: float
    verified: float
    speeds: tuple[Speed, ...]


def promise(target_bytes: int, step_bytes: int, verified: float, acceptances: Sequence[float] = ACCEPTANCES) -> Promise:
    """The promise of a drafter, at each acceptance rate. target_bytes: what a forward of the target over one token
    reads. step_bytes: what drafting one token reads. verified: see Promise."""
    most = MOST if step_bytes else MOST_FOR_NOTHING
    (cost,) = SizedCosts(most, target_bytes, [step_bytes], verified).steps
    return Promise(cost, verified, tuple(_best(cost, verified, most, each) for each in acceptances))


def speed_up(cost: float, verified: float, drafted: float, emitted: float) -> float:
    """How many times as fast as plain decoding a drafter is: emitted / (1 + (cost + verified) * drafted). drafted,
    emitted: mean tokens a round. cost, verified: see Promise."""
    return emitted / (1 + (cost + verified) * drafted)


def emitted(acceptance: float, gamma: int) -> float:
    """The expected number of tokens that a round of gamma drafted tokens emits: 1 + a + ... + a^gamma."""
    return sum(acceptance**place for place in range(gamma + 1))


def verified_in(kept: Kept, *, on_cpu: bool) -> float:
    """What each further token adds to a forward of the target (see Promise), by how its weights are kept."""
    if not on_cpu:
        return VERIFIED
    in_blocks = kept == "stored" or kept in QUANTISED or isinstance(kept, Rounding)
    return IN_BLOCKS if in_blocks else IN_BFLOAT16 if kept == "bfloat16" else VERIFIED


def _best(cost: float, verified: float, most: int, acceptance: float) -> Speed:
    times = [speed_up(cost, verified, gamma, emitted(acceptance, gamma)) for gamma in range(most + 1)]
    return Speed(acceptance, max(times), times.index(max(times)))
