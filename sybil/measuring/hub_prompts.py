"""Prompts out of three datasets of the hub, a domain each, by Hugging Face's package `datasets`.

A dataset is streamed, so that its first rows are fetched and nothing else. What the hub answers is a stranger's: rows
are counted, and their texts are measured and looked at, before a prompt is made of any.
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
"""Rows of a dataset that are looked at; prompts are drawn of them."""
LONGEST = 20_000
"""Characters of a row's text. A longer article is cut; another longer text is passed over."""
PATIENCE = 10.0
"""Seconds in which the hub must say that a dataset is there."""
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
INSTEAD = "use the prompts that ship with Sybil"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a domain's prompts are from.

    column: the text that a prompt is made of. empty: a column that must be empty, since the text is about what stands
    there. tokens: how many of the text's are kept, None for all. request: what is put after the text."""

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
    """At most count prompts of the hub's datasets, as many of each domain. An article is cut to 512 tokens of the
    tokenizer.

    Raises PackageMissing without `datasets`, HubUnreachable, and DatasetUnusable where a dataset has other columns or
    no row that can be used."""
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
    """Of the first rows: the number and the text of each that can be used, no text twice."""
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
        commit = dataset_info(origin.dataset, timeout=PATIENCE).sha  # fails at once where load_dataset tries for long
        rows = load_dataset(
            origin.dataset, origin.configuration, split=origin.split, revision=str(commit), streaming=True
        )
        yield from islice(rows, ROWS)
    except Exception as error:  # `datasets` and what it reads by have no list of what they raise
        raise HubUnreachable(
            f"the dataset {origin.dataset} can't be had from the hub ({told(error)}): check the network, or {INSTEAD}"
        ) from None


def _text(row: object, origin: Origin) -> str:
    """A row's text, "" where it can't be used; raises DatasetUnusable where the row isn't made as its dataset's are."""
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
    """A row's prompt: one message of a user's."""
    text = (text if origin.tokens is None else cut(text, tokenizer, origin.tokens)) + origin.request
    return Prompt(name, origin.domain, text, (("user", text),))


def cut(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The beginning of a text that is at most so many tokens.

    What is left may be cut into other tokens than before, and more of them, so it is counted again."""
    while True:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if len(tokens.ids) <= most:
            return text
        text = text[: tokens.offsets[most][0]].rstrip()
