"""A draft that knows only the target's commonest tokens, and reads one and the same token in place of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sybil.drafting.model import DraftModel
from sybil.models import Model
from sybil.transfer import integers, upload


@dataclass(frozen=True, slots=True)
class DraftNarrowed(DraftModel):
    """A ModelDrafter whose model is a Narrowed."""

    way: ClassVar[str] = "commonest"


class Narrowed:
    """A Model over the target's vocabulary, made from a model that knows only some of the target's tokens.

    The draft's last token stands for every token that the draft doesn't know. The draft reads it in their place, and
    never proposes it: the logits of unknown tokens are -inf. So the draft's head, the costliest part of a small model,
    can be smaller than the target's vocabulary, while the target can still emit every token."""

    def __init__(self, model: Model, tokens: Sequence[int], vocab_size: int) -> None:
        """tokens: the target's token for each of the draft's tokens except the last. vocab_size: the target's."""
        self.model, self.vocab_size = model, vocab_size
        self.context, self.device = model.context, model.device
        self.storage = getattr(model, "storage", None)  # which reports name
        kept = integers(tokens)
        own = torch.full((vocab_size,), len(tokens), dtype=torch.int64, device="cpu")
        own[kept] = torch.arange(len(tokens), dtype=torch.int64, device="cpu")
        self._kept, self._own = upload(kept, self.device), upload(own, self.device)

    @property
    def weight_bytes(self) -> int:
        return self.model.weight_bytes

    def new_cache(self, batch: int, capacity: int) -> Any:
        return self.model.new_cache(batch, capacity)

    def forward(self, tokens: Tensor, cache: Any) -> Tensor:
        """See Model; (batch, n, the target's vocabulary)."""
        logits = self.model.forward(self._own[upload(tokens, self.device)], cache)[..., : len(self._kept)]
        if logits.is_cpu and logits.dtype != torch.bfloat16:  # numpy doesn't start torch's threads
            found = np.full((*logits.shape[:2], self.vocab_size), -np.inf, logits.numpy().dtype)
            found[..., self._kept.numpy()] = logits.numpy()
            return torch.from_numpy(found)
        over = logits.new_full((*logits.shape[:2], self.vocab_size), float("-inf"))
        return over.index_copy_(-1, self._kept, logits)

    def prefill(self, tokens: Tensor, cache: Any) -> None:
        self.model.prefill(self._own[upload(tokens, self.device)], cache)
