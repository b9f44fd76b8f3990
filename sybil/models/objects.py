"""Decides whether Sybil's own forward may run a transformers model in memory.

It may only where the two compute the same. Hooks, adapters and patches can change what a model object computes. So the
object is compared, part by part, with a model that transformers makes from the object's config alone. All code that the
object calls must be transformers' or torch's own."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sybil.errors import SybilError, UnsupportedModel
from sybil.models.checkpoints import templates
from sybil.models.checkpoints.families import understood
from sybil.models.checkpoints.sources import Family
from sybil.models.checkpoints.weights import State
from sybil.models.folders import Checkpoint, plain
from sybil.models.shape import Rotary, Shape
from sybil.models.storage import FORMATS

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""transformers' ways to compute the same attention."""
_EMBEDDING_SCALE = "embed_scale"
CALLED = ("forward", "__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__")
HOMES = tuple(f"{Path(str(each.__file__)).parent}{os.sep}" for each in (torch, transformers))
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
WITHOUT_EFFECT = frozenset(  # on the logits of a model in evaluation mode
    {
        "attention_dropout", "dropout", "inplace", "layerdrop", "p", "gradient_checkpointing",
        "padding_idx", "vocab_size", "max_seq_len_cached", "max_target_positions", "original_max_seq_len",
        "all_tied_weights_keys", "generation_config", "kernel_config", "loss_type", "name_or_path",
    }
)  # fmt: skip


def inside(model: object) -> PreTrainedModel:
    """The transformers model that an object is, or that it wraps (compiled, in parallel, with adapters).

    Raises UnsupportedModel."""
    if isinstance(model, PreTrainedModel):
        return model
    parts = model.modules() if isinstance(model, nn.Module) else ()
    found = [part for part in parts if isinstance(part, PreTrainedModel)]
    if not found or not {*found} <= {*found[0].modules()}:
        raise UnsupportedModel(
            f"the model is of type {type(model).__name__}, which neither is one of transformers' nor holds just one: "
            "give a PreTrainedModel"
        )
    return found[0]


def of_model(model: nn.Module, tokenizer: Any) -> Checkpoint:
    """The checkpoint of a transformers model in memory, or of a module around one. Raises UnsupportedModel.

    If the object runs by its own forward, the reason is logged."""
    inner = inside(model)
    config, generation = inner.config.to_dict(), getattr(inner, "generation_config", None)
    known = _known(config)
    reason = difference(model) if known else "Sybil has no forward for its config"
    if reason:
        logging.getLogger(__name__).info("%s runs through its own forward: %s", type(model).__name__, reason)
    trusted = None if reason or known is None else (known[0], _with_buffers(known[1], inner))
    return Checkpoint(
        name=type(inner).__name__,
        config=config,
        generation=generation.to_diff_dict() if generation else None,
        tokenizer=plain(tokenizer),
        known=trusted,
        stored=State(_parameters(inner)) if trusted else None,
        model=model,
        chat_template=templates.choose(getattr(tokenizer, "chat_template", None)),
        special_tokens=getattr(tokenizer, "special_tokens_map", {}),
        unknown=reason,
    )


def _known(config: Mapping[str, Any]) -> tuple[Family, Shape] | None:
    """The family and shape; None where Sybil's own forward doesn't know the config. None also for a config that
    contradicts itself, because the object may work nevertheless, and for a model of texts and pictures, because the
    object may be given both."""
    try:
        known = understood(config)
    except SybilError:
        return None
    return None if known and known[0].part else known


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """The weights, by each of their names. state_dict() isn't used, because hooks may change what it gives."""
    return {name: weight.detach() for name, weight in model.named_parameters(remove_duplicate=False)}


def _with_buffers(shape: Shape, model: PreTrainedModel) -> Shape:
    """The shape with the object's own rotary frequencies and scale of embeddings in place of the config's: the object's
    dtype may have rounded them. Rotary frequencies may differ between kinds of layers."""
    held = {name.rpartition(".")[2]: buffer for name, buffer in model.named_buffers()}
    kinds = getattr(model.config, "layer_types", None) or [""] * shape.layers
    attentions = []
    for attention, kind in zip(shape.attentions, kinds, strict=True):
        frequencies = held.get(f"{kind}_inv_freq", held.get("inv_freq"))
        if attention.rotary and frequencies is not None:
            rotary = Rotary(attention.rotary.size, tuple(frequencies.float().tolist()))
            attention = replace(attention, rotary=rotary)
        attentions.append(attention)
    scale = float(held[_EMBEDDING_SCALE]) if _EMBEDDING_SCALE in held else shape.embedding_scale
    return replace(shape, attentions=tuple(attentions), embedding_scale=scale)


def difference(model: nn.Module) -> str:
    """Why a model's forward may compute something else than Sybil's own forward does for its config; "" where both
    compute the same.

    The config must be one that Sybil's own forward knows."""
    if not isinstance(model, PreTrainedModel):
        return f"it is wrapped in {type(model).__name__}"
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model.config.model_type)
    family = getattr(transformers, str(name), None)
    if family is None or type(model) is not family:
        return f"it is a {type(model).__name__} and its config is of {name}"
    try:
        with torch.device("meta"):  # takes no memory and draws nothing
            pristine = family(copy.deepcopy(model.config))
    except Exception as error:  # whatever transformers raises of a config that was edited
        return f"its config makes no model ({type(error).__name__})"
    return _of_weights(model) or _of_parts(model, pristine) or _of_code(model) or _of_attention(model)


