"""The drafters that `sybil compare --drafters` sets side by side: their names, and how each is made over one target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sybil.arguments import described
from sybil.decoding import Decoder
from sybil.drafting import DrafterFactory, DraftLookup
from sybil.drafting.window import AUTO
from sybil.drafts import LOOKUP
from sybil.errors import InvalidSetting

NONE, DRAFT, ALL = "none", "draft", "all"
SHORT = {"hybrid": "hybrid:lookup,self", "cascade": "cascade:lookup,self"}
EVERY = (NONE, DRAFT, "self:4", "self:8", "skip", LOOKUP, *SHORT.values())
"""What ALL stands for, in the order of the table; DRAFT where there is one."""
_OF_TWO = re.compile("hybrid:|cascade:")


@dataclass(frozen=True, slots=True)
class Way:
    """A row of the table: a drafter and the tokens it proposes in a round, a number or "auto"; None without a draft."""

    drafter: str
    gamma: int | str | None = None

    @property
    def name(self) -> str:
        """What rows call it."""
        return self.drafter if self.gamma is None else f"{self.drafter}, gamma {self.gamma}"


def drafters_named(text: str, draft: str | None) -> tuple[str, ...]:
    """The drafters of a list with commas, NONE first, each once; a hybrid or a cascade takes a comma of its own. draft:
    the pair's own. Raises InvalidSetting."""
    parts, found = text.split(","), [NONE]
    while parts:
        name = parts.pop(0).strip()
        while parts and name.count(",") < len(_OF_TWO.findall(name)):
            name += f",{parts.pop(0).strip()}"
        if not name:
            raise InvalidSetting(f"drafters is {described(text)}: name some, such as self,lookup or all")
        if name == ALL:
            found += [each for each in EVERY if each != DRAFT or draft is not None]
        else:
            found.append(SHORT.get(name, name))
    return tuple(dict.fromkeys(found))


def gammas_named(text: str) -> tuple[int | str, ...]:
    """The gammas of a list with commas, each once; raises InvalidSetting."""
    found: list[int | str] = []
    for name in (each.strip() for each in text.split(",")):
        if name != AUTO and not (name.isascii() and name.isdecimal() and len(name) < 5 and int(name)):
            raise InvalidSetting(f"gammas is {described(text)}: name numbers from 1 on, and auto, such as auto,4,8")
        found.append(name if name == AUTO else int(name))
    return tuple(dict.fromkeys(found))


def ways(drafters: Sequence[str], gammas: Sequence[int | str]) -> tuple[Way, ...]:
    """Every drafter at every gamma."""
    return tuple(
        way
        for drafter in drafters
        for way in ([Way(drafter)] if drafter == NONE else [Way(drafter, gamma) for gamma in gammas])
    )


class Makers:
    """Makes the drafters of one target, each once. decoder: the target with the pair's own draft, if it has one."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._made: dict[str, DrafterFactory | None] = {NONE: None}

    def decoder(self, drafter: str) -> Decoder:
        """The target with that drafter; raises the errors of sybil.errors where it can't be had."""
        if drafter not in self._made:
            self._made[drafter] = self._make(drafter)
        factory = self._made[drafter]
        return self._decoder.without_draft() if factory is None else self._decoder.with_draft(factory)

    def _make(self, drafter: str) -> DrafterFactory:
        if drafter == DRAFT:
            if self._decoder.draft is None:
                raise InvalidSetting("there is no draft beside this target: name one by --draft")
            return self._decoder.draft
        if drafter == LOOKUP:
            return DraftLookup()
        raise InvalidSetting(f"drafter is {described(drafter)}, which isn't there")
