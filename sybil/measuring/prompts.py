"""The prompts that measurements run over."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sybil.errors import InvalidSetting
from sybil.pairs import embedded_folder


@dataclass(frozen=True, slots=True)
class Prompt:
    """domain: "code", "prose" or "structured" for the shipped ones."""

    id: str
    domain: str
    text: str


def load(path: Path | None = None) -> list[Prompt]:
    """The shipped prompts, or those of a JSONL file whose rows have text, and may have id and domain."""
    path = path or embedded_folder("stdlib") / "prompts.jsonl"
    prompts = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            row = json.loads(line)
            prompts.append(Prompt(str(row.get("id", number)), str(row.get("domain", "own")), row["text"]))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InvalidSetting(
            f"{path} holds no prompts ({error!r}): give JSON lines such as {{'text': 'def main('}}"
        ) from None
    return prompts


def spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """At most count prompts, as many from each domain, domains taking turns."""
    by_domain: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_domain[prompt.domain].append(prompt)
    longest = max((len(group) for group in by_domain.values()), default=0)
    turns = [group[index] for index in range(longest) for group in by_domain.values() if index < len(group)]
    return turns[:count]
