"""Prompts from three datasets of the hub, one for each domain, by Hugging Face's package `datasets`.

A dataset is streamed, so that only its first rows are fetched. The hub's answers aren't trusted: the number of rows and
the lengths and kinds of their texts are checked before prompts are made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer

from sybil.arguments import described, integer
from sybil.errors import DatasetUnusable, HubUnreachable, InvalidSetting, PackageMissing, told
from sybil.measuring.prompts import Prompt
from sybil.measuring.promptset import COUNT, DOMAINS, PromptSet, shuffled

ROWS = 2_000
"""The first rows of a dataset, from which prompts are drawn."""
LONGEST = 20_000
"""The most characters of a row's text. A longer article is cut; any other longer text is skipped."""
PATIENCE = 10.0
"""The seconds in which the hub must confirm that a dataset exists."""
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
INSTEAD = "use the prompts that ship with Sybil"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a domain's prompts come from.

    column: the column of the text from which a prompt is made. empty: a column that must be empty, because the text
    would refer to it otherwise. tokens: how many of the text's tokens are kept; None for all. request: added after the
    text."""

    domain: str
    dataset: str
    configuration: str | None
    split: str
    column: str
    empty: str | None = None
    tokens: int | None = None
    request: str = ""


ORIGINS: Mapping[str, Origin] = {
    each.domain: each
    for each in (
        Origin("code", "openai/openai_humaneval", None, "test", "prompt"),
        Origin("conversation", "tatsu-lab/alpaca", None, "train", "instruction", empty="input"),
        Origin(
            "summarization",
            "abisee/cnn_dailymail",
            "3.0.0",
            "test",
            "article",
            tokens=512,
            request="\n\nSummarize the above article:",
        ),
    )
}


def fetch(tokenizer: Tokenizer, count: int = COUNT, seed: int = 0, domains: Sequence[str] = DOMAINS) -> PromptSet:
    """At most `count` prompts of the hub's datasets, equally many of each domain. An article is cut to 512 tokens of
    the tokenizer.

    Raises PackageMissing where `datasets` isn't installed, HubUnreachable, and DatasetUnusable where a dataset has
    other columns or no usable row."""
    count, chosen = integer("count", count, least=1), list(dict.fromkeys(domains))
    for domain in chosen:
        if domain not in ORIGINS:
            raise InvalidSetting(f"there is no domain {described(domain)} on the hub: use {', '.join(ORIGINS)}")
    of_each = -(-count // max(len(chosen), 1))
    found = [prompt for domain in chosen for prompt in _drawn(ORIGINS[domain], tokenizer, of_each, seed)]
    return PromptSet(tuple(found)).sample(count, seed)


def _drawn(origin: Origin, tokenizer: Tokenizer, count: int, seed: int) -> list[Prompt]:
    """A domain's prompts. The number of a row in its dataset is in the prompt's id."""
    texts = {f"{origin.domain}-{number}": text for number, text in _texts(origin)}
    if not texts:
        raise DatasetUnusable(f"none of the first {ROWS} rows of {origin.dataset} has a text to use: {INSTEAD}")
    return [_prompt(name, texts[name], origin, tokenizer) for name in shuffled(texts, seed)[:count]]


def _texts(origin: Origin) -> Iterator[tuple[int, str]]:
    """(number, text) of each usable row among the first rows; no text twice."""
    seen = set()
    for number, row in enumerate(_rows(origin)):
        text = _text(row, origin)
        if text and text not in seen:
            seen.add(text)
            yield number, text


def _rows(origin: Origin) -> Iterator[object]:
    """The first rows of a dataset, all of one commit."""
    from huggingface_hub import dataset_info

    try:
        from datasets import load_dataset
    except ImportError:
        raise PackageMissing(
            f"the package datasets, which reads {origin.dataset}, isn't installed: pip install datasets, or {INSTEAD}"
        ) from None
    try:
        commit = dataset_info(origin.dataset, timeout=PATIENCE).sha  # fails at once; load_dataset would retry for long
        rows = load_dataset(
            origin.dataset, origin.configuration, split=origin.split, revision=str(commit), streaming=True
        )
        yield from islice(rows, ROWS)
    except Exception as error:  # `datasets` and its libraries may raise anything
        raise HubUnreachable(
            f"the dataset {origin.dataset} can't be had from the hub ({told(error)}): check the network, or {INSTEAD}"
        ) from None


def _text(row: object, origin: Origin) -> str:
    """A row's text; "" where it can't be used. Raises DatasetUnusable for a row without the dataset's columns."""
    text, beside = ("" if name is None else _value(row, name, origin.dataset) for name in (origin.column, origin.empty))
    if beside or (len(text) > LONGEST and origin.tokens is None):
        return ""
    text = text[:LONGEST].strip()
    return "" if UNPRINTABLE.search(text) else text


def _value(row: object, column: str, dataset: str) -> str:
    """A row's text in a column; raises DatasetUnusable where there is none."""
    value = row.get(column) if isinstance(row, Mapping) else None
    if not isinstance(value, str):
        raise DatasetUnusable(
            f"a row of {dataset} has {described(value)} as its {column}, where a text was expected: {INSTEAD}"
        )
    return value


def _prompt(name: str, text: str, origin: Origin, tokenizer: Tokenizer) -> Prompt:
    """A row's prompt: one user message."""
    text = (text if origin.tokens is None else cut(text, tokenizer, origin.tokens)) + origin.request
    return Prompt(name, origin.domain, text, (("user", text),))


def cut(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The beginning of a text, of at most `most` tokens.

    The shortened text may be encoded as other and more tokens than before, so its tokens are counted again."""
    while True:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if len(tokens.ids) <= most:
            return text
        text = text[: tokens.offsets[most][0]].rstrip()
