"""Configurations of every family that Sybil's own forward knows, and random models of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

CONTEXT = 24
TOKENS: dict[str, Any] = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
ACTIVATIONS = ["gelu_new", "gelu", "relu", "silu", "gelu_pytorch_tanh"]

ropes = st.one_of(
    st.builds(lambda theta: {"rope_type": "default", "rope_theta": theta}, st.sampled_from([100.0, 10000.0, 1e6])),
    st.builds(lambda f: {"rope_type": "linear", "rope_theta": 100.0, "factor": f}, st.sampled_from([2.0, 3.5])),
    st.builds(
        lambda f, original: {
            "rope_type": "llama3", "rope_theta": 100.0, "factor": f, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        },
        st.sampled_from([2.0, 8.0]),
        st.sampled_from([16, 64]),
    ),
)  # fmt: skip
plain_ropes = st.builds(lambda theta: {"rope_type": "default", "rope_theta": theta}, st.sampled_from([100.0, 1e6]))
windows = st.one_of(st.none(), st.integers(1, 30))


def common(draw: st.DrawFn) -> dict[str, Any]:
    return TOKENS | dict(vocab_size=draw(st.integers(3, 60)), tie_word_embeddings=draw(st.booleans()))


@st.composite
def gpt2_configs(draw: st.DrawFn) -> GPT2Config:
    heads = draw(st.integers(1, 4))
    return GPT2Config(
        n_head=heads,
        n_embd=heads * draw(st.sampled_from([2, 3, 8])),
        n_positions=CONTEXT,
        n_layer=draw(st.integers(1, 3)),
        n_inner=draw(st.one_of(st.none(), st.integers(1, 40))),
        activation_function=draw(st.sampled_from(ACTIVATIONS)),
        layer_norm_epsilon=draw(st.sampled_from([1e-5, 1e-3])),
        scale_attn_weights=draw(st.booleans()),
        initializer_range=0.3,
        **common(draw),
    )


@st.composite
def opt_configs(draw: st.DrawFn) -> OPTConfig:
    heads = draw(st.integers(1, 4))
    return OPTConfig(
        num_attention_heads=heads,
        hidden_size=heads * draw(st.sampled_from([2, 3, 8])),
        word_embed_proj_dim=draw(st.sampled_from([None, 5])),
        max_position_embeddings=CONTEXT,
        num_hidden_layers=draw(st.integers(1, 3)),
        ffn_dim=draw(st.integers(1, 40)),
        activation_function=draw(st.sampled_from(ACTIVATIONS)),
        do_layer_norm_before=draw(st.booleans()),
        _remove_final_layer_norm=draw(st.booleans()),
        enable_bias=draw(st.booleans()),
        init_std=0.3,
        **common(draw),
    )


@st.composite
def neox_configs(draw: st.DrawFn) -> GPTNeoXConfig:
    heads = draw(st.integers(1, 4))
    return GPTNeoXConfig(
        num_attention_heads=heads,
        hidden_size=heads * draw(st.sampled_from([8, 12, 20])),
        max_position_embeddings=CONTEXT,
        num_hidden_layers=draw(st.integers(1, 3)),
        intermediate_size=draw(st.integers(1, 40)),
        hidden_act=draw(st.sampled_from(ACTIVATIONS)),
        layer_norm_eps=draw(st.sampled_from([1e-5, 1e-3])),
        use_parallel_residual=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        rope_parameters=draw(ropes) | {"partial_rotary_factor": draw(st.sampled_from([0.25, 0.5, 1.0]))},
        initializer_range=0.3,
        **common(draw),
    )


def gated(draw: st.DrawFn, rope: st.SearchStrategy[dict[str, Any]] = ropes, head_sizes: bool = True) -> dict[str, Any]:
    """The fields that Llama and the families derived from it share."""
    heads, kv_heads = draw(st.sampled_from([(1, 1), (3, 3), (2, 1), (4, 2), (6, 2)]))
    head_size = draw(st.sampled_from([2, 4, 8]))
    width = heads * draw(st.sampled_from([2, 4])) if head_sizes else heads * head_size
    return common(draw) | dict(
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_size=width,
        intermediate_size=draw(st.integers(1, 40)),
        num_hidden_layers=draw(st.integers(1, 3)),
        max_position_embeddings=CONTEXT,
        hidden_act=draw(st.sampled_from(ACTIVATIONS)),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-3])),
        rope_parameters=dict(draw(rope)),
        initializer_range=0.3,
        **({"head_dim": head_size} if head_sizes else {}),
    )


@st.composite
def llama_configs(draw: st.DrawFn) -> LlamaConfig:
    biases = dict(attention_bias=draw(st.booleans()), mlp_bias=draw(st.booleans()))
    return LlamaConfig(**gated(draw, head_sizes=draw(st.booleans())), **biases)


@st.composite
def mistral_configs(draw: st.DrawFn) -> MistralConfig:
    return MistralConfig(**gated(draw, head_sizes=draw(st.booleans())), sliding_window=draw(windows))


@st.composite
def phi3_configs(draw: st.DrawFn) -> Phi3Config:
    fields = gated(draw, plain_ropes, head_sizes=False)
    fields["rope_parameters"]["partial_rotary_factor"] = draw(st.sampled_from([0.5, 1.0]))
    return Phi3Config(**fields, sliding_window=draw(windows))


def kinds(draw: st.DrawFn, layers: int) -> dict[str, Any]:
    """Kinds of layers: with full attention and with a sliding window, alternating or in random order."""
    each = st.sampled_from(["full_attention", "sliding_attention"])
    named = draw(st.one_of(st.none(), st.lists(each, min_size=layers, max_size=layers)))
    return {"layer_types": named, "sliding_window": draw(st.integers(1, 12))}


@st.composite
def qwen2_configs(draw: st.DrawFn) -> Qwen2Config:
    fields = gated(draw, head_sizes=False)
    if draw(st.booleans()):
        fields |= kinds(draw, fields["num_hidden_layers"]) | {"use_sliding_window": True}
    return Qwen2Config(**fields, max_window_layers=draw(st.sampled_from([0, 1, 28])))


@st.composite
def qwen3_configs(draw: st.DrawFn) -> Qwen3Config:
    fields = gated(draw)
    if draw(st.booleans()):
        fields |= kinds(draw, fields["num_hidden_layers"]) | {"use_sliding_window": True}
    return Qwen3Config(
        **fields, attention_bias=draw(st.booleans()), max_window_layers=draw(st.sampled_from([0, 1, 28]))
    )


@st.composite
def smollm3_configs(draw: st.DrawFn) -> SmolLM3Config:
    fields = gated(draw, head_sizes=draw(st.booleans()))
    layers = fields["num_hidden_layers"]
    if draw(st.booleans()):
        fields |= kinds(draw, layers) | {"use_sliding_window": True}
    return SmolLM3Config(
        **fields,
        no_rope_layers=draw(st.one_of(st.none(), st.lists(st.integers(0, 1), min_size=layers, max_size=layers))),
        no_rope_layer_interval=draw(st.integers(1, 3)),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )


@st.composite
def olmo2_configs(draw: st.DrawFn) -> Olmo2Config:
    return Olmo2Config(**gated(draw, head_sizes=draw(st.booleans())), attention_bias=draw(st.booleans()))


@st.composite
def granite_configs(draw: st.DrawFn) -> GraniteConfig:
    names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
    return GraniteConfig(
        **gated(draw, head_sizes=draw(st.booleans())),
        **{name: draw(st.sampled_from([1.0, 0.22, 6, 12.0])) for name in names},
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )


def gemma(draw: st.DrawFn) -> dict[str, Any]:
    """The fields that Gemma 2 and Gemma 3 share."""
    fields = gated(draw)
    fields["hidden_activation"] = fields.pop("hidden_act")
    return (
        fields
        | kinds(draw, fields["num_hidden_layers"])
        | dict(
            query_pre_attn_scalar=draw(st.sampled_from([2, 5, 64])),
            final_logit_softcapping=draw(st.sampled_from([None, 0.7, 30.0])),
            attn_logit_softcapping=draw(st.sampled_from([None, 0.7, 50.0])),
            attention_bias=draw(st.booleans()),
        )
    )


@st.composite
def gemma2_configs(draw: st.DrawFn) -> Gemma2Config:
    return Gemma2Config(**gemma(draw))


@st.composite
def gemma3_configs(draw: st.DrawFn) -> Gemma3TextConfig:
    fields = gemma(draw) | {"sliding_window_pattern": draw(st.integers(1, 3))}
    names = st.sampled_from([(), ("full_attention",), ("full_attention", "sliding_attention")])
    fields["rope_parameters"] = {name: dict(draw(ropes)) for name in draw(names)}
    return Gemma3TextConfig(**fields)


CONFIGS: dict[str, Callable[[], st.SearchStrategy[PreTrainedConfig]]] = {
    "gpt2": gpt2_configs,
    "opt": opt_configs,
    "gpt_neox": neox_configs,
    "llama": llama_configs,
    "mistral": mistral_configs,
    "phi3": phi3_configs,
    "qwen2": qwen2_configs,
    "qwen3": qwen3_configs,
    "smollm3": smollm3_configs,
    "olmo2": olmo2_configs,
    "granite": granite_configs,
    "gemma2": gemma2_configs,
    "gemma3_text": gemma3_configs,
}


def random_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A transformers model all of whose weights are random, norms and biases too, as `dtype` rounds them."""
    torch.manual_seed(seed)
    way = "eager" if config.model_type == "gemma2" else "sdpa"  # sdpa has no cap on attention's logits
    model = AutoModelForCausalLM.from_config(config, attn_implementation=way).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = (parameter + 0.1 * torch.randn_like(parameter)).to(dtype)  # model.to() rounds RoPE too
    return model


