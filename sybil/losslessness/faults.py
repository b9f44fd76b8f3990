"""Reports each kind of fault in one line. The same fault at many places is reported once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from sybil.losslessness.chisquare import POWER, Check, not_made

LISTED = 3  # how many kinds are reported, and how many places of each
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at one place of a decoder's answers."""

    where: str
    what: str


def certain(name: str, faults: Sequence[Fault], count: int, unit: str, holds: str) -> Check:
    """A check that a single fault fails with certainty. Its detectable effect is the rate of faults at which at least
    one shows with power 0.9. holds: what the check says where there is no fault."""
    if not count:
        return not_made(name, unit, 0, "there is nothing to look at")
    detectable = 1 - (1 - POWER) ** (1 / count)
    return Check(name=name, p_value=None, statistic=float(len(faults)), effect=len(faults) / count,
                 detectable=detectable, unit=unit, count=count, detail=listed(faults) if faults else holds,
                 failed=bool(faults))  # fmt: skip


def listed(faults: Iterable[Fault]) -> str:
    """A text of faults, in which those of one kind are together. Faults of one kind differ only in their numbers."""
    kinds: dict[str, list[Fault]] = {}
    for fault in faults:
        kinds.setdefault(kind(fault.what), []).append(fault)
    more = len(kinds) - LISTED
    told = [_together(each) for each in islice(kinds.values(), LISTED)]
    return "; ".join(told) + (f"; and {more} more kinds" if more > 0 else "")


def counted(doubts: Mapping[str, int]) -> list[str]:
    """A line for each kind of doubt, with the number of answers that have it."""
    kinds: dict[str, list[str]] = {}
    for doubt in doubts:
        kinds.setdefault(kind(doubt), []).append(doubt)
    lines = []
    for alike in kinds.values():
        count = sum(doubts[each] for each in alike)
        such = ", for instance" if len(alike) > 1 else ""
        lines.append(f"{count} {'answer is' if count == 1 else 'answers are'} in doubt{such}: {alike[0]}")
    return lines


def kind(message: str) -> str:
    """A message without its numbers."""
    return NUMBER.sub("#", message)


def _together(faults: Sequence[Fault]) -> str:
    same = len({fault.what for fault in faults}) == 1
    told = [fault.where if same else f"{fault.where}: {fault.what}" for fault in faults[:LISTED]]
    more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    return "; ".join(told) + more + (f": {faults[0].what}" if same else "")
