"""Asks a decoder under judgement, and refuses answers that can't be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from sybil.errors import NotJudgeable
from sybil.losslessness.child import LARGEST_ID, MOST_TOKENS
from sybil.losslessness.kept import Kept
from sybil.losslessness.samples import Request, Sample, Subject, answered, answered_each, goes_on_at

MANY = 8  # of at least so many prompts, a model doesn't repeat most


def ask(
    subject: Subject,
    prompts: Sequence[tuple[int, ...]],
    requests: Sequence[Request],
    seed: int,
    vocab_size: int,
    done: Callable[[int], None] = lambda count: None,
    kept: Kept | None = None,
    phase: str = "",
) -> list[Sample]:
    """The decoder's answers. requests: one for each prompt. done: called with the number of answers so far.

    An answer that was kept isn't asked for again. New answers are kept as they come, under the phase's name. Raises
    NotJudgeable for an answer that can't be judged."""
    kept, is_one = kept or Kept(), len(set(requests)) <= 1
    keys = kept.keys(phase, prompts, requests, seed)
    known = kept.leading(keys, prompts)
    first = len(known) if len(known) == len(prompts) or not is_one else goes_on_at(subject, len(known))
    name, samples, whole = subject.name, list[Sample](), 0
    for sample in chain(known[:first], _asked(subject, prompts, requests, seed, first)):
        if len(samples) == len(prompts) or tuple(sample.prompt) != prompts[len(samples)]:
            raise NotJudgeable(f"{name} answers other prompts than it was given: give one sample a prompt, in order")
        _refuse(name, sample, vocab_size)
        begins = len(sample.prompt) >= 4 and sample.tokens[: len(sample.prompt)] == tuple(sample.prompt)
        # An answer that begins with its prompt is suspicious, but a model may repeat a prompt. Such an answer keeps to
        # max_new_tokens, and most other answers don't repeat their prompts.
        too_long = len(sample.tokens) > requests[len(samples)].max_new_tokens
        whole += begins and (too_long or (is_one and len(prompts) >= MANY))
        if keys and len(samples) >= first and not (begins and too_long):
            kept.keep(keys[len(samples)], phase, sample)
        samples.append(sample)
        done(len(samples))
    if len(samples) != len(prompts):
        raise NotJudgeable(f"{name} gives {len(samples)} samples for {len(prompts)} prompts: give one a prompt")
    if 2 * whole > len(samples):
        raise NotJudgeable(f"{name} returns the prompt with its answer: give the new tokens only")
    return samples


def _asked(
    subject: Subject, prompts: Sequence[tuple[int, ...]], requests: Sequence[Request], seed: int, first: int
) -> Iterator[Sample]:
    """The decoder's answers to the prompts from number first on."""
    if first == len(prompts):
        return iter(())
    if len(set(requests)) == 1:
        return answered(subject, prompts, requests[0], seed, first)
    return answered_each(subject, prompts[first:], requests[first:], seed)


def _refuse(name: str, sample: Sample, vocab_size: int) -> None:
    if len(sample.tokens) > MOST_TOKENS:
        raise NotJudgeable(
            f"{name} gives {len(sample.tokens)} tokens in one answer, and {MOST_TOKENS} are the most that are "
            "judged: give the new tokens only"
        )
    alien = [token for token in sample.tokens if not 0 <= token < vocab_size]
    if alien:
        shown = alien[0] if abs(alien[0]) <= LARGEST_ID else "of more than 31 bits"
        raise NotJudgeable(
            f"{name} gives token id {shown}, outside the target's vocabulary of {vocab_size}: give the target that it "
            "decodes for"
        )
    if sample.places is not None and len(sample.places) != len(sample.tokens):
        given = f"{len(sample.places)} places for {len(sample.tokens)} tokens"
        raise NotJudgeable(f"{name} gives {given}: give one a token, or none")
