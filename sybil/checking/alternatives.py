"""What would fit in place of what doesn't: other storages, other drafts, shorter texts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sybil.checking.memory import MemoryNeed, Setup, memory
from sybil.drafts import Lookup
from sybil.models import planning

SHORTEST = 256
"""Tokens of the shortest rows that are offered."""
Changes = list[tuple[tuple[str, ...], Setup]]
"""What was changed in each, and the setup."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """What to change, in words, and the memory that it takes then."""

    words: tuple[str, ...]
    memory: MemoryNeed


def alternatives(setup: Setup, free: int) -> tuple[Alternative, ...]:
    """Those that fit in so many bytes: one change each, and of lengths the longest; where none is enough, all three
    kinds together."""
    ones: Changes = [((), setup)]
    found = [*_fitting(_stored(ones), free), *_fitting(_drafted(ones), free), *_fitting(_shortened(ones), free)[:1]]
    if not found:
        for each in _stored(_drafted(ones)[-1:] or ones):
            found += _fitting(_shortened([each]), free)[:1]
    return tuple(found)


def _fitting(changes: Changes, free: int) -> list[Alternative]:
    reckoned = [Alternative(words, memory(setup)) for words, setup in changes]
    return [each for each in reckoned if each.memory.peak <= free]


def _stored(changes: Changes) -> Changes:
    """With the target's weights in every other storage."""
    found = []
    for words, setup in changes:
        target = setup.target
        for kept in planning.choices(target.checkpoint, target.device):
            if kept != target.kept:
                other = replace(target, kept=kept, dtype=planning.dtype_of(kept, target.dtype))
                word = "the file's own blocks (no dtype)" if kept == "stored" else f"dtype {kept}"
                found.append(((*words, word), replace(setup, target=other)))
    return found


def _drafted(changes: Changes) -> Changes:
    """With lookup, which takes no memory, in place of a draft, and without any."""
    others = (("draft lookup", Lookup()), ("no draft", None))
    return [
        ((*words, word), replace(setup, draft=draft, helper=None))
        for words, setup in changes
        if setup.draft is not None
        for word, draft in others
    ]


def _shortened(changes: Changes) -> Changes:
    """With half as many tokens a row, a quarter, and so on."""
    found = []
    for words, setup in changes:
        context = setup.extent.context // 2
        while context >= SHORTEST:
            extent = replace(setup.extent, context=context)
            found.append(((*words, f"context {context}"), replace(setup, extent=extent)))
            context //= 2
    return found
