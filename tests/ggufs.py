"""Tiny GGUF files of transformers' models, written as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import MODEL_ARCH_NAMES, GGMLQuantizationType
from gguf.quants import quant_shape_to_byte_shape, quantize
from gguf.tensor_mapping import get_tensor_name_map
from transformers import PreTrainedModel

ARCHITECTURES = {"gpt_neox": "gptneox", "mistral": "llama", "gemma3_text": "gemma3"}
"""GGUF's names of model types, where they differ from transformers' names."""
TOKENS = [*"!abcdefghijklmnopqrstuvwxyz", "\u0120", "A", "B", "ab"]
"""A byte-level vocabulary: token 0 is '!', as GPT-2's is, and the space is written as GPT-2 writes it."""
TURNED = ("llama", "smollm3", "granite")
"""The architectures whose queries and keys are rotated in pairs of neighbours."""


def architecture(model: PreTrainedModel) -> str:
    kind = str(model.config.model_type)
    return ARCHITECTURES.get(kind, kind)


def metadata(model: PreTrainedModel) -> dict[str, Any]:
    """The keys of a file, the tokenizer's included."""
    config, name = model.config, architecture(model)
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "n_inner", None) or getattr(config, "intermediate_size", 4 * 32),
        "attention.head_count": config.num_attention_heads,
    }
    for key, field in {
        "attention.head_count_kv": "num_key_value_heads",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "attention.layer_norm_epsilon": "layer_norm_eps" if name == "gptneox" else "layer_norm_epsilon",
        "attention.key_length": "head_dim",
        "attention.value_length": "head_dim",
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
        "use_parallel_residual": "use_parallel_residual",
    }.items():
        value = getattr(config, field, None)
        if value is not None and (field != "sliding_window" or not name.startswith(("qwen", "smollm"))):
            keys[key] = value
    rope = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in rope:
        keys["rope.freq_base"] = rope["full_attention"]["rope_theta"]
        keys["rope.freq_base_swa"] = rope["sliding_attention"]["rope_theta"]
    elif rope:
        keys["rope.freq_base"] = rope["rope_theta"]
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        keys["rope.dimension_count"] = int(size * rope.get("partial_rotary_factor", 1.0))
        if rope["rope_type"] == "linear":
            keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    return {
        "general.architecture": name,
        **{f"{name}.{key}": value for key, value in keys.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [1] * len(TOKENS),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0,
    }


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a file in float32, in the converter's layout."""
    config, name = model.config, architecture(model)
    kind = next(kind for kind, each in MODEL_ARCH_NAMES.items() if each == name)
    names, state = get_tensor_name_map(kind, config.num_hidden_layers), model.state_dict()
    for theirs, tensor in state.items():
        if config.tie_word_embeddings and theirs in ("lm_head.weight", "embed_out.weight"):
            continue
        ggml = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert ggml, theirs
        values = tensor.float().numpy()
        heads = getattr(config, "num_key_value_heads", None) if ".attn_k." in ggml else config.num_attention_heads
        if name in TURNED and (".attn_q." in ggml or ".attn_k." in ggml):
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if name == "gpt2" and values.ndim == 2 and theirs.startswith("transformer.h."):
            values = values.T
        if name == "gptneox" and "attn_qkv" in ggml:
            values = values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
        if name.startswith("gemma") and ggml.endswith("norm.weight"):
            values = values + np.float32(1)
        yield ggml, np.ascontiguousarray(values)


def packed(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The values in blocks of that type. If the library can't make such blocks, they are random bytes."""
    if kind == GGMLQuantizationType.F32:
        return values
    try:
        return quantize(values, kind)
    except NotImplementedError:
        shape = quant_shape_to_byte_shape(values.shape, kind)
        return np.random.default_rng(values.size).integers(0, 256, shape, np.uint8)


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add a key with the type that its value has in real files."""
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def write(
    model: PreTrainedModel,
    path: Path,
    changes: Mapping[str, Any] | None = None,
    more: Mapping[str, np.ndarray] | None = None,
    storage: str = "f32",
    parts: int = 1,
) -> Path:
    """Write the model as a GGUF file; returns the file, or the first part's name.

    changes: keys with other values (None removes the key). more: further tensors. storage: the type of the matrices
    whose rows are long enough for it."""
    writer = GGUFWriter(
        path, architecture(model), split_max_tensors=0 if parts == 1 else -(-len([*tensors(model)]) // parts)
    )
    for key, value in {**metadata(model), **(changes or {})}.items():
        if value is not None and key != "general.architecture":
            add(writer, key, value)
    for name, values in [*tensors(model), *(more or {}).items()]:
        kind = GGMLQuantizationType[storage.upper() if values.ndim == 2 else "F32"]
        writer.add_tensor(name, packed(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
