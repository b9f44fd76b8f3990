"""What a decoder under judgement is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Protocol

from sybil.losslessness.speculation import Speculation
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
    says so; doubt: why tokens may not be those that were really drawn, "" where they surely are; speculation: what was
    drafted and accepted for it, where the decoder counts."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    places: tuple[int, ...] | None = None
    doubt: str = ""
    speculation: Speculation | None = None


class Subject(Protocol):
    """A decoder under judgement. It may have notes (list[str]: what can't be checked of it), a speculation (its counts
    where its samples have none), takes(request) where there are requests that can't be put to it, check(plan), which
    raises InvalidSetting where a whole plan can't, widths() and several(), see below.

    Where its sample() takes `first` besides, it can be asked from any prompt on: first is the number of the first
    prompt given among all those that the seed is for. Then it may have a batch (int): how many prompts, from a multiple
    of that number on, it answers together."""

    name: str

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        """A Sample for each prompt, in order, drawn independently; the same seed repeats them all, where the decoder
        can be seeded. Raises the errors of sybil.errors."""


def goes_on_at(subject: Subject, count: int) -> int:
    """Which prompt a subject can be asked for next, where the answers to the first `count` are there."""
    if "first" not in signature(subject.sample).parameters:
        return 0
    batch: int = getattr(subject, "batch", 1)
    return count - count % batch


def answered(
    subject: Subject, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int
) -> Iterator[Sample]:
    """Those to the prompts from number first on."""
    if not first:
        return subject.sample(prompts, request, seed)
    asked: Callable[..., Iterator[Sample]] = subject.sample
    return asked(prompts[first:], request, seed, first=first)


def answered_each(
    subject: Subject, prompts: Sequence[Sequence[int]], requests: Sequence[Request], seed: int
) -> Iterator[Sample]:
    """Those to prompts with a request each: at once where the subject has a method several(prompts, requests, seed),
    one after the other elsewhere."""
    at_once: Callable[..., Iterator[Sample]] | None = getattr(subject, "several", None)
    if at_once is not None:
        yield from at_once(prompts, requests, seed)
        return
    for prompt, request in zip(prompts, requests, strict=True):
        yield from subject.sample([prompt], request, seed)


def widths(subject: Subject) -> Mapping[str, Subject]:
    """The same decoder verifying more or fewer tokens at once, by what is changed ("gamma 1"); empty where it doesn't
    let one choose."""
    offered: Callable[[], Mapping[str, Subject]] = getattr(subject, "widths", dict)
    return offered()