OWN: Mapping[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 5},
    "qwen3": {"head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0]},
    "granite": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.22,
        "logits_scaling": 0.5,
    },
    "gemma2": {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 5},
}
"""Further fields of a family's example, by which the family can be told from others."""


def example(family: str, **changes: Any) -> PreTrainedConfig:
    """One configuration of a family."""
    sizes = dict(
        vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    kinds: dict[str, PreTrainedConfig] = {
        "gpt2": GPT2Config, "opt": OPTConfig, "gpt_neox": GPTNeoXConfig, "llama": LlamaConfig,
        "mistral": MistralConfig, "phi3": Phi3Config, "qwen2": Qwen2Config, "qwen3": Qwen3Config,
        "smollm3": SmolLM3Config, "olmo2": Olmo2Config, "granite": GraniteConfig, "gemma2": Gemma2Config,
        "gemma3_text": Gemma3TextConfig,
    }  # fmt: skip
    inner = {"gpt2": "n_inner", "opt": "ffn_dim"}.get(family, "intermediate_size")
    sizes[inner] = 24
    if family not in ("gpt2", "opt", "gpt_neox"):
        sizes["num_key_value_heads"] = 2
    sizes |= OWN.get(family, {})
    scale = "init_std" if family == "opt" else "initializer_range"
    config: PreTrainedConfig = kinds[family](**(sizes | {scale: 0.3} | TOKENS | changes))
    return config
