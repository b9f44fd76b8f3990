"""The interface of all models: forward(tokens, cache) -> logits."""

from __future__ import annotations

import operator
from typing import Any, Protocol

import torch
from torch import Tensor

from sybil.transfer import count_to, integers, upload


class Cache(Protocol):
    """The part of a KV cache that the decoding loop and the drafters use."""

    lengths: Tensor
    """(batch,) int64 on the CPU: how many tokens of each row the cache holds. Assigning smaller numbers rolls back."""

    def take_over(self, other: Any) -> None:
        """Take the tokens of another cache of the same model and rows. The other has no more room than this one, and
        isn't used afterwards."""


class Model(Protocol):
    """The part of a model that the decoding loop and the drafters use."""

    vocab_size: int
    context: int
    """How many tokens a sequence may have, prompt included."""
    device: torch.device

    @property
    def weight_bytes(self) -> int:
        """The bytes that the weights take, packed copies included."""

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache for batch rows of at most capacity tokens."""

    def forward(self, tokens: Tensor, cache: Any) -> Tensor:
        """tokens (batch, n) -> logits (batch, n, vocab), which the model's next call may overwrite. Writes the tokens
        at each row's length in the cache and advances the lengths by n."""

    def prefill(self, tokens: Tensor, cache: Any) -> None:
        """forward() without the logits."""


def feed(model: Model, cache: Cache, tokens: Tensor, until: Tensor) -> Tensor:
    """Runs the model over the tokens that a cache lacks. Returns the logits (batch, vocab) after each row's last token.

    tokens: (batch, capacity). until: (batch,), how many tokens of each row the cache holds afterwards. Rows may lack
    different numbers of tokens; all rows go in as one block of equal length. Where a row lacks fewer, the block's first
    tokens are in the cache already and are written again. Where a row is too short, the block's last tokens lie beyond
    the row's length and don't count."""
    ends, held = until.tolist(), cache.lengths.tolist()
    count = max(map(operator.sub, ends, held))
    if count > 2:  # more than a round leaves: a prompt, whose logits nobody asked for
        prefill(model, cache, tokens, until - 1)
        count = 1
    starts, block = missing(cache, tokens, ends, count)
    logits = model.forward(block, cache)
    cache.lengths = until
    last = [end - start - 1 for start, end in zip(starts, ends, strict=True)]
    if len(last) == 1 or len(set(last)) == 1:
        return logits[:, last[0]]
    places = upload(integers(last), logits.device)[:, None, None]
    return logits.gather(1, places.expand(-1, -1, logits.shape[-1]))[:, 0]


def prefill(model: Model, cache: Cache, tokens: Tensor, until: Tensor) -> None:
    """feed() without the logits. `until` may be what the cache holds already."""
    ends = until.tolist()
    count = max(map(operator.sub, ends, cache.lengths.tolist()))
    if count > 0:
        _, block = missing(cache, tokens, ends, count)
        model.prefill(block, cache)
        cache.lengths = until


def missing(cache: Cache, tokens: Tensor, ends: list[int], count: int) -> tuple[list[int], Tensor]:
    """(where each row's block starts, the blocks' tokens (batch, count)). A block ends at the row's end in `ends`,
    unless that is less than `count`. Sets the cache's lengths to the starts."""
    starts = [max(end - count, 0) for end in ends]
    cache.lengths = integers(starts)
    if len(starts) == 1 or len(set(starts)) == 1:
        return starts, tokens[:, starts[0] : starts[0] + count]
    return starts, tokens.gather(1, cache.lengths[:, None] + count_to(count))


__all__ = ["Cache", "Model", "feed", "missing", "prefill"]
