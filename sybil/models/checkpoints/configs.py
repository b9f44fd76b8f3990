"""transformers' configs as shapes, one function a family, each given a config whose defaults are filled in.

A field that isn't allowed raises NotAModel where it is read, and an option that our forward doesn't reproduce
UnsupportedModel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sybil.errors import NotAModel, UnsupportedModel, WeightsMismatch, shown
from sybil.models.checkpoints.fields import Fields
from sybil.models.shape import Activation, Rotary, Shape

_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
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


def unknown(name: str, value: object) -> UnsupportedModel:
    """The error for an option that has to go through transformers."""
    return UnsupportedModel(
        f"config.json has {name} {shown(value)}, which Sybil's own forward does not know: "
        "load it through HuggingFaceModel"
    )


def _fields(config: Fields, **theirs: str) -> dict[str, Any]:
    """The fields of Shape that every family has; theirs: their names where they aren't the usual ones."""
    if config.get("layer_types"):
        raise unknown("layer_types", config["layer_types"])
    names = _FIELDS | theirs
    fields: dict[str, Any] = {ours: config[name] for ours, name in names.items()}
    if fields["activation"] not in _ACTIVATIONS:
        raise unknown(names["activation"], fields["activation"])
    fields["activation"] = _ACTIVATIONS[fields["activation"]]
    fields["head_size"] = fields.get("head_size") or _ratio(config, names["width"], names["heads"])
    return fields


def _ratio(config: Fields, whole: str, part: str) -> int:
    """config[whole] / config[part]; raises WeightsMismatch where that is no number of things."""
    if config[whole] % config[part]:
        raise WeightsMismatch(
            f"config.json has {whole} {config[whole]} and {part} {config[part]}: "
            "the first must be a multiple of the second"
        )
    return int(config[whole] // config[part])


def _rotary(
    config: Fields, head_size: int, theta: str = "rope_theta", part: str = "", default_part: float = 1.0
) -> Rotary | None:
    """part: the field that says which part of a head is rotated, where the family has one."""
    rope = config.part("rope_scaling", "rope_parameters")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3") and not _has_one_factor_each(rope, kind):
        raise unknown("rope_type", kind)
    if rope.parts():
        raise unknown("rope_parameters", rope.parts())
    base = rope.get("rope_theta") or config.get(theta) or 10000.0
    rotated = rope.get("partial_rotary_factor")
    if rotated is None:
        rotated = config.get(part or "partial_rotary_factor")
    rotated = default_part if rotated is None else rotated
    if not part and rotated != 1:
        raise unknown("partial_rotary_factor", rotated)
    dimensions = int(head_size * rotated)
    # float32 operations in transformers' order: each frequency is to be the same number
    frequencies = 1.0 / (base ** (torch.arange(0, dimensions, 2, dtype=torch.float32, device="cpu") / dimensions))
    if kind == "linear":
        frequencies = frequencies / rope["factor"]
    if kind == "llama3":
        original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
        frequencies = _llama3(frequencies, rope, original or config["max_position_embeddings"])
    if kind == "longrope":
        frequencies = _divided(base, dimensions, rope["long_factor"])
    size = 2 * len(frequencies)
    if size > head_size:
        raise WeightsMismatch(f"config.json has heads of {head_size} dimensions and rotates {size}: make them even")
    if not (frequencies * config["max_position_embeddings"]).isfinite().all():
        raise NotAModel(f"config.json has rope_theta {base:g}, and its rotations have no finite angles: mend the file")
    return Rotary(size, tuple(frequencies.tolist())) if size else None


def _has_one_factor_each(rope: Fields, kind: str) -> bool:
    """Whether each frequency is divided by a factor, the same whatever a text's length, as in GGUF files."""
    return kind == "longrope" and rope.get("attention_factor") == 1 and rope["short_factor"] == rope["long_factor"]


def _divided(base: float, dimensions: int, factors: tuple[float, ...]) -> Tensor:
    if len(factors) != dimensions // 2:
        raise WeightsMismatch(f"config.json has {len(factors)} factors for {dimensions // 2} frequencies: name each")
    powers = base ** (torch.arange(0, dimensions, 2, dtype=torch.float32, device="cpu") / dimensions)
    return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * powers)


def _llama3(frequencies: Tensor, rope: Fields, original: int) -> Tensor:
    """Long waves stretched by the factor, short ones as they are, those between interpolated (Llama 3.1)."""
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    waves = 2 * math.pi / frequencies
    stretched = torch.where(waves > original / low, frequencies / factor, frequencies)
    smooth = (original / waves - low) / (high - low)
    between = (waves >= original / high) & (waves <= original / low)
    return torch.where(between, (1 - smooth) * stretched / factor + smooth * stretched, stretched)


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
        post_norm=not before,
        final_norm=before and not config["_remove_final_layer_norm"],
        position_offset=2,
    )


def neox(config: Fields) -> Shape:
    """GPT-NeoX, Pythia."""
    fields = _fields(config, epsilon="layer_norm_eps")
    rotary = _rotary(config, fields["head_size"], "rotary_emb_base", "rotary_pct", 0.25)
    return Shape(**fields, parallel=config["use_parallel_residual"], rotary=rotary)


def llama(config: Fields, *, part: str = "", **rest: Any) -> Shape:
    """Llama, and its kin with what they have besides; part: see _rotary."""
    fields = _fields(config, epsilon="rms_norm_eps", head_size="head_dim")
    if config["num_key_value_heads"] is not None:
        _ratio(config, "num_attention_heads", "num_key_value_heads")
    return Shape(
        **fields,
        kv_heads=config["num_key_value_heads"] or 0,
        gated=True,
        norm="rms",
        rotary=_rotary(config, fields["head_size"], part=part),
        **rest,
    )


def mistral(config: Fields) -> Shape:
    """Mistral."""
    return llama(config, window=config["sliding_window"])


def phi3(config: Fields) -> Shape:
    """Phi-3."""
    return llama(config, window=config["sliding_window"], part="partial_rotary_factor")


def qwen(config: Fields) -> Shape:
    """Qwen2 and Qwen3."""
    window = config["sliding_window"] if config["use_sliding_window"] else None
    layers = config["num_hidden_layers"]
    full = layers if window is None else min(layers, config["max_window_layers"])
    kinds = config["layer_types"] or ("full_attention",) * full + ("sliding_attention",) * (layers - full)
    if len(kinds) != layers:
        raise WeightsMismatch(f"config.json has {len(kinds)} layer_types and num_hidden_layers {layers}: name each")
    if {*kinds} == {"full_attention"}:
        window = None
    elif {*kinds} != {"sliding_attention"} or window is None:
        raise unknown("layer_types", f"{' and '.join(sorted({*kinds}))}, sliding_window {window}")
    return llama(config.without("layer_types"), window=window, query_key_norm=config["model_type"] == "qwen3")
