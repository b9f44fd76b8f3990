"""Prompts, in any of the forms that a caller may give, as token ids of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sybil.arguments import described
from sybil.errors import InvalidSetting, NotJudgeable
from sybil.judging.original import Original
from sybil.losslessness.endpoint import EndpointSubject
from sybil.losslessness.samples import Subject
from sybil.measuring import prompts
from sybil.measuring.prompts import Prompt
from sybil.pairs import PAIRS

Ids = tuple[int, ...]
Prompts = Sequence[Any] | Path | None
"""A list of texts, message lists ({"role", "content"}) or token id lists; a JSONL file of these; None: Sybil's own."""


def chosen(given: Prompts, target: object, count: int) -> list[Prompt | Ids]:
    """The prompts to judge by. A given list is taken whole. Of a file, or of Sybil's own prompts (those of the target's
    pair, if it is one), `count` are taken. Raises InvalidSetting."""
    if given is None or isinstance(given, Path):
        shipped = PAIRS[target].prompts if isinstance(target, str) and target in PAIRS else prompts.SHIPPED
        return [*prompts.spread(prompts.load(given, shipped), count)]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidSetting(f"prompts is {described(given)}: give a list of texts, of messages or of token ids")
    return [_one(number, each) for number, each in enumerate(given)]


def _one(number: int, given: Any) -> Prompt | Ids:
    ids = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        return Prompt(str(number), "own", given)
    if isinstance(ids, list | tuple) and ids and all(type(each) is int for each in ids):
        return tuple(ids)
    if isinstance(given, list | tuple) and given and all(_is_message(each) for each in given):
        said = tuple((str(each["role"]), str(each["content"])) for each in given)
        return Prompt(str(number), "own", "\n\n".join(content for _, content in said), said)
    raise InvalidSetting(f"prompt {number} is {described(given)}: give a text, messages, or a list of token ids")


def _is_message(each: Any) -> bool:
    return isinstance(each, Mapping) and {"role", "content"} <= each.keys()


def encoded(given: Sequence[Prompt | Ids], target: Original, subjects: Sequence[Subject]) -> list[list[int]]:
    """Prompts as token ids. Where a server takes only messages, a text becomes a user's message, and every decoder gets
    what the target's chat template makes of the messages. Raises InvalidSetting or NotJudgeable."""
    if target.tokenizer is None and any(isinstance(each, Prompt) for each in given):
        raise InvalidSetting("prompts are texts and the target has no tokenizer: give it (tokenizer), or token ids")
    by_chat = [each for each in subjects if isinstance(each, EndpointSubject) and each.by_chat]
    if not by_chat:
        return [_ids(each, target) for each in given]
    if target.chat_template is None:
        raise NotJudgeable(
            f"{by_chat[0].spoken.url} takes messages only, and the target has no chat template to make token ids of "
            "them by: give a target with one, or a server of completions"
        )
    told = [each for each in given if isinstance(each, Prompt)]
    if len(told) < len(given):
        raise NotJudgeable(f"{by_chat[0].spoken.url} takes messages only: give prompts as text or messages, not as ids")
    said = [replace(each, messages=each.messages or (("user", each.text),)) for each in told]
    ids = [_ids(each, target) for each in said]
    for served in by_chat:
        served.messages = {
            tuple(prompt): [{"role": role, "content": content} for role, content in each.messages]
            for prompt, each in zip(ids, said, strict=True)
        }
    return ids


def _ids(given: Prompt | Ids, target: Original) -> list[int]:
    return prompts.encode(given, target) if isinstance(given, Prompt) else [*given]
