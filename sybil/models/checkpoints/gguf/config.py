"""Translates a GGUF file's metadata into the fields of transformers' config.json.

A file is refused if it has a key that Sybil doesn't know and that could change what is computed. The error names it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from sybil.errors import NotAModel, UnsupportedModel, shown
from sybil.models.checkpoints.fields import FIELDS
from sybil.models.checkpoints.gguf.architectures import ARCHITECTURES
from sybil.models.checkpoints.gguf.header import Contents

UNREAD = frozenset({"rope_freqs.weight"})
"""Tensors that aren't weights."""
PICTURES = ("v.", "mm.", "vision.")
"""How the names of tensors and keys begin that are for pictures. The forward over texts doesn't need these."""
_INDIFFERENT = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"}
"""Keys that aren't read. They change nothing as long as the other keys have values that Sybil accepts."""
_NEUTRAL: Mapping[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "attention.max_alibi_bias": 0,
    "attention.clamp_kqv": 0,
    "attention.shared_kv_layers": 0,
    "nextn_predict_layers": 0,
    "pooling_type": 0,
    "rope.scaling.attn_factor": 1,
}
"""Keys that aren't read, each with the value at which it changes nothing."""
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


class Keys:
    """The keys of a file that begin with its architecture's name. Each value is checked when it is read."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, where: str) -> None:
        self.prefix, self.where = f"{architecture}.", where
        self.values = {
            key.removeprefix(self.prefix): value for key, value in metadata.items() if key.startswith(self.prefix)
        }
        self.read: set[str] = set()

    def get(self, key: str, name: str) -> Any:
        """The value of a key, or None where the key is left out. name: the field of transformers' config that the
        value is checked as.

        Raises NotAModel where the value isn't allowed, UnsupportedModel where it differs between layers."""
        self.read.add(key)
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, list) and value and value.count(value[0]) == len(value):  # the same for every layer
            value = value[0]
        if isinstance(value, list):
            raise UnsupportedModel(
                f"{self.where} has {self.prefix}{key} {shown(value)}, other values for other layers, which Sybil "
                "doesn't know: use a file of another model"
            )
        return FIELDS[name].read(self.where, self.prefix + key, value)

    def __getitem__(self, pair: tuple[str, str]) -> Any:
        """get() of (key, name), for a key that must be there. Raises NotAModel where it isn't."""
        value = self.get(*pair)
        if value is None:
            raise NotAModel(f"{self.where} has no {self.prefix}{pair[0]}: download it again")
        return value

    def refuse_others(self) -> None:
        """Raises UnsupportedModel where a key that hasn't been read could change what is computed."""
        for key in self.values.keys() - self.read - _INDIFFERENT:
            value = self.values[key]
            if not key.startswith(PICTURES) and _NEUTRAL.get(key, ()) != value:
                raise UnsupportedModel(
                    f"{self.where} has {shown(self.prefix + key)} {shown(value)}, which Sybil doesn't know: use a file "
                    "of another model"
                )


def architecture(contents: Contents, where: str) -> str:
    """The name of the file's architecture, a key of ARCHITECTURES.

    Raises NotAModel where the file names no architecture, UnsupportedModel where it names another one."""
    name = contents.metadata.get("general.architecture")
    if name is None:
        raise NotAModel(f"{where} has no general.architecture: it is no language model, or download it again")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{where} is of the architecture {shown(name)}, and {', '.join(ARCHITECTURES)} are read: use a model of "
            "one of these, or a Hugging Face model folder"
        )
    return name


def config(contents: Contents, where: str) -> dict[str, Any]:
    """The fields that the model's config.json would have. Raises NotAModel or UnsupportedModel."""
    name = architecture(contents, where)
    known, keys, tensors = ARCHITECTURES[name], Keys(contents.metadata, name, where), contents.tensors
    if "token_embd.weight" not in tensors:
        raise NotAModel(f"{where} has no tensor token_embd.weight: download it again, or all of its parts")
    said = {field: keys[key, field] for key, field in known.needed.items()}
    said |= {field: value for key, field in known.optional.items() if (value := keys.get(key, field)) is not None}
    found = {"model_type": known.model_type, **known.fixed, **said}
    found["vocab_size"] = tensors["token_embd.weight"].shape[0]
    found["tie_word_embeddings"] = "output.weight" not in tensors
    if known.model_type != "gpt2":
        found |= _attention(keys, found, name, contents)
    if name == "llama" and "sliding_window" in found:
        found["model_type"] = "mistral"
    keys.refuse_others()
    return found


