"""From a name, a folder or a transformers model to a Decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sybil.decoding import Decoder
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
    one. tokenizer: for models passed as objects, transformers' or tokenizers' own. Raises the errors of sybil.errors.
    """
    if isinstance(target, str) and target in PAIRS:
        target, draft = PAIRS[target].target, PAIRS[target].draft if draft is None else draft
    if not isinstance(target, str | Path):  # a model that is somewhere already: follow it
        from sybil.models.huggingface import entrance

        device, dtype = device or entrance(target), dtype or target.dtype
    chosen = choose_device(device)
    dtype = dtype or default_dtype(chosen)
    main = read(target, tokenizer)
    model = building.load(main, storage_of(dtype), dtype, chosen)
    if draft is None:
        return Decoder(model, None, main.tokenizer, main.eos_token_ids)
    if draft == LOOKUP:
        return Decoder(model, DraftLookup(), main.tokenizer, main.eos_token_ids)
    draft_dtype = draft_dtype or default_draft_dtype(dtype, chosen)
    if draft_dtype == torch.int8 and chosen.type != "cpu":
        raise InvalidSetting(f"draft_dtype is int8 on {chosen}: int8 is for CPUs, use {dtype} or leave it out")
    # a tokenizer given for objects is shared: padding may differ then
    helper = read(draft, tokenizer)
    drafting = building.load(helper, storage_of(draft_dtype), dtype, chosen)
    check_vocabularies(main, helper, (model.vocab_size, drafting.vocab_size))
    return Decoder(model, DraftModel(drafting), main.tokenizer, main.eos_token_ids)


def read(source: str | Path | PreTrainedModel, tokenizer: Any = None) -> Checkpoint:
    """The checkpoint of a name, a folder or a model object, whose tokenizer is the one given."""
    if not isinstance(source, str | Path):
        return folders.of_model(source, tokenizer)
    if source == LOOKUP:
        raise InvalidSetting(f"{source!r} is no model, and this needs one: give a hub id, a folder, or a pair's name")
    if source in PLANNED_DRAFTS:
        raise InvalidSetting(f"draft is {source!r}, which is planned and not there yet: give a draft model, or none")
    return folders.read(source)
