"""Turns messages into the text format that a model was trained on, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sybil.arguments import described
from sybil.errors import InvalidSetting, NotAModel, told

Message = Mapping[str, Any]
"""A dict with a role (system, user, assistant, or another one that the template knows), a content, and any other field
that the template reads."""
REASONING = ("reasoning_content", "thinking", "reasoning")
MARK = "\N{OBJECT REPLACEMENT CHARACTER}the answer goes on here "


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A model's chat template, in Jinja. special_tokens: the texts of the special tokens that the template may write,
    by name (bos_token, eos_token, ...)."""

    text: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation up to the place where the next answer begins. If the last message is an
        assistant's, the text ends with that message's content, and the model continues it. The text is the one that
        transformers' pipelines make (5.23).

        Raises InvalidSetting for messages that are malformed or that the template refuses, and NotAModel for a template
        that fails."""
        plain = _checked(messages)
        goes_on = plain[-1]["role"] == "assistant"
        if goes_on:
            plain[-1] = {**plain[-1], "content": _marked(plain[-1]["content"])}
        text = self._rendered(plain, add_generation_prompt=not goes_on)
        if not goes_on:
            return text
        if MARK.strip() not in text:
            raise InvalidSetting("the chat template leaves out the last message, an assistant's: end with a user's")
        before, _, after = text.rpartition(MARK.strip())
        return before if after.startswith(" ") else before.rstrip()  # here the template strips the content's end

    def _rendered(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        from sybil import sandbox  # imports jinja2, which nothing else needs

        variables = {"messages": messages, "tools": None, "documents": None, **self.special_tokens}
        try:
            return sandbox.render(self.text, {**variables, "add_generation_prompt": add_generation_prompt})
        except sandbox.RefusedMessages as error:
            raise InvalidSetting(f"the model's chat template refuses these messages: {told(error)}") from None
        except Exception as error:  # whatever a stranger's program raises
            raise NotAModel(
                f"the model's chat template can't be rendered ({type(error).__name__}: {told(error)}): mend it, or "
                "pass text in place of messages"
            ) from None


def are_messages(item: Any) -> bool:
    """Whether a prompt is a list of messages, well-formed or not."""
    return isinstance(item, list | tuple) and any(isinstance(each, Mapping) for each in item)


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as plain data, without fields that are None. Raises InvalidSetting."""
    if not messages:
        raise InvalidSetting("there are no messages: give at least one, as {'role': 'user', 'content': '...'}")
    plain = []
    for number, message in enumerate(messages):
        said = {key: _plain(value) for key, value in message.items() if value is not None} if _is_one(message) else {}
        if not isinstance(said.get("role"), str) or not isinstance(said.get("content"), str | list):
            raise InvalidSetting(
                f"message {number} is {described(message)}: give {{'role': 'user', 'content': 'a text'}}"
            )
        reasoning = next((said[name] for name in REASONING if name in said), None)
        if reasoning is not None:
            said = {"thinking": reasoning, **said, "reasoning_content": reasoning}
        plain.append(said)
    return plain


def _is_one(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(key, str) for key in message)


def _plain(value: Any) -> Any:
    """A value as JSON's kinds of data. An object of any other class could run code when a template calls its
    methods."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    raise InvalidSetting(f"a message holds {described(value)}: Sybil's models read text alone")


def _marked(content: Any) -> Any:
    """A message's content with MARK after its text, or after the last part that has a text."""
    if isinstance(content, str):
        return content + MARK
    last = max((place for place, part in enumerate(content) if isinstance(part, dict) and "text" in part), default=None)
    if last is None:
        raise InvalidSetting("the last message, an assistant's, has no text to continue: end with a user's")
    part = content[last]
    return [*content[:last], {**part, "text": f"{part['text']}{MARK}"}, *content[last + 1 :]]
