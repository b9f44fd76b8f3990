"""What a decoder under judgement is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sybil.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What every decoder understands. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch a filter off.

    A sequence ends with the first of eos_token_ids (kept), with the token that completes a stop string in the new
    text (kept), or after max_new_tokens."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    eos_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    @property
    def sampling(self) -> Sampling:
        """The distribution that each token is to be drawn from."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence. tokens: new ones only; places: of each token its place in its block, from 0, where the decoder
    says so; doubt: why tokens may not be those that were really drawn, "" where they surely are."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    places: tuple[int, ...] | None = None
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Speculation:
    """Tokens that a decoder drafted, and those of them that it accepted, as it counts them itself. source: where it
    says so."""

    drafted: int
    accepted: int
    source: str = ""

    def __add__(self, other: Speculation) -> Speculation:
        return replace(self, drafted=self.drafted + other.drafted, accepted=self.accepted + other.accepted)

    def __sub__(self, other: Speculation) -> Speculation:
        return replace(self, drafted=self.drafted - other.drafted, accepted=self.accepted - other.accepted)

    @property
    def told(self) -> str:
        """In a line."""
        said = f" (by {self.source})" if self.source else ""
        if not self.drafted:
            return f"speculation not observed: the decoder counts no drafted token{said}"
        if not self.accepted:
            return f"speculation not observed: of {self.drafted} drafted tokens the decoder accepted none{said}"
        share = self.accepted / self.drafted
        return f"speculation: {self.drafted} tokens drafted, {self.accepted} ({share:.0%}) accepted{said}"


class Subject(Protocol):
    """A decoder under judgement. It may have notes (list[str]: what can't be checked of it), a speculation,
    takes(request) where there are requests that can't be put to it, check(plan), which raises InvalidSetting where a
    whole plan can't, and widths(), see below."""

    name: str

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        """A Sample for each prompt, in order, drawn independently; the same seed repeats them all, where the decoder
        can be seeded. Raises the errors of sybil.errors."""


def widths(subject: Subject) -> Mapping[str, Subject]:
    """The same decoder verifying more or fewer tokens at once, by what is changed ("gamma 1"); empty where it doesn't
    let one choose."""
    offered: Callable[[], Mapping[str, Subject]] = getattr(subject, "widths", dict)
    return offered()
