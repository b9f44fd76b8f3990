"""Hugging Face folders into a Transformer: config.json, *.safetensors, nothing executed.

One description a family says how its config and its weights' names map to ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sybil.errors import NotAModel, UnsupportedModel, WeightsMismatch
from sybil.models.linear import Activation
from sybil.models.transformer import Shape, Transformer

_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; raises NotAModel where there is none or it is no JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise NotAModel(f"{folder} holds no config.json: give a Hugging Face model folder or a hub id")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; raises NotAModel."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise NotAModel(f"{path} can't be read as JSON ({error}): export the model again") from None
    if not isinstance(content, dict):
        raise NotAModel(f"{path} holds no JSON object: export the model again")
    return content


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether our own forward knows the config's family and options."""
    return (
        config.get("model_type") == "gpt2"
        and config.get("activation_function", "gelu_new") in _ACTIVATIONS
        and not config.get("add_cross_attention", False)
        and not config.get("scale_attn_by_inverse_layer_idx", False)
        and not config.get("quantization_config")
    )


def load(folder: Path, dtype: torch.dtype, device: torch.device) -> Transformer:
    """The folder's model; raises NotAModel, UnsupportedModel or WeightsMismatch."""
    config = read_config(folder)
    if not is_native(config):
        raise UnsupportedModel(f"{folder} is a {config.get('model_type')!r} model: load it through HuggingFaceModel")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise NotAModel(f"{folder} holds no *.safetensors: Sybil reads weights from safetensors only")
    stored: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                stored |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  no dict
        except (SafetensorError, OSError) as error:
            raise NotAModel(f"{file} is not a safetensors file ({error}): download or export it again") from None
    return from_state(config, stored, dtype, device, str(folder))


def from_state(
    config: Mapping[str, Any], stored: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, name: str
) -> Transformer:
    """A GPT-2 state dict, of the model with its head or without, in our names and layout."""
    stored = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    shape = _gpt2_shape(config)
    weights: dict[str, Tensor] = {}

    def take(ours: str, theirs: str, size: tuple[int, ...], transposed: bool = False) -> None:
        if theirs not in stored:
            raise WeightsMismatch(
                f"{name} lacks the weight {theirs}, which its config asks for: the two don't belong together"
            )
        tensor = stored[theirs]
        if tuple(tensor.shape) != size:
            raise WeightsMismatch(
                f"{name}: {theirs} has shape {tuple(tensor.shape)} where its config asks for {size}: "
                "mend config.json or fetch the weights that belong to it"
            )
        tensor = tensor.T if transposed else tensor
        weights[ours] = tensor.to(device=device, dtype=dtype).contiguous()

    def take_product(ours: str, theirs: str, inputs: int, outputs: int) -> None:
        take(f"{ours}.weight", f"{theirs}.weight", (inputs, outputs), transposed=True)  # GPT-2 keeps (inputs, outputs)
        take(f"{ours}.bias", f"{theirs}.bias", (outputs,))

    def take_norm(ours: str, theirs: str) -> None:
        take(f"{ours}.weight", f"{theirs}.weight", (shape.width,))
        take(f"{ours}.bias", f"{theirs}.bias", (shape.width,))

    take("token_embedding", "wte.weight", (shape.vocab_size, shape.width))
    take("position_embedding", "wpe.weight", (shape.context, shape.width))
    for layer in range(shape.layers):
        take_norm(f"{layer}.attention_norm", f"h.{layer}.ln_1")
        take_product(f"{layer}.query_key_value", f"h.{layer}.attn.c_attn", shape.width, 3 * shape.width)
        take_product(f"{layer}.attention_out", f"h.{layer}.attn.c_proj", shape.width, shape.width)
        take_norm(f"{layer}.mlp_norm", f"h.{layer}.ln_2")
        take_product(f"{layer}.mlp_in", f"h.{layer}.mlp.c_fc", shape.width, shape.inner)
        take_product(f"{layer}.mlp_out", f"h.{layer}.mlp.c_proj", shape.inner, shape.width)
    take_norm("final_norm", "ln_f")
    if not shape.tied_head:
        take("head.weight", "lm_head.weight", (shape.vocab_size, shape.width))
    return Transformer(shape, weights)


def _gpt2_shape(config: Mapping[str, Any]) -> Shape:
    """GPT2Config's fields, with its defaults where config.json leaves one out."""
    width, heads = int(config.get("n_embd", 768)), int(config.get("n_head", 12))
    if width % heads:
        raise WeightsMismatch(
            f"config.json has n_embd {width} and n_head {heads}: the first must be a multiple of the second"
        )
    scale = 1 / math.sqrt(width // heads) if config.get("scale_attn_weights", True) else 1.0
    return Shape(
        vocab_size=int(config.get("vocab_size", 50257)),
        context=int(config.get("n_positions", 1024)),
        layers=int(config.get("n_layer", 12)),
        heads=heads,
        width=width,
        inner=int(config.get("n_inner") or 4 * width),
        activation=_ACTIVATIONS[config.get("activation_function", "gelu_new")],
        epsilon=float(config.get("layer_norm_epsilon", 1e-5)),
        attention_scale=scale,
        tied_head=bool(config.get("tie_word_embeddings", True)),
    )
