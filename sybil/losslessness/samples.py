"""The requests to a decoder under judgement, its answers, and its interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Protocol

from sybil.losslessness.speculation import Speculation
from sybil.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a decoder is asked for. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch a filter off.

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
        """The sampling settings that define the distribution of each token."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence. tokens: only the new ones. places: each token's place in its block, from 0, if the decoder gives
    it. doubt: why the tokens may not be those that were drawn, "" if they certainly are. speculation: the tokens
    drafted and accepted for this sequence, if the decoder counts them."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    places: tuple[int, ...] | None = None
    doubt: str = ""
    speculation: Speculation | None = None


class Subject(Protocol):
    """A decoder under judgement.

    It may also have: notes (list[str]: what can't be checked of it); speculation (its counts, if its samples have
    none); takes(request), which is false for a request that can't be put to it; check(plan), which raises
    InvalidSetting for a plan that can't be put to it; widths() and several(), which the functions below describe.

    If its sample() has a further parameter `first`, it can be asked from any prompt on: first is the number of the
    first given prompt among all prompts that the seed is for. Then it may have batch (int): how many prompts it answers
    together, from a multiple of that number on."""

    name: str

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        """A Sample for each prompt, in order, drawn independently. The same seed repeats all of them, if the decoder
        can be seeded. Raises the errors of sybil.errors."""


def goes_on_at(subject: Subject, count: int) -> int:
    """The number of the prompt from which a subject can be asked, if the answers to the first `count` are there."""
    if "first" not in signature(subject.sample).parameters:
        return 0
    batch: int = getattr(subject, "batch", 1)
    return count - count % batch


def answered(
    subject: Subject, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int
) -> Iterator[Sample]:
    """The subject's answers to the prompts from number `first` on."""
    if not first:
        return subject.sample(prompts, request, seed)
    asked: Callable[..., Iterator[Sample]] = subject.sample
    return asked(prompts[first:], request, seed, first=first)


def answered_each(
    subject: Subject, prompts: Sequence[Sequence[int]], requests: Sequence[Request], seed: int
) -> Iterator[Sample]:
    """The subject's answers to prompts that have a request each: together, if the subject has a method several(prompts,
    requests, seed), or else one after the other."""
    at_once: Callable[..., Iterator[Sample]] | None = getattr(subject, "several", None)
    if at_once is not None:
        yield from at_once(prompts, requests, seed)
        return
    for prompt, request in zip(prompts, requests, strict=True):
        yield from subject.sample([prompt], request, seed)


def widths(subject: Subject) -> Mapping[str, Subject]:
    """Variants of a decoder that verify more or fewer tokens at once, by what is changed ("gamma 1"). Empty for a
    decoder that doesn't let one choose."""
    offered: Callable[[], Mapping[str, Subject]] = getattr(subject, "widths", dict)
    return offered()
