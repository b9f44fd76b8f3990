"""Makes a Decoder from a name, a folder, a GGUF file or a transformers model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sybil import fit
from sybil.arguments import described, token_ids
from sybil.chat import ChatTemplate
from sybil.decoding import Decoder
from sybil.defaults import Defaults
from sybil.devices import AUTO, Asked, choose_device, default_dtype, dtype_named, is_few, word_of
from sybil.drafting import Answers, DrafterFactory, DraftLookup
from sybil.drafts import DraftMaker, has_model, is_model, looks_up, parse
from sybil.errors import HubUnreachable, InvalidSetting, NotAModel
from sybil.models import Model, building, folders
from sybil.models.adapting import adapted
from sybil.models.checkpoints.templates import SPECIAL
from sybil.models.checkpoints.weights import Watched
from sybil.models.folders import Checkpoint
from sybil.models.storage import Kept
from sybil.pairs import PAIRS, remedy
from sybil.progress import bar, transformers_bars
from sybil.storages import draft_kept, dtype_of, place_of, target_kept
from sybil.texts import datastore as indexed

IN_BLOCKS = "blocks"
"""The word that reports use in place of a dtype where the weights stay in the blocks of their GGUF file."""


def load(
    target: str | Path | nn.Module,
    draft: str | Path | nn.Module | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    draft_dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    tokenizer: Any = None,
    datastore: Sequence[str | Path] = (),
    keep_answers: bool = False,
    progress: bool | None = None,
) -> Decoder:
    """Load a target model, and a draft if there is one, into a Decoder.

    - target: a pair's name, a hub id, a folder, a GGUF file or a transformers model. A GGUF file may be named as a
      local Ollama names it: "ollama:smollm2:135m".
    - draft: a model, given as the target is, or one of the names in drafts.py. "self" is a copy of the target in fewer
      bits. "lookup" proposes the tokens that followed earlier occurrences of the text's last tokens. None stands for
      the pair's draft where the target is a pair's name, and else for plain autoregressive decoding.
    - dtype: torch's, or its name as transformers takes it; "auto" is the checkpoint's own. None is float32 on a CPU. On
      a GPU None is float16, or bfloat16 for a model that may need more than float16's range; where the GPU has no
      bfloat16, such a model is loaded in float32, with a UserWarning. On a CPU a quantised storage can be named too:
      "int8", "int4", or a block type of GGUF files ("q4_k"). Decoding is lossless for the quantised target then, which
      is another model than the stored one. On a CPU the weights of a GGUF file stay in the file's own blocks where no
      dtype is named; products use the float32 numbers that the blocks stand for.
    - draft_dtype: the dtype of a draft that is a model. None is int8 on a CPU, where Sybil's own forward knows the
      draft, and dtype elsewhere. The rounding can lower the acceptance rate, but the rule keeps the output lossless.
    - device: "cpu", "cuda" or "mps". None and "auto" are the CUDA GPU where there is one, and else the CPU.
    - revision: a branch, a tag or a commit of the target's hub id.
    - adapter: a LoRA adapter in peft's format, as a folder or a hub id. It is merged into the target's weights.
    - tokenizer: for models passed as objects; a tokenizer of transformers or of the package tokenizers.
    - datastore: files of text (pathlib.Path) and texts (str) that "lookup" searches beside the row's own text, at most
      16 MiB together.
    - keep_answers: whether "lookup" searches earlier answers too. It does so only where that can't change a text: when
      decoding greedily by a lossless rule, and by the rule `coupled`.
    - progress: whether bars show downloads and the reading of weights. None shows them where standard error is a
      terminal.

    A model object keeps its device, dtype and modes. Sybil's own forward replaces the object's where both are sure to
    give the same (models/objects.py). It uses the weights as they are now: load again after changing them. Elsewhere,
    for example with hooks, adapters or patches, the object's own forward runs.

    The generation settings in the target's own files become the Decoder's defaults. Those that Sybil doesn't support
    are left out, with a UserWarning.

    Raises the errors of sybil.errors.
    """
    _check(target, draft, tokenizer)
    _check_origin(target, revision, adapter)
    asked, draft_asked = dtype_named(dtype), dtype_named(draft_dtype, draft=True)
    if isinstance(target, str) and target in PAIRS:
        target, draft = PAIRS[target].source, PAIRS[target].draft if draft is None else draft
    if not isinstance(target, str | Path):  # a model object: stay on the device that it is on
        device = place_of(target) if device in (None, AUTO) else device
    check_draft_dtype(draft, draft_asked)
    chosen = choose_device(device)
    main = read(target, tokenizer, revision, adapter, progress)
    fit.check_target(main)
    stored, kept = target_kept(main, asked, chosen)
    if asked is None and chosen.type == "cuda" and kept == torch.float32:
        _warn_of_range(main, chosen)
    defaults = Defaults.of(main.generation, main.config, main.name)
    model = _built(main, stored, kept, chosen, progress)
    defaults.warn(main.name)
    decoder = Decoder(model, None, main.tokenizer, defaults.end_tokens, defaults.values, chat_template(main))
    index = indexed(datastore, main.tokenizer)
    if (index or keep_answers) and not (isinstance(draft, str) and looks_up(parse(draft))):
        given = "datastore is given" if index else "keep_answers is True"
        raise InvalidSetting(
            f"{given} and draft is {described(draft)}, which looks nothing up: use 'lookup', or 'hybrid:lookup,self'"
        )
    if draft is None:
        return decoder
    lookup = DraftLookup(datastore=index, answers=Answers() if keep_answers else None)
    making = maker(main, model, kept, draft_asked, tokenizer, lookup, progress)
    return decoder.with_draft(making.make(parse(draft)) if isinstance(draft, str) else making.source(draft))


def _warn_of_range(checkpoint: Checkpoint, device: torch.device) -> None:
    """Warn that a model is loaded in float32 for its range. A model passed as an object keeps its dtype: no warning."""
    if checkpoint.model is None:
        warnings.warn(
            f"{checkpoint.name} may need more than float16's range, and {device} has no bfloat16: it is loaded in "
            "float32. dtype='float16' takes half the memory, where it is enough",
            UserWarning,
            stacklevel=3,
        )


def maker(
    checkpoint: Checkpoint,
    model: Model,
    dtype: torch.dtype,
    draft_dtype: Asked = None,
    tokenizer: Any = None,
    lookup: DraftLookup | None = None,
    progress: bool | None = None,
) -> DraftMaker:
    """The maker of drafters for the checkpoint's model, which was loaded in dtype. lookup: the factory that "lookup"
    stands for. The other arguments and the errors are those of load()."""

    def source(named: str | Path | nn.Module) -> DrafterFactory:
        device = model.device
        # a tokenizer given for model objects is shared by both; the logits' padding may differ then
        helper = read(named, tokenizer, progress=progress)
        stored, computed = draft_kept(helper, draft_dtype, dtype, device)
        return fit.drafter(checkpoint, helper, model, _built(helper, stored, computed, device, progress))

    return DraftMaker(checkpoint, model, source, lookup or DraftLookup())


def check_draft_dtype(draft: Any, draft_dtype: Asked) -> None:
    """Raises InvalidSetting where draft_dtype is given and the draft is no second model: it would be ignored."""
    if draft_dtype is not None and isinstance(draft, str) and not has_model(parse(draft)):
        raise InvalidSetting(
            f"draft_dtype is {word_of(draft_dtype)} and draft is {described(draft)}, which is no "
            "second model: leave draft_dtype out (self:8 names its bits)"
        )


def chat_template(checkpoint: Checkpoint) -> ChatTemplate | None:
    """The checkpoint's chat template, which makes a prompt of messages; None where the checkpoint has none."""
    text, tokens = checkpoint.chat_template, checkpoint.special_tokens
    if text is None or checkpoint.tokenizer is None:
        return None
    if tokens is None:
        ids = {name: token_ids(f"{name}_id", checkpoint.config.get(f"{name}_id")) for name in SPECIAL}
        named = {name: checkpoint.tokenizer.id_to_token(several[0]) for name, several in ids.items() if several}
        tokens = {name: token for name, token in named.items() if token is not None}
    return ChatTemplate(text, tokens)


