"""From a name, a folder or a transformers model to a Decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sybil.arguments import described
from sybil.decoding import Decoder
from sybil.defaults import Defaults
from sybil.devices import choose_device, default_draft_dtype, default_dtype
from sybil.drafting import DraftLookup, DraftModel
from sybil.errors import InvalidSetting
from sybil.fit import check_vocabularies
from sybil.models import building, folders
from sybil.models.folders import Checkpoint
from sybil.models.storage import storage_of
from sybil.pairs import PAIRS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LOOKUP = "lookup"
PLANNED_DRAFTS = ("int8", "skip", "hybrid")


def load(
    target: str | Path | PreTrainedModel,
    draft: str | Path | PreTrainedModel | None = None,
    *,
    dtype: torch.dtype | None = None,
    draft_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    tokenizer: Any = None,
) -> Decoder:
    """A Decoder for a pair's name, a hub id, a folder or a transformers model.

    A pair's name brings its draft; elsewhere no draft means plain autoregressive decoding, and "lookup" proposes what
    followed the last tokens where they stood before. dtype: None is
    float32 on a CPU, float16 on a GPU; draft_dtype: None is int8 on a CPU, where our own forward knows the draft
    (the rule makes up for what it costs in agreement), and dtype elsewhere; device: None is the GPU where there is
    one. tokenizer: for models passed as objects, transformers' or tokenizers' own. What the target's own files ask of a
    generation becomes the Decoder's defaults; of that, what Sybil doesn't do is said by a UserWarning and left out.
    Raises the errors of sybil.errors.
    """
    _check(target, draft, tokenizer)
    _check_dtypes(dtype, draft_dtype)
    if isinstance(target, str) and target in PAIRS:
        target, draft = PAIRS[target].target, PAIRS[target].draft if draft is None else draft
    if not isinstance(target, str | Path):  # a model that is somewhere already: follow it
        from sybil.models.huggingface import entrance

        device, dtype = device or entrance(target), dtype or target.dtype
    chosen = choose_device(device)
    dtype = dtype or default_dtype(chosen)
    main = read(target, tokenizer)
    asked = Defaults.of(main.generation, main.config, main.name)
    model = building.load(main, storage_of(dtype), dtype, chosen)
    asked.warn(main.name)
    if draft is None:
        return Decoder(model, None, main.tokenizer, asked.end_tokens, asked.values)
    if draft == LOOKUP:
        return Decoder(model, DraftLookup(), main.tokenizer, asked.end_tokens, asked.values)
    draft_dtype = draft_dtype or default_draft_dtype(dtype, chosen)
    if draft_dtype == torch.int8 and chosen.type != "cpu":
        raise InvalidSetting(f"draft_dtype is int8 on {chosen}: int8 is for CPUs, use {dtype} or leave it out")
    # a tokenizer given for objects is shared: padding may differ then
    helper = read(draft, tokenizer)
    drafting = building.load(helper, storage_of(draft_dtype), dtype, chosen)
    check_vocabularies(main, helper, (model.vocab_size, drafting.vocab_size))
    return Decoder(model, DraftModel(drafting), main.tokenizer, asked.end_tokens, asked.values)


def _check(target: Any, draft: Any, tokenizer: Any) -> None:
    """Raises InvalidSetting for what is no model, before anything is read."""
    for name, source in (("target", target), ("draft", draft)):
        if isinstance(source, str | Path) or (source is None and name == "draft"):
            continue
        if isinstance(source, Mapping) and any(isinstance(each, torch.Tensor) for each in source.values()):
            raise InvalidSetting(
                f"{name} is a mapping of weights, which says nothing of the model: load_state_dict() them into one, "
                "or save_pretrained() it and give its folder"
            )
        if not (isinstance(source, torch.nn.Module) and hasattr(source, "config")):
            raise InvalidSetting(
                f"{name} is {described(source)}: give a pair's name, a hub id, a folder, or a transformers model"
            )
    if tokenizer is not None and not any(isinstance(source, torch.nn.Module) for source in (target, draft)):
        raise InvalidSetting("tokenizer is given, and no model as an object: a folder has its own, leave it out")


def _check_dtypes(dtype: Any, draft_dtype: Any) -> None:
    """Raises InvalidSetting."""
    for name, given, allowed in (("dtype", dtype, DTYPES), ("draft_dtype", draft_dtype, (*DTYPES, torch.int8))):
        if given is not None and not (isinstance(given, torch.dtype) and given in allowed):
            raise InvalidSetting(f"{name} is {described(given)}: use {', '.join(map(str, allowed))}")


def read(source: str | Path | PreTrainedModel, tokenizer: Any = None) -> Checkpoint:
    """The checkpoint of a name, a folder or a model object, whose tokenizer is the one given."""
    if not isinstance(source, str | Path):
        return folders.of_model(source, tokenizer)
    if source == LOOKUP:
        raise InvalidSetting(f"{source!r} is no model, and this needs one: give a hub id, a folder, or a pair's name")
    if source in PLANNED_DRAFTS:
        raise InvalidSetting(f"draft is {source!r}, which is planned and not there yet: give a draft model, or none")
    return folders.read(source)
