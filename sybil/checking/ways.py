"""What would fit in place of what doesn't: other storages, other drafts, shorter texts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sybil.checking.memory import Memory, Plan, memory
from sybil.drafts import Lookup
from sybil.models import planning

SHORTEST = 256
"""Tokens of the shortest rows that are offered."""
Plans = list[tuple[tuple[str, ...], Plan]]
"""What was changed in each, and the plan."""


@dataclass(frozen=True, slots=True)
class Way:
    """What to change, in words, and the memory that it takes then."""

    words: tuple[str, ...]
    memory: Memory


def ways(plan: Plan, free: int) -> tuple[Way, ...]:
    """Those that fit in so many bytes: one change each, and of lengths the longest; where none is enough, all three
    kinds together."""
    ones: Plans = [((), plan)]
    found = [*_fitting(_stored(ones), free), *_fitting(_drafted(ones), free), *_fitting(_shortened(ones), free)[:1]]
    if not found:
        for each in _stored(_drafted(ones)[-1:] or ones):
            found += _fitting(_shortened([each]), free)[:1]
    return tuple(found)


def _fitting(plans: Plans, free: int) -> list[Way]:
    reckoned = [Way(words, memory(plan)) for words, plan in plans]
    return [each for each in reckoned if each.memory.peak <= free]


def _stored(plans: Plans) -> Plans:
    """With the target's weights in every other storage."""
    found = []
    for words, plan in plans:
        target = plan.target
        for kept in planning.choices(target.checkpoint, target.device):
            if kept != target.kept:
                other = replace(target, kept=kept, dtype=planning.dtype_of(kept, target.dtype))
                word = "the file's own blocks (no dtype)" if kept == "stored" else f"dtype {kept}"
                found.append(((*words, word), replace(plan, target=other)))
    return found


def _drafted(plans: Plans) -> Plans:
    """With lookup, which takes no memory, in place of a draft, and without any."""
    others = (("draft lookup", Lookup()), ("no draft", None))
    return [
        ((*words, word), replace(plan, draft=draft, helper=None))
        for words, plan in plans
        if plan.draft is not None
        for word, draft in others
    ]


def _shortened(plans: Plans) -> Plans:
    """With half as many tokens a row, a quarter, and so on."""
    found = []
    for words, plan in plans:
        context = plan.asked.context // 2
        while context >= SHORTEST:
            asked = replace(plan.asked, context=context)
            found.append(((*words, f"context {context}"), replace(plan, asked=asked)))
            context //= 2
    return found
