"""Setups that fit in memory, for a setup that doesn't: other storages, other drafts, shorter texts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sybil.checking.memory import MemoryNeed, Setup, memory
from sybil.drafts import Lookup
from sybil.models import planning

SHORTEST = 256
"""The smallest context that is offered, in tokens a row."""
Changes = list[tuple[tuple[str, ...], Setup]]
"""Each entry: what was changed, in words, and the changed setup."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A change to a setup, in words, and the memory that the changed setup needs."""

    words: tuple[str, ...]
    memory: MemoryNeed


def alternatives(setup: Setup, free: int) -> tuple[Alternative, ...]:
    """The alternatives to a setup whose peak fits in `free` bytes.

    Each makes one change. Of the shorter contexts only the longest that fits is given. Where no single change is
    enough, the storage, the draft and the context are changed together. Raises WeightsMismatch."""
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
    """Each setup with the target's weights in every other storage."""
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
    """Each setup that has a draft, with lookup (which takes no memory) in its place, and without a draft."""
    others = (("draft lookup", Lookup()), ("no draft", None))
    return [
        ((*words, word), replace(setup, draft=draft, helper=None))
        for words, setup in changes
        if setup.draft is not None
        for word, draft in others
    ]


def _shortened(changes: Changes) -> Changes:
    """Each setup with a half, a quarter and so on of its tokens a row, down to SHORTEST."""
    found = []
    for words, setup in changes:
        context = setup.extent.context // 2
        while context >= SHORTEST:
            extent = replace(setup.extent, context=context)
            found.append(((*words, f"context {context}"), replace(setup, extent=extent)))
            context //= 2
    return found
