"""A model for chats. Its embeddings are one-hot and its layers add nothing, so a token alone determines the next
one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny import letters, save
from transformers import LlamaConfig, LlamaForCausalLM

FOLLOWS = {"a": "h", "h": "i", "i": "C", "z": "z"}
"""A user's message that ends with "a" is answered by "hi" and the end token; one that ends with "z" is answered by "z"
for ever."""
END = "C"
TEMPLATE = """{% for message in messages %}
{% if message.role == 'system' %}{{ ' ' ~ message.content ~ 'C' }}{% endif %}
{% if message.role == 'user' %}{{ 'A' ~ message.content ~ 'CB' ~ message.content[-1] }}{% endif %}
{% if message.role == 'assistant' %}{{ message.content ~ 'C' }}{% endif %}
{% endfor %}"""


def talker(folder: Path, context: int = 1 << 16) -> Path:
    """The folder of the model, with a chat template."""
    config = LlamaConfig(
        vocab_size=31, max_position_embeddings=context, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=0, eos_token_id=30, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    ids = letters().get_vocab()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(31, 32))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for letter, following in FOLLOWS.items():
            model.lm_head.weight[ids[following], ids[letter]] = 1.0
    tokenizer = letters()
    tokenizer.add_special_tokens([END])
    save(model, folder, tokenizer)
    settings = {"tokenizer_class": "TokenizersBackend", "eos_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
