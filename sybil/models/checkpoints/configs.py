"""Makes shapes of transformers' configs: one function for each family, which gets a config with its defaults filled in.

A field whose value isn't allowed raises NotAModel when it is read. An option that Sybil's own forward doesn't reproduce
raises UnsupportedModel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sybil.errors import WeightsMismatch
from sybil.models.checkpoints.fields import Fields, unknown
from sybil.models.checkpoints.rotations import of_kinds, rotary
from sybil.models.shape import Activation, Attention, Rotary, Shape

_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_FIELDS = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "inner": "intermediate_size",
    "activation": "hidden_act",
    "tied_head": "tie_word_embeddings",
}


def _fields(config: Fields, **theirs: str) -> dict[str, Any]:
    """The fields of Shape that every family has. theirs: the config's names for them, if unusual."""
    names = _FIELDS | theirs
    fields: dict[str, Any] = {ours: config[name] for ours, name in names.items()}
    if fields["activation"] not in _ACTIVATIONS:
        raise unknown(names["activation"], fields["activation"])
    fields["activation"] = _ACTIVATIONS[fields["activation"]]
    fields["head_size"] = fields.get("head_size") or _ratio(config, names["width"], names["heads"])
    return fields


def _ratio(config: Fields, whole: str, part: str) -> int:
    """config[whole] / config[part]. Raises WeightsMismatch where one isn't a multiple of the other."""
    if config[whole] % config[part]:
        raise WeightsMismatch(
            f"config.json has {whole} {config[whole]} and {part} {config[part]}: "
            "the first must be a multiple of the second"
        )
    return int(config[whole] // config[part])


def gpt2(config: Fields) -> Shape:
    """GPT-2."""
    for name in ("add_cross_attention", "scale_attn_by_inverse_layer_idx"):
        if config.get(name):
            raise unknown(name, True)
    fields = _fields(
        config,
        context="n_positions",
        layers="n_layer",
        heads="n_head",
        width="n_embd",
        inner="n_inner",
        activation="activation_function",
        epsilon="layer_norm_epsilon",
    )
    fields["inner"] = fields["inner"] or 4 * fields["width"]
    return Shape(**fields, attention_scale=0.0 if config["scale_attn_weights"] else 1.0, position_offset=0)


def opt(config: Fields) -> Shape:
    """OPT."""
    if not config["layer_norm_elementwise_affine"]:
        raise unknown("layer_norm_elementwise_affine", False)
    before = config["do_layer_norm_before"]
    return Shape(
        **_fields(config, inner="ffn_dim", activation="activation_function"),
        epsilon=1e-5,  # torch's default: OPT's config has no field for it
        embedding_width=config["word_embed_proj_dim"] or 0,
        normed="input" if before else "sum",
        final_norm=before and not config["_remove_final_layer_norm"],
        position_offset=2,
    )


def neox(config: Fields) -> Shape:
    """GPT-NeoX, Pythia."""
    fields = _fields(config, epsilon="layer_norm_eps")
    rotations = rotary(config, fields["head_size"], "rotary_emb_base", "rotary_pct", 0.25)
    attentions = (Attention(rotations),) * fields["layers"]
    return Shape(**fields, parallel=config["use_parallel_residual"], attentions=attentions)


def llama(config: Fields, *, window: int | None = None, part: str = "", **rest: Any) -> Shape:
    """Llama and similar families. rest: further fields of Shape. part: see rotary()."""
    if config.get("layer_types"):
        raise unknown("layer_types", config["layer_types"])
    fields = _gated(config)
    rotations = rotary(config, fields["head_size"], part=part)
    return Shape(**fields, attentions=(Attention(rotations, window),) * fields["layers"], **rest)


def _gated(config: Fields, **theirs: str) -> dict[str, Any]:
    """The fields of Shape that Llama and similar families share, except attentions. theirs: see _fields."""
    if config["num_key_value_heads"] is not None:
        _ratio(config, "num_attention_heads", "num_key_value_heads")
    fields = _fields(config, epsilon="rms_norm_eps", head_size="head_dim", **theirs)
    return fields | {"kv_heads": config["num_key_value_heads"] or 0, "gated": True, "norm": "rms"}


def mistral(config: Fields) -> Shape:
    """Mistral."""
    return llama(config, window=config["sliding_window"])


def phi3(config: Fields) -> Shape:
    """Phi-3."""
    return llama(config, window=config["sliding_window"], part="partial_rotary_factor")


def _attentions(
    config: Fields, default: Sequence[str], window: int | None, rotations: Callable[[int, str], Rotary | None]
) -> tuple[Attention, ...]:
    """Each layer's attention. default: the kinds of layers where the config names none. window: of the layers that have
    one. rotations(layer, kind): the rotations of a layer."""
    kinds, layers = config["layer_types"] or default, config["num_hidden_layers"]
    if len(kinds) != layers:
        raise WeightsMismatch(f"config.json has {len(kinds)} layer_types and num_hidden_layers {layers}: name each")
    if {*kinds} - {_FULL, _SLIDING} or (_SLIDING in kinds and window is None):
        raise unknown("layer_types", f"{' and '.join(sorted({*kinds}))}, sliding_window {window}")
    return tuple(
        Attention(rotations(layer, kind), window if kind == _SLIDING else None) for layer, kind in enumerate(kinds)
    )


def qwen(config: Fields) -> Shape:
    """Qwen2 and Qwen3."""
    window = config["sliding_window"] if config["use_sliding_window"] else None
    layers = config["num_hidden_layers"]
    full = layers if window is None else min(layers, config["max_window_layers"])
    fields = _gated(config)
    rotations = rotary(config, fields["head_size"])
    kinds = [_FULL] * full + [_SLIDING] * (layers - full)
    return Shape(
        **fields,
        attentions=_attentions(config, kinds, window, lambda layer, kind: rotations),
        query_key_norm="head" if config["model_type"] == "qwen3" else "none",
    )


def smollm3(config: Fields) -> Shape:
    """SmolLM3: some layers without rotations."""
    window = config["sliding_window"] if config["use_sliding_window"] else None
    layers, every = config["num_hidden_layers"], config["no_rope_layer_interval"]
    rotated = config["no_rope_layers"]
    if rotated is None:
        rotated = [(layer + 1) % every for layer in range(layers)]
    if len(rotated) < layers:
        raise WeightsMismatch(
            f"config.json has {len(rotated)} no_rope_layers and num_hidden_layers {layers}: name each"
        )
    fields = _gated(config)
    rotations = rotary(config, fields["head_size"])
    kinds = [_FULL if window is None or rotated[layer] else _SLIDING for layer in range(layers)]
    return Shape(
        **fields,
        attentions=_attentions(config, kinds, window, lambda layer, kind: rotations if rotated[layer] else None),
    )


def olmo2(config: Fields) -> Shape:
    """OLMo 2."""
    return llama(config, normed="output", query_key_norm="whole")


def granite(config: Fields) -> Shape:
    """Granite 3."""
    return llama(
        config,
        attention_scale=config["attention_multiplier"],
        embedding_scale=config["embedding_multiplier"],
        residual_scale=config["residual_multiplier"],
        logit_divisor=config["logits_scaling"],
    )


def gemma2(config: Fields) -> Shape:
    """Gemma 2."""
    fields = _gemma(config)
    rotations = rotary(config, fields["head_size"])
    kinds = [_FULL if layer % 2 else _SLIDING for layer in range(fields["layers"])]
    return Shape(
        **fields,
        attentions=_attentions(config, kinds, config["sliding_window"], lambda layer, kind: rotations),
        attention_cap=config["attn_logit_softcapping"] or 0.0,
    )


def gemma3(config: Fields) -> Shape:
    """Gemma 3's language model. Its attention has no soft cap, whatever its config says."""
    fields, every = _gemma(config), config["sliding_window_pattern"]
    rotations = of_kinds(config, fields["head_size"], {_FULL: "rope_theta", _SLIDING: "rope_local_base_freq"})
    kinds = [_SLIDING if (layer + 1) % every else _FULL for layer in range(fields["layers"])]
    return Shape(
        **fields,
        attentions=_attentions(config, kinds, config["sliding_window"], lambda layer, kind: rotations[kind]),
        query_key_norm="head",
    )


def _gemma(config: Fields) -> dict[str, Any]:
    """The fields of Shape that Gemma 2 and 3 share."""
    if config.get("use_bidirectional_attention"):
        raise unknown("use_bidirectional_attention", True)
    fields = _gated(config, activation="hidden_activation")
    return fields | {
        "normed": "both",
        "embedding_scale": fields["width"] ** 0.5,
        "attention_scale": config["query_pre_attn_scalar"] ** -0.5,
        "logit_cap": config["final_logit_softcapping"] or 0.0,
    }
