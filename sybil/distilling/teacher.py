"""The target as a teacher: its answers, and its likeliest next tokens at each place of answers and texts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sybil.decoding import Decoder
from sybil.distilling.material import Ids
from sybil.distilling.shards import TOP, Shard
from sybil.models import Model
from sybil.transfer import integers

LEAD = 128  # the last tokens of a prompt that the draft reads before an answer
LOGITS_AT_ONCE = 1 << 24


class NotedTarget:
    """A model that notes the likeliest next tokens after the last token of each forward, as likeliest() gives them."""

    def __init__(self, model: Model) -> None:
        self.model, self.vocab_size, self.context, self.device = model, model.vocab_size, model.context, model.device
        self.noted: list[tuple[Tensor, Tensor]] = []

    @property
    def weight_bytes(self) -> int:
        return self.model.weight_bytes

    def new_cache(self, batch: int, capacity: int) -> Any:
        return self.model.new_cache(batch, capacity)

    def forward(self, tokens: Tensor, cache: Any) -> Tensor:
        logits = self.model.forward(tokens, cache)
        self.noted.append(likeliest(logits[:, -1]))
        return logits

    def prefill(self, tokens: Tensor, cache: Any) -> None:
        self.model.prefill(tokens, cache)


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of logits (n, vocab), at most TOP, and their log-probabilities: both (n, k), on the CPU."""
    logits = logits.float()
    values, tokens = logits.topk(min(TOP, logits.shape[-1]), dim=-1)
    return tokens.cpu(), (values - logits.logsumexp(-1, keepdim=True)).cpu()


def answers(decoder: Decoder, prompts: Sequence[Ids], new_tokens: int, *, sampled: bool, seed: int) -> Shard:
    """The target's answers to the prompts, decoded in one batch: greedily, or sampled from its whole distribution.

    The draft learns from answers because it will draft for what the target writes. Decoding is plain, so each new token
    is one forward of the target, which is noted."""
    began = time.monotonic()
    asked = NotedTarget(decoder.target)
    plain = Decoder(asked, None, None, decoder.eos_token_ids)
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0} if sampled else {}
    said = plain.generate([integers(each.tolist()) for each in prompts], max_new_tokens=new_tokens, seed=seed, **drawn)
    top, log_probs = (torch.stack(each, 1).numpy() for each in zip(*asked.noted, strict=True))  # (batch, rounds, k)
    tokens, likely, probs = [], [], []
    for row, (prompt, new) in enumerate(zip(prompts, said.tokens, strict=True)):
        lead, count = prompt[-LEAD:], len(new)
        tokens += [lead, new.numpy()]
        likely.append(_around(top[row, :count], len(lead) - 1, 1, 0))
        probs.append(_around(log_probs[row, :count], len(lead) - 1, 1, -np.inf))
    return _shard(tokens, likely, probs, began)


@torch.inference_mode()
def texts(model: Model, windows: Sequence[Ids]) -> Shard:
    """The target's likeliest next tokens after each token of the windows. All windows have the same length."""
    began = time.monotonic()
    rows = integers(np.stack(windows).tolist())
    batch, length = rows.shape
    cache = model.new_cache(batch, length)
    parts = torch.split(rows, max(LOGITS_AT_ONCE // (batch * model.vocab_size), 1), 1)
    found = [_by_row(model.forward(part.contiguous().to(model.device), cache)) for part in parts]
    top, log_probs = (torch.cat(each, 1).numpy() for each in zip(*found, strict=True))
    return _shard([*rows.numpy()], [*top], [*log_probs], began)


def _by_row(logits: Tensor) -> tuple[Tensor, Tensor]:
    """likeliest() for logits (batch, n, vocab): both results are (batch, n, k)."""
    tokens, log_probs = likeliest(logits.flatten(0, 1))
    shape = (*logits.shape[:2], tokens.shape[-1])
    return tokens.view(shape), log_probs.view(shape)


def _around(found: np.ndarray, before: int, after: int, value: float) -> np.ndarray:
    """An array (n, k) with `before` and `after` rows of a value added at its ends."""
    return np.pad(found, ((before, after), (0, 0)), constant_values=value)


def _shard(tokens: Sequence[Any], top: Sequence[Any], log_probs: Sequence[Any], began: float) -> Shard:
    whole, likely, probs = (np.concatenate(each) for each in (tokens, top, log_probs))
    seconds = time.monotonic() - began
    return Shard(whole.astype(np.int32), likely.astype(np.int32), probs.astype(np.float16), seconds)