def _attention(keys: Keys, found: Mapping[str, Any], name: str, contents: Contents) -> dict[str, Any]:
    """The fields of an architecture with rotary positions: heads, biases, rotations, and those that only this
    architecture has."""
    heads, tensors = found["num_attention_heads"], contents.tensors
    said, width = keys.get("attention.key_length", "head_dim"), found["hidden_size"] // heads
    size = said or max(width, 1)
    if keys.get("attention.value_length", "head_dim") not in (None, size):
        raise UnsupportedModel(f"{keys.where} has values of another length than keys: use a file of another model")
    more: dict[str, Any] = {"head_dim": said} if said else {}
    if name == "gptneox":
        more["attention_bias"] = "blk.0.attn_qkv.bias" in tensors
    else:
        more["num_key_value_heads"] = keys.get("attention.head_count_kv", "num_key_value_heads") or heads
        more["attention_bias"] = "blk.0.attn_q.bias" in tensors
        more["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    more["rope_parameters"] = _rope(keys, size, contents)
    if name == "granite":
        more |= _granite(keys, found, size)
    if ARCHITECTURES[name].pattern:
        more |= _gemma(keys, found, name, size)
    if name == "gemma3":
        local = keys.get("rope.freq_base_swa", "rope_theta") or keys.get("rope.local.freq_base", "rope_theta")
        more["rope_parameters"] = {
            "full_attention": more["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local or 10000.0},
        }
    return more


def _granite(keys: Keys, found: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A Granite's attention scale. Where the file leaves it out, it is 1 / sqrt(head size); transformers' default of 1
    would be wrong."""
    if keys.values.get("rope.scaling.finetuned") is False:  # false switches rotations off in a Granite
        raise UnsupportedModel(f"{keys.where} is a Granite without rotary positions: use a file of another model")
    return {"attention_multiplier": found.get("attention_multiplier") or 1 / math.sqrt(size)}


def _gemma(keys: Keys, found: Mapping[str, Any], name: str, size: int) -> dict[str, Any]:
    """A Gemma's kinds of layers, activation and query_pre_attn_scalar. The latter is the head's size, except in the 27B
    models, where it is width / heads. No key says that a model is one of these, so the number of layers decides."""
    layers, heads = found["num_hidden_layers"], found["num_attention_heads"]
    return {
        "layer_types": _layer_types(keys, layers, ARCHITECTURES[name].pattern),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": found["hidden_size"] // heads if layers == _LAYERS_OF_27B[name] else size,
    }


def _layer_types(keys: Keys, layers: int, pattern: int) -> list[str]:
    """The kind of each layer, in transformers' words."""
    keys.read.add("attention.sliding_window_pattern")
    said = keys.values.get("attention.sliding_window_pattern", pattern)
    if isinstance(said, int) and said > 0:
        said = [bool((layer + 1) % said) for layer in range(layers)]
    if not isinstance(said, list) or len(said) != layers or not {*map(type, said)} <= {bool}:
        raise NotAModel(
            f"{keys.where} has {keys.prefix}attention.sliding_window_pattern {shown(said)}, and allowed are a number "
            f"or {layers} truths: download it again"
        )
    return ["sliding_attention" if windowed else "full_attention" for windowed in said]


def _rope(keys: Keys, size: int, contents: Contents) -> dict[str, Any]:
    """transformers' rope_parameters. size: of a head."""
    base = keys.get("rope.freq_base", "rope_theta") or keys.get("rope.global.freq_base", "rope_theta")  # Ollama's own
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base or 10000.0}
    kind, factor = keys.get("rope.scaling.type", "rope_type"), keys.get("rope.scaling.factor", "factor")
    factor = factor or keys.get("rope.scale_linear", "factor") or 1.0
    if kind not in (None, "none", "linear"):
        raise UnsupportedModel(
            f"{keys.where} has {keys.prefix}rope.scaling.type {shown(kind)}, and none and linear are known: use a file "
            "of another model"
        )
    if kind != "none" and factor != 1:
        rope |= {"rope_type": "linear", "factor": factor}
    turned = keys.get("rope.dimension_count", "head_dim") or size
    if turned != size or keys.prefix in ("gptneox.", "phi3."):
        share = turned / size
        rope["partial_rotary_factor"] = share if int(size * share) == turned else math.nextafter(share, 2)
    if "rope_freqs.weight" in contents.tensors:
        rope |= _factors(contents, turned, rope, keys)
    return rope


def _factors(contents: Contents, turned: int, rope: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """rope_parameters for a file with a factor for each frequency, such as Llama 3.1's. They are given to transformers
    as longrope, which divides each frequency by its factor. turned: the dimensions of a head that are rotated."""
    place = contents.tensors["rope_freqs.weight"]
    if place.shape != (turned // 2,) or place.type.name != "F32":
        raise NotAModel(
            f"{keys.where} has rope_freqs.weight of {shown(place.shape)} in {place.type.name} and rotates {turned} "
            f"dimensions, which needs ({turned // 2},) in F32: download it again"
        )
    factors = place.numbers().view(torch.float32).flatten().tolist()
    if not all(0 < each < math.inf for each in factors) or rope["rope_type"] != "default":
        raise NotAModel(
            f"{keys.where} has rope_freqs.weight {shown(factors)} and rope.scaling.type {rope['rope_type']}, and "
            "allowed are numbers above 0, and no scaling: download it again"
        )
    return {
        "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0,
        "attention_factor": 1.0, "original_max_position_embeddings": keys.get("context_length", "n_positions"),
    }  # fmt: skip
