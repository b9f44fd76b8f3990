"""The drafters that `sybil compare --drafters` sets side by side: their names, and how each is made over one target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sybil.arguments import described
from sybil.decoding import Decoder
from sybil.drafting.window import AUTO
from sybil.drafts import LOOKUP, parse
from sybil.errors import InvalidSetting
from sybil.loading import maker
from sybil.models.folders import Checkpoint

NONE, DRAFT, SELF, ALL = "none", "draft", "self", "all"
SHORT = {"hybrid": "hybrid:lookup,self", "cascade": "cascade:lookup,self"}
EVERY = (NONE, DRAFT, "self:4", "self:8", "skip", LOOKUP, *SHORT.values())
"""The drafters that ALL stands for, in the order of the table. DRAFT counts only where there is a draft."""
_OF_TWO = re.compile("hybrid:|cascade:")


@dataclass(frozen=True, slots=True)
class Way:
    """A row of the table: a drafter and its gamma. gamma: the number of tokens that it proposes in a round, or "auto";
    None for decoding without a draft."""

    drafter: str
    gamma: int | str | None = None

    @property
    def name(self) -> str:
        """The row's name."""
        return self.drafter if self.gamma is None else f"{self.drafter}, gamma {self.gamma}"


def drafters_named(text: str, draft: str | None) -> tuple[str, ...]:
    """The drafters in a comma-separated list, each once, NONE first. The comma within a hybrid's or a cascade's name
    doesn't separate entries. draft: the pair's own. Raises InvalidSetting."""
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
    """The gammas in a comma-separated list, each once. Raises InvalidSetting."""
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


class Drafters:
    """Makes one target's drafters by their names. decoder: the target with the pair's own draft, if it has one.
    checkpoint: what the target was built from. dtype: the dtype in which the target is loaded. A part that several
    drafters share, such as a copy of the target, is made once."""

    def __init__(self, decoder: Decoder, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self._decoder, self._maker = decoder, maker(checkpoint, decoder.target, dtype)

    def by(self, drafter: str) -> Decoder:
        """The target with the drafter of that name. Raises the errors of sybil.errors where the drafter can't be
        made."""
        if drafter == NONE:
            return self._decoder.without_draft()
        if drafter != DRAFT:
            return self._decoder.with_draft(self._maker.make(parse(drafter)))
        if self._decoder.draft is None:
            raise InvalidSetting("there is no draft beside this target: name one by --draft")
        return self._decoder
