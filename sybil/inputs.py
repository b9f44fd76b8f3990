"""A caller's prompts as token ids, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sybil.arguments import described
from sybil.chat import ChatTemplate, Message, are_messages
from sybil.errors import EmptyPrompt, InvalidSetting, PromptTooLong
from sybil.models import Model
from sybil.text import encode

Inputs = (
    str
    | Sequence[str]
    | Sequence[Tensor]
    | Sequence[Sequence[int]]
    | Tensor
    | Sequence[Message]
    | Sequence[Sequence[Message]]
)
FORMS = "strings, lists of messages, 1-d LongTensors, lists of token ids, or a (batch, n) LongTensor"


def prompts_of(
    inputs: Any, tokenizer: Tokenizer | None, model: Model, template: ChatTemplate | None = None
) -> list[list[int]]:
    """The token ids of each prompt.

    inputs: one prompt that is a string or a list of messages; a list of several prompts, each a string, a list of
    messages, a 1-d tensor or array of integers, or a list of integers; or a tensor or array (batch, n) of integers.
    tokenizer: for prompts that are text. template: the model's chat template, for messages. Raises InvalidSetting,
    EmptyPrompt or PromptTooLong, and NotAModel for a template that fails."""
    prompts = [_ids(item, tokenizer, template) for item in _items(inputs)]
    if not prompts:
        raise EmptyPrompt("inputs is empty: give at least one prompt")
    for prompt in prompts:
        _check(prompt, model)
    return prompts


def _items(inputs: Any) -> Iterable[Any]:
    if isinstance(inputs, str) or are_messages(inputs):
        return [inputs]
    if isinstance(inputs, Mapping) and "role" in inputs:
        raise InvalidSetting("inputs is one message: pass a list of messages, [{'role': 'user', 'content': '...'}]")
    if isinstance(inputs, Mapping):
        raise InvalidSetting("inputs is a mapping: pass its input_ids, a list of 1-d LongTensors where rows are padded")
    scalar = isinstance(inputs, Tensor | np.ndarray) and inputs.ndim == 0
    if scalar or isinstance(inputs, bytes | bytearray) or not isinstance(inputs, Iterable):
        raise InvalidSetting(f"inputs is {described(inputs)}: pass a string, or {FORMS}")
    return inputs


def _ids(item: Any, tokenizer: Tokenizer | None, template: ChatTemplate | None) -> list[int]:
    if isinstance(item, str):
        return _encoded(item, tokenizer)
    if are_messages(item):
        if template is None:
            raise InvalidSetting("inputs are messages, and the model has no chat template: pass text")
        return _encoded(template.render(item), tokenizer, special=False)  # the template writes special tokens itself
    if isinstance(item, np.ndarray):
        item = _as_tensor(item)
    if isinstance(item, Tensor):
        return _listed(item)
    if isinstance(item, list | tuple) and all(_is_id(each) for each in item):
        return [int(each) for each in item]
    raise InvalidSetting(f"inputs holds {described(item)}: pass {FORMS}")


def _is_id(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _as_tensor(array: np.ndarray) -> Any:
    try:
        return torch.as_tensor(array, device="cpu")
    except (TypeError, ValueError):  # an array of strings, of objects, or of numbers that torch doesn't have
        return array


def _listed(item: Tensor) -> list[int]:
    whole = not (item.is_floating_point() or item.is_complex() or item.dtype == torch.bool)
    if item.ndim == 1 and whole:
        try:
            ids: list[int] = item.tolist()
            return ids
        except (RuntimeError, NotImplementedError):  # a tensor on the meta device, or a sparse one
            pass
    raise InvalidSetting(
        f"inputs holds {described(item)} on {item.device}: pass 1-d LongTensors, or one of shape (batch, n)"
    )


def _encoded(text: str, tokenizer: Tokenizer | None, *, special: bool = True) -> list[int]:
    if tokenizer is None:
        raise InvalidSetting(
            "inputs are text, but the decoder has no tokenizer: pass token ids, or load() with tokenizer="
        )
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidSetting("the prompt holds bytes that are no UTF-8 text: give it in UTF-8")
    return encode(tokenizer, text, special=special)


def _check(prompt: Sequence[int], model: Model) -> None:
    if not prompt:
        raise EmptyPrompt("the prompt has 0 tokens: give at least 1 to continue from")
    if len(prompt) >= model.context:
        raise PromptTooLong(
            f"the prompt has {len(prompt)} tokens and the model's context is {model.context}: "
            f"shorten it to at most {model.context - 1}"
        )
    if not 0 <= min(prompt) <= max(prompt) < model.vocab_size:
        raise InvalidSetting(
            f"the prompt has token ids from {min(prompt)} to {max(prompt)} and the target's vocabulary is "
            f"0 to {model.vocab_size - 1}: encode it with the target's tokenizer"
        )
