"""transformers' families: the names of their tensors, and the defaults of fields that a config.json leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sybil.errors import UnsupportedModel
from sybil.models.checkpoints import configs
from sybil.models.checkpoints.fields import Fields, unknown
from sybil.models.checkpoints.sources import Family
from sybil.models.shape import Shape

_ALL = ("query_key_value", "attention_out", "mlp_in", "mlp_out")
_ATTENTION, _MLP = _ALL[:2], _ALL[2:]

_GPT2 = Family(
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    shape=configs.gpt2,
    biased=lambda config: _ALL,
    prefixes=("transformer.", ""),
    embedding="wte.weight",
    positions="wpe.weight",
    layer="h.{}.",
    names={
        "attention_norm": ("ln_1",),
        "query_key_value": ("attn.c_attn",),
        "attention_out": ("attn.c_proj",),
        "mlp_norm": ("ln_2",),
        "mlp_in": ("mlp.c_fc",),
        "mlp_out": ("mlp.c_proj",),
    },
    final_norm="ln_f",
    transposed=True,
)

_OPT = Family(
    defaults={
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_size": 768,
        "ffn_dim": 3072,
        "activation_function": "relu",
        "layer_norm_elementwise_affine": True,
        "word_embed_proj_dim": None,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "tie_word_embeddings": True,
    },
    shape=configs.opt,
    biased=lambda config: _ALL if config["enable_bias"] else (),
    prefixes=("model.decoder.", "decoder.", ""),
    embedding="embed_tokens.weight",
    positions="embed_positions.weight",
    layer="layers.{}.",
    names={
        "attention_norm": ("self_attn_layer_norm",),
        "query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_out": ("self_attn.out_proj",),
        "mlp_norm": ("final_layer_norm",),
        "mlp_in": ("fc1",),
        "mlp_out": ("fc2",),
    },
    final_norm="final_layer_norm",
)

_NEOX = Family(
    defaults={
        "vocab_size": 50432,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    shape=configs.neox,
    biased=lambda config: _ALL if config["attention_bias"] else _MLP,
    prefixes=("gpt_neox.", ""),
    embedding="embed_in.weight",
    layer="layers.{}.",
    names={
        "attention_norm": ("input_layernorm",),
        "query_key_value": ("attention.query_key_value",),
        "attention_out": ("attention.dense",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp_in": ("mlp.dense_h_to_4h",),
        "mlp_out": ("mlp.dense_4h_to_h",),
    },
    final_norm="final_layer_norm",
    head=("lm_head.weight", "embed_out.weight"),
    interleaved=True,
)

_LLAMA = Family(
    defaults={
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": None,
        "tie_word_embeddings": False,
    },
    shape=configs.llama,
    biased=lambda config: _ATTENTION * bool(config["attention_bias"]) + _MLP * bool(config["mlp_bias"]),
    prefixes=("model.", ""),
    embedding="embed_tokens.weight",
    layer="layers.{}.",
    names={
        "attention_norm": ("input_layernorm",),
        "query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "query_norm": ("self_attn.q_norm",),
        "key_norm": ("self_attn.k_norm",),
        "attention_out": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp_out": ("mlp.down_proj",),
    },
    final_norm="norm",
)

_MISTRAL = replace(
    _LLAMA,
    defaults={
        **_LLAMA.defaults,
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "sliding_window": 4096,
    },
    shape=configs.mistral,
    biased=lambda config: (),
)

_PHI3 = replace(
    _LLAMA,
    defaults={
        **_LLAMA.defaults,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    shape=configs.phi3,
    biased=lambda config: (),
    names={**_LLAMA.names, "query_key_value": ("self_attn.qkv_proj",), "mlp_in": ("mlp.gate_up_proj",)},
)

_QWEN2 = replace(
    _LLAMA,
    defaults={
        **_LLAMA.defaults,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "intermediate_size": 22016,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    },
    shape=configs.qwen,
    biased=lambda config: ("query_key_value",),
)

_QWEN3 = replace(
    _QWEN2,
    defaults={**_QWEN2.defaults, "head_dim": 128},
    biased=lambda config: _ATTENTION if config["attention_bias"] else (),
)

_SMOLLM3 = replace(
    _LLAMA,
    defaults={
        **_LLAMA.defaults,
        "vocab_size": 128256,
        "max_position_embeddings": 32768,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "hidden_size": 2048,
        "rope_theta": 2000000.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "layer_types": None,
        "tie_word_embeddings": True,
    },
    shape=configs.smollm3,
)

_OLMO2 = replace(
    _LLAMA,
    defaults={**_LLAMA.defaults, "vocab_size": 50304, "rms_norm_eps": 1e-5},
    shape=configs.olmo2,
    biased=lambda config: _ATTENTION if config["attention_bias"] else (),
    names={
        **_LLAMA.names,
        "attention_out_norm": ("post_attention_layernorm",),
        "mlp_out_norm": ("post_feedforward_layernorm",),
    },
)

_GRANITE = replace(
    _LLAMA,
    defaults={
        **_LLAMA.defaults,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    shape=configs.granite,
)

_GEMMA2 = replace(
    _OLMO2,
    defaults={
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    shape=configs.gemma2,
    names={**_OLMO2.names, "mlp_norm": ("pre_feedforward_layernorm",)},
    norm_offset=1.0,
)

_GEMMA3 = replace(
    _GEMMA2,
    defaults={
        **_GEMMA2.defaults,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window_pattern": 6,
        "final_logit_softcapping": None,
    },
    shape=configs.gemma3,
)

FAMILIES: Mapping[str, Family] = {
    "gpt2": _GPT2,
    "opt": _OPT,
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "phi3": _PHI3,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "smollm3": _SMOLLM3,
    "olmo2": _OLMO2,
    "granite": _GRANITE,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
}
"""The families, by config.json's model_type."""
COMPOSITE: Mapping[str, Family] = {
    "gemma3": replace(
        _GEMMA3,
        prefixes=("language_model.model.", "model.language_model."),
        head=("language_model.lm_head.weight", "lm_head.weight"),
        part="text_config",
    )
}
"""The language models inside models that also read pictures, by model_type. A text alone needs only these."""


def understand(config: Mapping[str, Any]) -> tuple[Family, Shape]:
    """The config's family and shape. Raises UnsupportedModel where Sybil's own forward doesn't know the family or an
    option, NotAModel where a field's value isn't allowed, WeightsMismatch where numbers contradict each other."""
    outer = Fields(config)
    kind = outer.get("model_type")
    family = FAMILIES.get(kind) or COMPOSITE.get(kind)
    if family is None:
        raise unknown("model_type", config.get("model_type"))
    whole = family.fields(config)
    if family.part and whole.get("model_type") not in (None, f"{kind}_text"):
        raise unknown(f"{family.part}.model_type", whole.get("model_type"))
    for fields in (outer, whole):
        for name in ("quantization_config", "per_layer_config"):
            if fields.get(name):
                raise unknown(name, "set")
        if fields.get("is_causal") is False:
            raise unknown("is_causal", False)
    family.biased(whole)  # read here so that its fields are checked with all others
    return family, family.shape(whole)


def understood(config: Mapping[str, Any]) -> tuple[Family, Shape] | None:
    """As understand(), but None for what Sybil's own forward doesn't know."""
    try:
        return understand(config)
    except UnsupportedModel:
        return None