def _of_weights(model: PreTrainedModel) -> str:
    """Why the weights can't be used: they are offloaded, quantised, sparse, or in several places or dtypes. "" where
    they can."""
    kinds = {(type(weight), weight.device, weight.dtype, weight.layout) for weight in model.parameters()}
    if len(kinds) != 1:
        return "its weights are of several types or dtypes, or in several places"
    kind, device, dtype, layout = kinds.pop()
    if kind is not nn.Parameter or layout != torch.strided or device.type == "meta":
        return f"its weights are of type {kind.__name__} and layout {layout}, on {device}"
    return "" if dtype in {each.dtype for each in FORMATS.values()} else f"its weights are in {dtype}"


def _of_parts(model: PreTrainedModel, pristine: PreTrainedModel) -> str:
    """How the parts differ from those of a model made from the same config; "" where they don't."""
    held, wanted = (dict(each.named_modules(remove_duplicate=False)) for each in (model, pristine))
    odd = sorted(held.keys() ^ wanted.keys())
    if odd:
        return f"{odd[0]} is in the model or in what its config makes, and not in both"
    config = model.config.to_dict()
    for name, part in held.items():
        own = vars(part).get("config", model.config)
        if own is not model.config and own.to_dict() != config:
            return f"{name} has a config of its own"
        for reason in _of_part(part, wanted[name]):
            return f"{name or 'the model'} {reason}"
    return ""


def _of_part(part: nn.Module, pristine: nn.Module) -> Iterator[str]:
    """Yields how one part differs from the same part of a model made from the same config."""
    if type(part) is not type(pristine):
        yield f"is a {type(part).__name__} where the config makes a {type(pristine).__name__}"
        return
    held, wanted = vars(part), vars(pristine)
    if not all(_only_listens(hook) for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())):
        yield "has forward hooks"
    if _sizes(held["_parameters"]) != _sizes(wanted["_parameters"]):
        yield "has other weights than the config makes"
    if _sizes(held["_buffers"]) != _sizes(wanted["_buffers"]) or not all(map(_is_number_of_shape, held["_buffers"])):
        yield "has other buffers than rotary frequencies and a scale of embeddings"
    for name in (held.keys() | wanted.keys()) - OF_EVERY_MODULE - WITHOUT_EFFECT - {"config"}:
        if name not in wanted:  # it matters only where the class has one of that name, for its code to read
            if hasattr(type(part), name):
                yield f"has a {name} of its own"
        elif not name.startswith("_") and not _same(held.get(name), wanted[name]):
            yield f"has {name} {held.get(name)} where the config makes {wanted[name]}"


def _sizes(tensors: Mapping[str, Tensor | None]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items() if tensor is not None}


def _is_number_of_shape(name: str) -> bool:
    """Whether _with_buffers() takes a buffer's numbers into the shape."""
    return name == _EMBEDDING_SCALE or name.endswith(("inv_freq", "original_inv_freq"))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, partial) and isinstance(other, partial):
        return (one.func, one.args, one.keywords) == (other.func, other.args, other.keywords)
    return type(one) is type(other) and bool(one == other)


def _only_listens(hook: Any) -> bool:
    """Whether a hook is one of transformers' own that change nothing."""
    name = getattr(hook, "__qualname__", "").rpartition(".")[2]
    return name in ("output_capturing_hook", "make_inputs_require_grads") and _is_theirs(hook)


def _of_code(model: PreTrainedModel) -> str:
    """Which code that the model calls is neither transformers' nor torch's own; "" where there is none."""
    if every_module._global_forward_hooks or every_module._global_forward_pre_hooks:
        return "there are forward hooks for every module"
    home = sys.modules[type(model).__module__]
    for kind in {kind for part in model.modules() for kind in type(part).__mro__ if kind is not object}:
        if kind.__module__.partition(".")[0] not in ("torch", "transformers"):
            return f"{kind.__name__} is a class of {kind.__module__}"
        for name, value in vars(kind).items():
            if not _is_as_written(kind, name, value, home.__name__):
                return f"{kind.__name__}.{name} was replaced"
    for name, value in vars(home).items():
        is_library = isinstance(value, FunctionType) and value.__module__ not in sys.stdlib_module_names
        if is_library and not _is_theirs(value):
            return f"{home.__name__}.{name} was replaced"
    return ""


def _is_as_written(kind: type, name: str, value: Any, home: str) -> bool:
    """Whether a class's attribute is the one that its file defines. True also where no forward calls it."""
    function = value.__func__ if isinstance(value, staticmethod) else value
    if name not in CALLED and not (kind.__module__ == home and isinstance(function, FunctionType)):
        return True
    called = getattr(inspect.unwrap(function), "__qualname__", "")
    return _is_theirs(function) and (name != "forward" or kind is nn.Module or called == f"{kind.__name__}.forward")


def _is_theirs(function: Any) -> bool:
    """Whether a function, and each function that it wraps, is defined in a file of torch or transformers."""
    while isinstance(function, FunctionType):
        if not function.__code__.co_filename.startswith(HOMES):
            return False
        function = getattr(function, "__wrapped__", None)
    return function is None


def _of_attention(model: PreTrainedModel) -> str:
    """Why the attention isn't transformers' own: another one is chosen, or is registered under the name of one of
    transformers'. "" where it is transformers' own."""
    home = sys.modules[type(model).__module__]
    for way in {str(part.config._attn_implementation) for part in model.modules() if hasattr(part, "config")}:
        if way not in ATTENTION or (
            way == "sdpa" and not model._supports_sdpa
        ):  # sdpa has no caps, which Gemma 2 needs
            return f"its attention is {way}"
        attend = home.ALL_ATTENTION_FUNCTIONS.get_interface(way, home.eager_attention_forward)
        if not _is_theirs(attend) or not _is_theirs(ALL_MASK_ATTENTION_FUNCTIONS.get(way)):
            return f"its attention {way} was replaced"
    return ""
