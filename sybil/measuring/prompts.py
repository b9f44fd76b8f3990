"""The prompts that measurements run over."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from sybil.arguments import described
from sybil.chat import ChatTemplate
from sybil.errors import InvalidSetting, told
from sybil.models.folders import embedded_folder

SHIPPED = "stdlib/prompts.jsonl"
REMEDY = 'give JSON lines such as {"text": "def main("}, or {"messages": [{"role": "user", "content": "Why?"}]}'


@dataclass(frozen=True, slots=True)
class Prompt:
    """domain: "code", "prose" or "structured" for those of stdlib; "code", "conversation", "summarization" or
    "editing" for the English ones, the last of which give a file to be repeated with one change, each one that SmolLM2
    does repeat. messages: role and content of each, for a model that has a chat template; text: for a model that has
    none."""

    id: str
    domain: str
    text: str
    messages: tuple[tuple[str, str], ...] = ()


def load(path: Path | None = None, shipped: str = SHIPPED) -> list[Prompt]:
    """The prompts of a JSONL file whose rows have text or messages, and may have id and domain; where there is none,
    those of an embedded file."""
    path = path or embedded_folder(shipped)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InvalidSetting(f"{path} can't be read ({error.strerror}): name a JSONL file of prompts") from None
    except UnicodeDecodeError:
        raise InvalidSetting(f"{path} is no UTF-8 text: name a JSONL file of prompts") from None
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        prompt = _prompt(line, number, where)
        if prompt.id in prompts:
            raise InvalidSetting(f"{where}: an earlier line has id {described(prompt.id)} too: give each its own")
        prompts[prompt.id] = prompt
    if not prompts:
        raise InvalidSetting(f"{path} is empty: give a JSON line a prompt")
    return list(prompts.values())


def _prompt(line: str, number: int, where: str) -> Prompt:
    """The prompt of a line, whose number is its id where it has none; raises InvalidSetting."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidSetting(f"{where} is no JSON ({told(error)}): {REMEDY}") from None
    if not isinstance(row, dict) or ("text" not in row and "messages" not in row):
        raise InvalidSetting(f"{where} has no text: {REMEDY}")
    messages = messages_of(row.get("messages"), where)
    text = "\n\n".join(content for _, content in messages) if messages else row.get("text")
    if not isinstance(text, str) or not text:
        raise InvalidSetting(f"{where}: text is {described(text)}: give a string that isn't empty")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidSetting(f"{where}: text holds half a character: give whole ones")
    prompt = Prompt(str(row.get("id", number)), str(row.get("domain", "own")), text, messages)
    if not (prompt.id + prompt.domain).isprintable():
        raise InvalidSetting(f"{where}: id or domain holds a control character: leave it out")
    return prompt


def messages_of(said: object, where: str) -> tuple[tuple[str, str], ...]:
    """Role and content of each message of a row; () where it has none. Raises InvalidSetting."""
    if said is None:
        return ()
    if not isinstance(said, list):
        raise InvalidSetting(f"{where}: messages is {described(said)}: {REMEDY}")
    messages = []
    for each in said:
        role, content = (each.get("role"), each.get("content")) if isinstance(each, dict) else (None, None)
        if not (role and isinstance(role, str) and content and isinstance(content, str)):
            raise InvalidSetting(f"{where}: a message is {described(each)}: {REMEDY}")
        messages.append((role, content))
    return tuple(messages)


class Reader(Protocol):
    """What reads a prompt: a Decoder, or whatever else knows a model's tokens."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Text to token ids."""

    @property
    def chat_template(self) -> ChatTemplate | None:
        """Messages to text, where the model has one."""


def encode(prompt: Prompt, reader: Reader) -> list[int]:
    """A prompt's token ids: its messages by the model's chat template where both are there, else its text."""
    assert reader.tokenizer is not None
    if prompt.messages and reader.chat_template is not None:
        said = [{"role": role, "content": content} for role, content in prompt.messages]
        text, special = reader.chat_template.render(said), False  # the template writes special tokens itself
    else:
        text, special = prompt.text, True
    ids: list[int] = reader.tokenizer.encode(text, add_special_tokens=special).ids
    return ids


def spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """At most count prompts, as many from each domain, domains taking turns."""
    by_domain: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_domain[prompt.domain].append(prompt)
    longest = max((len(group) for group in by_domain.values()), default=0)
    turns = [group[index] for index in range(longest) for group in by_domain.values() if index < len(group)]
    return turns[:count]
