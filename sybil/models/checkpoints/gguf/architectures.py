"""The GGUF architectures that Sybil reads, with the keys that llama.cpp's converter writes for them, and transformers'
names for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_EVERY = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_LLAMA = {**_EVERY, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_GPT2 = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_GEMMA = {
    **_WINDOW,
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How transformers' config describes a GGUF architecture.

    model_type: transformers' name of the architecture. needed, optional: transformers' field for each GGUF key, the key
    without the architecture's name in front. fixed: further fields of transformers' config, unless a key of the file
    gives another value. rotated_rows: whether the rows of a head's two halves, which are rotated against each other,
    alternate in the file. pattern: every pattern-th layer attends to all tokens, and the other layers have a window; 0:
    there is no such pattern."""

    model_type: str
    needed: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rotated_rows: bool = False
    pattern: int = 0


ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": Architecture("gpt2", _GPT2),
    "gptneox": Architecture(
        "gpt_neox",
        {**_EVERY, "attention.layer_norm_epsilon": "layer_norm_eps"},
        {"use_parallel_residual": "use_parallel_residual"},
    ),
    "llama": Architecture("llama", _LLAMA, _WINDOW, rotated_rows=True),
    "phi3": Architecture("phi3", _LLAMA, _WINDOW),
    "qwen2": Architecture("qwen2", _LLAMA, fixed={"use_sliding_window": False}),
    "qwen3": Architecture("qwen3", _LLAMA, fixed={"use_sliding_window": False}),
    "gemma2": Architecture(
        "gemma2",
        _LLAMA,
        _GEMMA,
        {"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        pattern=2,
    ),
    "gemma3": Architecture("gemma3_text", {**_LLAMA, **_WINDOW}, _GEMMA, pattern=6),
    "smollm3": Architecture("smollm3", _LLAMA, fixed={"no_rope_layer_interval": 4}, rotated_rows=True),
    "olmo2": Architecture("olmo2", _LLAMA),
    "granite": Architecture("granite", _LLAMA, _GRANITE, rotated_rows=True),
}
"""By the value of general.architecture. Where a file leaves a key out, the value is the one that llama.cpp uses."""
