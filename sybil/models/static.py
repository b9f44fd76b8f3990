"""Forwards of fixed shapes over a cache that stays where it is, so that a GPU can replay them as CUDA graphs.

A decoding step launches hundreds of small kernels; launched one by one they take longer than they run. Shapes are
fixed by reading keys up to the next multiple of BUCKET and hiding those beyond a token, and by computing
positions and masks on the device from the lengths there. The same code runs on a CPU, without the graphs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from sybil.models.cache import KVCache, Layout
from sybil.transfer import upload

BUCKET = 128
LONGEST = 32
"""Tokens a row up to which a forward is worth a graph of its own; a prompt isn't."""
USES = 3
"""A forward is captured when it is asked for the third time: a generation's last rounds have shapes of their own."""

Compute = Callable[[Tensor, KVCache, Layout], Tensor]
"""tokens (batch, count) on the device -> logits (batch, count, vocab)."""


class StaticCache:
    """A generation's hold on keys and values that outlive it, with the forwards over them."""

    def __init__(self, store: KVCache, forwards: dict[tuple[int, int], StaticForward]) -> None:
        self.store, self.forwards, self.nbytes = store, forwards, store.nbytes
        self.lengths = torch.zeros(len(store.lengths), dtype=torch.int64)

    def forward(self, compute: Compute, tokens: Tensor, window: int | None) -> Tensor:
        """Logits of tokens (batch, count) at the rows' lengths, good until the next call with as many tokens."""
        count = tokens.shape[1]
        keys = -(-(int(self.lengths.max()) + count) // BUCKET) * BUCKET
        if (count, keys) not in self.forwards:
            self.forwards[count, keys] = StaticForward(compute, self.store, count, keys, window)
        return self.forwards[count, keys](tokens, self.lengths)


class StaticCaches:
    """A model's caches: one that a generation lets go of is the next one's, if as large, graphs and all."""

    def __init__(self, make: Callable[[int, int], KVCache]) -> None:
        self._make = make
        self._idle: dict[tuple[int, int], tuple[KVCache, dict[tuple[int, int], StaticForward]]] = {}

    def take(self, batch: int, capacity: int) -> StaticCache:
        size = batch, -(-capacity // BUCKET) * BUCKET
        held = self._idle.pop(size, None) or (self._make(*size), {})
        self._idle.clear()  # of another size: memory is for what is in use
        cache = StaticCache(*held)
        weakref.finalize(cache, self._idle.__setitem__, size, held).atexit = False
        return cache


class StaticForward:
    """One forward of (batch, count) tokens that reads the first `keys` places of a cache."""

    def __init__(self, compute: Compute, store: KVCache, count: int, keys: int, window: int | None) -> None:
        device, batch = store.keys.device, len(store.lengths)
        self._tokens = torch.zeros(batch, count, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(batch, dtype=torch.int64, device=device)

        def computed() -> Tensor:
            return compute(self._tokens, store, Layout.static(self._lengths, count, keys, window))

        self._compute = computed
        self._graph: torch.cuda.CUDAGraph | None = None
        self._uses = 0

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        device = self._tokens.device
        self._tokens.copy_(upload(tokens, device))
        self._lengths.copy_(upload(lengths, device))
        self._uses += 1
        if device.type == "cuda" and self._uses == USES:
            self._capture()
        if self._graph is None:
            return self._compute()
        self._graph.replay()
        return self._logits

    def _capture(self) -> None:
        """Capturing computes nothing; the call before it lets libraries make their workspaces."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._tokens.device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._compute()
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph):
                self._logits = self._compute()
        self._graph = graph
