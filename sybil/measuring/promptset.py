"""Sets of prompts by domain: the prompts that ship with Sybil, those of a user's files, or a sample of either."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer

from sybil.arguments import described, integer
from sybil.errors import InvalidSetting
from sybil.measuring import files
from sybil.measuring.prompts import Prompt, load, spread

SHIPPED = "prompts/domains.jsonl"
DOMAINS = ("code", "conversation", "summarization")
COUNT, TINY = 150, 15
"""How many prompts a whole set of the three domains has, and how many a tiny set has."""

Named = TypeVar("Named", str, Prompt)


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of a domain's n prompts in tokens: the least, the mean and the greatest."""

    n: int
    min: int
    mean: float
    max: int


@dataclass(frozen=True, slots=True)
class PromptSet:
    """An ordered set of prompts. No two prompts have the same id."""

    prompts: tuple[Prompt, ...]

    @classmethod
    def load(cls, *paths: Path | str) -> PromptSet:
        """The prompts of files, or the prompts that ship with Sybil where no file is named.

        A file's name gives its prompts' domain: "mails.txt" has the domain "mails". Each line of a .txt file is a
        prompt. Every other file is JSONL, whose rows may name their own domain. Raises InvalidSetting."""
        if not paths:
            return cls(tuple(load(shipped=SHIPPED)))
        prompts = [prompt for path in map(Path, paths) for prompt in load(path, domain=path.stem)]
        seen: set[str] = set()
        for prompt in prompts:
            if prompt.id in seen:
                raise InvalidSetting(f"two files have a prompt with id {described(prompt.id)}: give each its own")
            seen.add(prompt.id)
        return cls(tuple(prompts))

    def save(self, path: Path | str) -> None:
        """Write the prompts as JSONL. A file that exists is replaced. Raises InvalidSetting."""
        lines = [json.dumps(_row(prompt), ensure_ascii=False) + "\n" for prompt in self.prompts]
        try:
            files.replace(Path(path), "".join(lines).encode())
        except OSError as error:
            raise InvalidSetting(f"{path} can't be written to ({error.strerror}): name another file") from None

    def by_domain(self) -> dict[str, tuple[Prompt, ...]]:
        """The prompts of each domain. The domains are in the order in which they first occur."""
        found: dict[str, list[Prompt]] = defaultdict(list)
        for prompt in self.prompts:
            found[prompt.domain].append(prompt)
        return {domain: tuple(prompts) for domain, prompts in found.items()}

    def only(self, domains: Sequence[str]) -> PromptSet:
        """The prompts of these domains. Raises InvalidSetting where the set lacks one of the domains."""
        there = self.by_domain()
        for domain in domains:
            if domain not in there:
                raise InvalidSetting(f"there is no domain {described(domain)}: the domains are {', '.join(there)}")
        return PromptSet(tuple(prompt for prompt in self.prompts if prompt.domain in domains))

    def sample(self, count: int, seed: int = 0) -> PromptSet:
        """At most `count` prompts, equally many from each domain, with the domains taking turns. The seed and the
        prompts' ids determine the choice, and a smaller sample is the beginning of a larger one. Raises
        InvalidSetting."""
        count = integer("count", count, least=1)
        ordered = [prompt for prompts in self.by_domain().values() for prompt in shuffled(prompts, seed)]
        return PromptSet(tuple(spread(ordered, count)))

    def lengths(self, tokenizer: Tokenizer) -> dict[str, Lengths]:
        """The lengths of the prompts' texts in tokens, by domain. Special tokens and the words of a chat template don't
        count."""
        return {domain: _lengths(prompts, tokenizer) for domain, prompts in self.by_domain().items()}


def shuffled(named: Iterable[Named], seed: int) -> list[Named]:
    """Prompts, or ids, sorted by a digest of the seed and the id. So the order is the same in every version of Python,
    and a new prompt doesn't change the order of the others."""

    def place(each: str | Prompt) -> bytes:
        name = each if isinstance(each, str) else each.id
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    return sorted(named, key=place)


def _row(prompt: Prompt) -> Mapping[str, object]:
    """A prompt as a row of a JSONL file."""
    named = {"id": prompt.id, "domain": prompt.domain}
    if not prompt.messages:
        return named | {"text": prompt.text}
    return named | {"messages": [{"role": role, "content": content} for role, content in prompt.messages]}


def _lengths(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> Lengths:
    counts = [len(tokenizer.encode(prompt.text, add_special_tokens=False).ids) for prompt in prompts]
    return Lengths(len(counts), min(counts), sum(counts) / len(counts), max(counts))
