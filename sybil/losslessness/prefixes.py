"""transformers' own forward over many texts. A prefix that several texts share is computed once."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sybil.agreement import FLOAT32
from sybil.models.huggingface import entrance, keywords_of
from sybil.transfer import integers

MOST_BYTES = 1 << 28  # the most bytes of keys and values that are kept


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A computed prefix. keys: the keys and values of all layers. last: the logits after its last token, (1, vocab)."""

    keys: DynamicCache
    last: Tensor

    @property
    def bytes(self) -> int:
        return self.last.nbytes + sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in self.keys.layers)

    def copied(self) -> DynamicCache:
        """A cache for a text that continues the prefix. Appending to it makes new tensors and changes none."""
        other = copy.copy(self.keys)
        other.layers = [copy.copy(layer) for layer in self.keys.layers]
        return other


class PrefixForward:
    """A causal model's logits, which several threads may ask for at a time.

    Prefixes are kept only if the model's layers keep the keys and values of every token and nothing else, and if the
    first text of several tokens has the same logits when computed in two parts as when computed in one."""

    def __init__(self, model: PreTrainedModel, most_bytes: int = MOST_BYTES) -> None:
        self.model, self.most_bytes = model, most_bytes
        takes = keywords_of(model)
        self._can_keep = "logits_to_keep" in takes
        # whether texts may be computed in two parts; None until it has been tried
        self._divides: bool | None = None if "past_key_values" in takes else False
        self._prefixes: OrderedDict[tuple[int, ...], _Prefix] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """The logits from which each of tokens (at least one) follows, given all before it: (tokens, vocab)."""
        if self._divides is None and len(tokens) > 1:
            whole = self._whole(prompt, tokens)
            try:
                parts = self._in_two(prompt, tokens)
            except Exception:  # a model may raise anything when given keys; the text is computed whole then
                parts = None
            self._divides = parts is not None and _agree(whole, parts)
            return whole
        parts = self._in_two(prompt, tokens) if self._divides else None
        return self._whole(prompt, tokens) if parts is None else parts

    def _whole(self, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
        return self._rows([*prompt, *tokens][:-1], len(tokens))

    def _in_two(self, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor | None:
        """The logits by way of a kept prefix; None where the model keeps something other than keys and values."""
        prefix = self._prefix(tuple(prompt))
        if prefix is None:
            return None
        if len(tokens) == 1:
            return prefix.last
        return torch.cat([prefix.last, self._rows(tokens[:-1], len(tokens) - 1, prefix.copied())])

    def _prefix(self, prompt: tuple[int, ...]) -> _Prefix | None:
        with self._lock:
            if prompt in self._prefixes:
                self._prefixes.move_to_end(prompt)
                return self._prefixes[prompt]
        keys = DynamicCache(config=self.model.config.get_text_config())
        last = self._rows(prompt, 1, keys).clone()
        if not all(type(layer) is DynamicLayer for layer in keys.layers) or keys.get_seq_length() != len(prompt):
            return None
        prefix = _Prefix(keys, last)
        with self._lock:
            self._prefixes[prompt] = prefix
            while sum(each.bytes for each in self._prefixes.values()) > self.most_bytes:
                self._prefixes.popitem(last=False)
        return prefix

    def _rows(self, ids: Sequence[int], count: int, keys: DynamicCache | None = None) -> Tensor:
        """The logits after the last `count` of ids. keys: the cache of what comes before ids, which is extended."""
        given: dict[str, Any] = {"use_cache": False} if keys is None else {"use_cache": True, "past_key_values": keys}
        if self._can_keep:
            given["logits_to_keep"] = count
        logits: Tensor = self.model(input_ids=integers([list(ids)]).to(entrance(self.model)), **given).logits
        return logits[0, logits.shape[1] - count :]


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether the logits of two forwards of one text differ by no more than rounding explains."""
    size = float(one.masked_fill(one.isinf(), 0.0).abs().amax())
    apart = (one - other).abs().masked_fill(one == other, 0.0).amax()
    return bool(apart <= float(FLOAT32.of(size)))
