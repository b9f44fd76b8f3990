"""A model run by transformers: the target that a decoder is compared with, in one copy for all who can share it."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel

from sybil.chat import ChatTemplate
from sybil.defaults import Defaults
from sybil.devices import FEW, choose_device, dtype_named, word_of
from sybil.errors import InvalidSetting
from sybil.loading import chat_template, dtype_chosen, kept_in, read
from sybil.models.folders import Checkpoint
from sybil.models.huggingface import entrance
from sybil.models.objects import inside

WIDE = (torch.float32, torch.float64)
Source = str | Path | nn.Module
"""A hub id, a folder, a GGUF file, or a transformers model."""


class Original:
    """A target, or the judge's own copy of a draft. Each part is read or loaded once, when it is first asked for.
    kept: what the decoder keeps the weights in, in a report's words.

    dtype, revision, adapter: as sybil.load takes them. A decoder that keeps its weights in few bits ("int8") is
    compared with the file's own weights. Any model that transformers loads can be judged, also one that Sybil can't
    decode. Raises the errors of sybil.errors."""

    def __init__(
        self,
        source: Source,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        tokenizer: object = None,
        revision: str | None = None,
        adapter: str | Path | None = None,
    ) -> None:
        self._source, self._tokenizer, self._revision, self._adapter = source, tokenizer, revision, adapter
        if isinstance(source, str | Path):
            named = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
            self.device = choose_device(device)
            self.kept = kept_in(source, named, self.device, revision)
            self.dtype = dtype_chosen(source, named, self.device, revision)
        else:
            model = inside(source)
            self.device, self.dtype, self.kept = entrance(model), model.dtype, word_of(model.dtype)
            self._check_as_it_is(dtype, device)

    def _check_as_it_is(self, dtype: str | torch.dtype | None, device: str | torch.device | None) -> None:
        asked = dtype_named(dtype)
        if isinstance(asked, torch.dtype) and asked != self.dtype:
            raise InvalidSetting(f"dtype is {asked} and the model is in {self.dtype}: convert it, or leave dtype out")
        if device is not None and choose_device(device).type != self.device.type:
            raise InvalidSetting(f"device is {device} and the model is on {self.device}: move it, or leave device out")

    @property
    def name(self) -> str:
        return str(self._source) if isinstance(self._source, str | Path) else type(inside(self._source)).__name__

    @property
    def is_rounded(self) -> bool:
        """Whether the decoder rounds the file's weights to few bits."""
        return self.kept in FEW

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return read(self._source, self._tokenizer, self._revision, self._adapter)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.checkpoint.tokenizer

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        return chat_template(self.checkpoint)

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        known = self.checkpoint
        return tuple(sorted(Defaults.of(known.generation, known.config, known.name).end_tokens))

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model in the decoder's dtype."""
        return inside(self._source) if isinstance(self._source, nn.Module) else self.loaded()

    @cached_property
    def reference(self) -> PreTrainedModel:
        """The same weights, computed in float32 at least. It is `model` itself where that is as wide, or where that is
        quantised, because quantised weights can't be converted."""
        if self.dtype in WIDE or self.checkpoint.config.get("quantization_config"):
            return self.model
        widened: PreTrainedModel = self.loaded().float()
        return widened

    def loaded(self) -> PreTrainedModel:
        """A new copy of the model, which the caller of this method may change."""
        if isinstance(self._source, nn.Module):
            return copy.deepcopy(inside(self._source))
        from sybil.models.pretrained import load_transformers

        return load_transformers(self.checkpoint, self.dtype, self.device).eval()
