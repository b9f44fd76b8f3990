"""A conversation with a real model, from its GGUF file."""

from __future__ import annotations

import pytest
from real import smollm2_file
from transformers import PreTrainedTokenizerFast

from sybil import Conversation, load

pytestmark = pytest.mark.real
TURNS = ("Hello! My name is Ada.", "What is my name? Answer in one word.", "And in Chinese: 漢字?")


def test_turns_of_smollm2_are_fresh_generations_and_cost_their_new_tokens() -> None:
    decoder = load(smollm2_file(), draft="lookup")
    assert decoder.chat_template is not None
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=decoder.tokenizer,
        chat_template=decoder.chat_template.text,
        **decoder.chat_template.special_tokens,
    )
    conversation = Conversation(decoder, system="Be brief.")
    for text in TURNS:
        messages = [*conversation.messages, {"role": "user", "content": text}]
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert decoder.chat_template.render(messages) == theirs.decode(ids)
        wanted = decoder.generate(messages, max_new_tokens=12)
        assert wanted.stats.prefilled == len(ids)
        out = conversation.ask(text, max_new_tokens=12)
        assert out.tokens[0].tolist() == wanted.tokens[0].tolist()
        assert out.stats.prefilled <= len(theirs(text).input_ids) + 24  # the template's own tokens
