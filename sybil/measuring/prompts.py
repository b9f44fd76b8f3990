"""The prompts that measurements run over."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sybil.errors import InvalidSetting
from sybil.models.folders import embedded_folder


@dataclass(frozen=True, slots=True)
class Prompt:
    """domain: "code", "prose" or "structured" for the shipped ones."""

    id: str
    domain: str
    text: str


def load(path: Path | None = None) -> list[Prompt]:
    """The shipped prompts, or those of a JSONL file whose rows have text, and may have id and domain."""
    path = path or embedded_folder("stdlib") / "prompts.jsonl"
    prompts: dict[str, Prompt] = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            row = json.loads(line)
            prompt = Prompt(str(row.get("id", number)), str(row.get("domain", "own")), row["text"])
            if not (isinstance(prompt.text, str) and prompt.text) or prompt.id in prompts:
                raise InvalidSetting(
                    f"{path}, line {number}: text must be a string with something in it, and id its own"
                )
            if any("\ud800" <= letter <= "\udfff" for letter in prompt.text):
                raise InvalidSetting(f"{path}, line {number}: text holds half a character: give whole ones")
            if not (prompt.id + prompt.domain).isprintable():
                raise InvalidSetting(f"{path}, line {number}: id or domain holds a control character: leave it out")
            prompts[prompt.id] = prompt
    except InvalidSetting:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        example = '{"text": "def main("}'
        raise InvalidSetting(f"{path} holds no prompts ({error!r}): give JSON lines such as {example}") from None
    if not prompts:
        raise InvalidSetting(f"{path} is empty: give a JSON line a prompt")
    return list(prompts.values())


def spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """At most count prompts, as many from each domain, domains taking turns."""
    by_domain: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_domain[prompt.domain].append(prompt)
    longest = max((len(group) for group in by_domain.values()), default=0)
    turns = [group[index] for index in range(longest) for group in by_domain.values() if index < len(group)]
    return turns[:count]