def _check(target: Any, draft: Any, tokenizer: Any) -> None:
    """Raises InvalidSetting for a target, draft or tokenizer that can't be one, before anything is read."""
    for name, source in (("target", target), ("draft", draft)):
        if source == "":  # Path("") is the current folder
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


def _check_origin(target: Any, revision: Any, adapter: Any) -> None:
    """Raises InvalidSetting for a value that can't be a revision or an adapter, and for a target that can't have
    one."""
    if revision is not None and not (isinstance(revision, str) and revision.strip()):
        raise InvalidSetting(f"revision is {described(revision)}: give a branch, a tag or a commit, or leave it out")
    if adapter is not None and (not isinstance(adapter, str | Path) or adapter == ""):
        raise InvalidSetting(f"adapter is {described(adapter)}: give an adapter's folder or hub id, or leave it out")
    if revision is not None and not isinstance(target, str | Path):
        raise InvalidSetting(f"revision is {described(revision)} and the target is an object: leave revision out")


def read(
    source: str | Path | nn.Module,
    tokenizer: Any = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    progress: bool | None = None,
) -> Checkpoint:
    """The checkpoint of a name, a folder or a model object, with the adapter merged into its weights. tokenizer: of a
    model object. The other arguments and the errors are those of load()."""
    if not isinstance(source, str | Path):
        from sybil.models.objects import of_model

        found = of_model(source, tokenizer)
    elif isinstance(source, str) and not is_model(source):
        raise InvalidSetting(f"{source!r} is no model, and this needs one: give a hub id, a folder, or a pair's name")
    else:
        with _remedied(source):
            found = folders.read(source, revision, progress)
    return found if adapter is None else adapted(found, adapter, progress)


