"""The judge's forward says the same whether a text is computed as one or in two parts."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import alternating, gpt2, llama
from transformers import GPT2LMHeadModel, PreTrainedModel

from sybil.losslessness.prefixes import PrefixForward

PROMPT, TOKENS = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5]


@torch.no_grad()
def whole(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([[*prompt, *tokens][:-1]])).logits
    return logits[0, len(prompt) - 1 :]


class Counting(PrefixForward):
    """Notes how many tokens each forward computes."""

    def __init__(self, *rest, **named) -> None:
        super().__init__(*rest, **named)
        self.computed = list[int]()

    def _rows(self, ids, count, keys=None):
        self.computed.append(len(ids))
        return super()._rows(ids, count, keys)


def held(forward: Counting, prompt: list[int], tokens: list[int]) -> list[int]:
    """The sizes of the forwards that a text took; its logits are the model's own."""
    forward.computed.clear()
    torch.testing.assert_close(forward.logits(prompt, tokens), whole(forward.model, prompt, tokens))
    return list(forward.computed)


@pytest.mark.parametrize("model", [gpt2(), llama()], ids=["GPT-2", "Llama"])
def test_a_prompt_is_computed_once(model: PreTrainedModel) -> None:
    forward = Counting(model)
    assert held(forward, PROMPT, TOKENS) == [10, 5, 5]  # tried: as one, and in two parts
    assert held(forward, PROMPT, TOKENS) == [5]
    assert held(forward, PROMPT, TOKENS[::-1]) == [5]
    assert held(forward, PROMPT, TOKENS[:1]) == []
    assert held(forward, PROMPT, TOKENS[:2]) == [1]
    assert held(forward, PROMPT[1:], TOKENS[:1]) == [4]
    assert held(forward, PROMPT[1:], TOKENS) == [5]


@pytest.mark.parametrize("model", [alternating(), gpt2(layers=0)], ids=["sliding", "no layers"])
def test_a_model_that_keeps_something_else_is_computed_whole(model: PreTrainedModel) -> None:
    forward = Counting(model)
    held(forward, PROMPT, TOKENS)
    for tokens in (TOKENS, TOKENS[:1], TOKENS[::-1]):
        assert held(forward, PROMPT, tokens) == [len(PROMPT) + len(tokens) - 1]


class Forgetful(GPT2LMHeadModel):
    """Takes positions from what it is given, not from what it keeps."""

    def forward(self, input_ids=None, **rest):
        return super().forward(input_ids, position_ids=torch.arange(input_ids.shape[1])[None], **rest)


class Refusing(GPT2LMHeadModel):
    """Wants no keys of its own again."""

    def forward(self, input_ids=None, past_key_values=None, **rest):
        if past_key_values is not None and past_key_values.get_seq_length():
            raise RuntimeError("a text is computed once here")
        return super().forward(input_ids, past_key_values=past_key_values, **rest)


class Keyless(GPT2LMHeadModel):
    """Keeps nothing, and takes nothing but ids."""

    def forward(self, input_ids=None, use_cache=None):
        return super().forward(input_ids, use_cache=False)


@pytest.mark.parametrize("kind", [Forgetful, Refusing, Keyless])
def test_a_model_that_is_wrong_in_two_parts_is_computed_whole(kind: type[GPT2LMHeadModel]) -> None:
    model = copy.deepcopy(gpt2())
    model.__class__ = kind
    forward = Counting(model)
    held(forward, PROMPT, TOKENS)
    assert held(forward, PROMPT, TOKENS) == [10]


def test_no_more_is_kept_than_was_allowed() -> None:
    forward = Counting(gpt2(), most_bytes=0)
    held(forward, PROMPT, TOKENS)
    assert held(forward, PROMPT, TOKENS) == [5, 5]
    one = Counting(gpt2(), most_bytes=8_000)
    for prompt in (PROMPT, PROMPT[1:], PROMPT[2:]):
        held(one, prompt, TOKENS)
    assert held(one, PROMPT[2:], TOKENS) == [5]
    assert held(one, PROMPT, TOKENS) == [5, 5]
