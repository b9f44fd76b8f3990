"""The prompts that measurements run over: one prompt, its file, and its tokens. promptset.py has sets of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from sybil.arguments import described
from sybil.chat import ChatTemplate
from sybil.errors import InvalidSetting, PromptTooLong, told
from sybil.measuring.files import bounded_text
from sybil.models.folders import embedded_folder

SHIPPED = "stdlib/prompts.jsonl"
REMEDY = 'give JSON lines such as {"text": "def main("}, or {"messages": [{"role": "user", "content": "Why?"}]}'
TEXT = ".txt"
"""The ending of the names of files in which each line is a prompt. Every other file is JSONL."""
LARGEST = 64 << 20
"""The most bytes that a file of prompts may have."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    - domain: "code", "prose" or "structured" for the prompts of stdlib; "code", "conversation", "summarization" or
      "editing" for the English ones. An "editing" prompt gives a file to repeat with one change; SmolLM2 does repeat
      each of these files.
    - messages: role and content of each message, for a model with a chat template.
    - text: for a model without one."""

    id: str
    domain: str
    text: str
    messages: tuple[tuple[str, str], ...] = ()


def load(path: Path | None = None, shipped: str = SHIPPED, domain: str | None = None) -> list[Prompt]:
    """The prompts of a file, or those of the embedded file `shipped` where path is None. In a .txt file each line is a
    prompt. In a JSONL file each row has text or messages, and may have id and domain.

    domain: of rows that name none; "own" where it is None. If it is given, the prompts' ids have it, too. Raises
    InvalidSetting."""
    path = path or embedded_folder(shipped)
    content = bounded_text(
        path, LARGEST, unread="name a .jsonl or .txt file", too_large="name a smaller file of prompts",
        no_text="name a JSONL file of prompts",
    )  # fmt: skip
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = {"text": line.strip()} if path.suffix == TEXT else _row(line, where)
        unnamed = {"id": number, "domain": "own"} if domain is None else {"id": f"{domain}-{number}", "domain": domain}
        prompt = _prompt(unnamed | row, where)
        if prompt.id in prompts:
            raise InvalidSetting(f"{where}: an earlier line has id {described(prompt.id)} too: give each its own")
        prompts[prompt.id] = prompt
    if not prompts:
        raise InvalidSetting(f"{path} is empty: give a line a prompt, in JSON if its name doesn't end in {TEXT}")
    return list(prompts.values())


def _row(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line; raises InvalidSetting."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidSetting(f"{where} is no JSON ({told(error)}): {REMEDY}") from None
    if not isinstance(row, dict):
        raise InvalidSetting(f"{where} has no text: {REMEDY}")
    return row


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    """The prompt of a row that has an id and a domain; raises InvalidSetting."""
    if "text" not in row and "messages" not in row:
        raise InvalidSetting(f"{where} has no text: {REMEDY}")
    messages = messages_of(row.get("messages"), where)
    text = "\n\n".join(content for _, content in messages) if messages else row.get("text")
    if not isinstance(text, str) or not text:
        raise InvalidSetting(f"{where}: text is {described(text)}: give a string that isn't empty")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidSetting(f"{where}: text holds half a character: give whole ones")
    prompt = Prompt(str(row["id"]), str(row["domain"]), text, messages)
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


class PromptReader(Protocol):
    """Anything that can encode prompts for a model, such as a Decoder."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that encodes text; None where there is none."""

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The model's chat template, which turns messages into text; None where the model has none."""


def encode(prompt: Prompt, reader: PromptReader) -> list[int]:
    """A prompt's token ids. Its messages are encoded by the model's chat template where it has messages and the model
    has a template; otherwise its text is encoded."""
    assert reader.tokenizer is not None
    if prompt.messages and reader.chat_template is not None:
        said = [{"role": role, "content": content} for role, content in prompt.messages]
        text, special = reader.chat_template.render(said), False  # the template writes special tokens itself
    else:
        text, special = prompt.text, True
    ids: list[int] = reader.tokenizer.encode(text, add_special_tokens=special).ids
    return ids


def check_lengths(prompts: Sequence[Prompt], encoded: Sequence[Sized], max_new_tokens: int, context: int) -> None:
    """Raises PromptTooLong for a prompt whose token ids and new tokens together are more than the context."""
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) + max_new_tokens > context:
            raise PromptTooLong(
                f"prompt {prompt.id} has {len(ids)} tokens and max_new_tokens is {max_new_tokens}, more together than "
                f"the context of {context}: lower max_new_tokens or leave the prompt out"
            )


def spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """At most `count` prompts, equally many from each domain, with the domains taking turns."""
    by_domain: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_domain[prompt.domain].append(prompt)
    longest = max((len(group) for group in by_domain.values()), default=0)
    turns = [group[index] for index in range(longest) for group in by_domain.values() if index < len(group)]
    return turns[:count]