def _built(
    checkpoint: Checkpoint, kept: Kept, foreign: torch.dtype, device: torch.device, progress: bool | None
) -> Model:
    """The result of building.load(), with a progress bar while the weights are read."""
    if checkpoint.known is None or checkpoint.stored is None:
        with transformers_bars(progress):
            return building.load(checkpoint, kept, foreign, device)
    with bar(f"loading {checkpoint.name}", checkpoint.stored.nbytes, progress) as tell:
        return building.load(replace(checkpoint, stored=Watched(checkpoint.stored, tell)), kept, foreign, device)


@contextlib.contextmanager
def _remedied(source: str | Path) -> Iterator[None]:
    """A context manager that adds the known remedy to the error of a registered model that can't be loaded."""
    try:
        yield
    except (HubUnreachable, NotAModel) as error:
        more = remedy(source)
        if not more:
            raise
        raise type(error)(f"{error}{more}") from None


def kept_in(source: str | Path, dtype: str | None, device: torch.device, revision: str | None = None) -> str:
    """The storage in which load() keeps a target's weights, in the words of reports: IN_BLOCKS where the weights stay
    in their GGUF file's blocks (on a CPU where no dtype is named), and else a word that load() takes as dtype. Raises
    the errors of load()."""
    asked = dtype_named(dtype)
    if asked in (None, AUTO) and device.type == "cpu":
        with _remedied(source):
            if folders.locate(source, revision).is_file():
                return IN_BLOCKS
    if asked is not None and is_few(asked):
        return word_of(asked)
    return word_of(dtype_chosen(source, dtype, device, revision))


def dtype_chosen(
    source: str | Path, dtype: str | None, device: torch.device, revision: str | None = None
) -> torch.dtype:
    """The dtype in which a target loaded by load() computes; float32 where its weights are quantised. Raises the errors
    of load()."""
    asked = dtype_named(dtype)
    if asked is None and device.type != "cuda":
        return default_dtype(device)
    if isinstance(asked, torch.dtype) and not is_few(asked):
        return asked
    return torch.float32 if is_few(asked) else dtype_of(read(source, revision=revision), asked, device)
