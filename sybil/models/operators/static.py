"""Forwards of fixed shapes over a cache that stays where it is, so that a GPU can replay them as CUDA graphs.

A decoding step launches hundreds of small kernels; launched one by one they take longer than they run. Shapes are
fixed by reading keys up to the next multiple of BUCKET and hiding those beyond a token, and by computing
positions and masks on the device from the lengths there. The same code runs on a CPU, without the graphs.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sybil.models.operators.cache import KVCache, Layout, Windows, check_fit
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

    def __init__(self, held: Held, capacity: int) -> None:
        """capacity: what was asked for, at most what is held."""
        self.store, self.nbytes, self.capacity = held.store, held.store.nbytes, capacity
        self._held = held
        self.lengths = torch.zeros(len(held.store.lengths), dtype=torch.int64, device="cpu")

    def take_over(self, other: StaticCache) -> None:
        """See models.Cache."""
        self.store.copy(other.store, int(other.lengths.max()))
        self.lengths = other.lengths

    def forward(self, model: object, compute: Compute, tokens: Tensor, windows: Windows) -> Tensor:
        """Logits of tokens (batch, count) at the rows' lengths, good until the next call of the model that computes."""
        count, held, longest = tokens.shape[1], self._held, int(self.lengths.max())
        check_fit(longest, count, self.capacity)
        keys = -(-(longest + count) // BUCKET) * BUCKET
        forwards = held.forwards.setdefault(model, {})
        if (count, keys) not in forwards:
            forwards[count, keys] = StaticForward(held, count, keys, windows)
        return forwards[count, keys](compute, tokens, self.lengths)


class Held:
    """Keys and values, the forwards over them, and what their graphs share: memory and a stream.

    forwards: by (count, keys), those of each model. A model and its copies may compute over the same cache."""

    def __init__(self, store: KVCache) -> None:
        self.store = store
        self.capacity = store.keys.shape[-2]
        self.forwards: weakref.WeakKeyDictionary[object, dict[tuple[int, int], StaticForward]]
        self.forwards = weakref.WeakKeyDictionary()
        self.pool: Any = None
        self.stream: Any = None
        if store.keys.device.type == "cuda":
            self.pool = torch.cuda.graph_pool_handle()
            self.stream = torch.cuda.Stream(store.keys.device)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[type[Held], tuple[KVCache]]:
        """A copy or a pickle holds the keys and values, and makes forwards of its own."""
        return Held, (self.store,)


class StaticCaches:
    """A model's caches: one that a generation lets go of is the next one's, if large enough, graphs and all."""

    def __init__(self) -> None:
        self._idle: dict[int, Held] = {}

    def __reduce__(self) -> tuple[type[StaticCaches], tuple[()]]:
        """A copy or a pickle of a model holds no cache."""
        return StaticCaches, ()

    def take(self, make: Callable[[int, int], KVCache], batch: int, capacity: int) -> StaticCache:
        """For a batch of at most capacity tokens a row; make(batch, capacity) where none is idle."""
        held = self._idle.pop(batch, None)
        self._idle.clear()  # of another batch: memory is for what is in use
        if held is None or held.capacity < capacity:
            held = Held(make(batch, -(-capacity // BUCKET) * BUCKET))
        held.store.keys.zero_()  # what is hidden is multiplied by 0, and 0 * NaN would be seen
        held.store.values.zero_()
        cache = StaticCache(held, capacity)
        weakref.finalize(cache, self._idle.__setitem__, batch, held).atexit = False
        return cache


class StaticForward:
    """One forward of (batch, count) tokens that reads the first `keys` places of a cache."""

    def __init__(self, held: Held, count: int, keys: int, windows: Windows) -> None:
        device, batch = held.store.keys.device, len(held.store.lengths)
        self._store, self._pool, self._stream = held.store, held.pool, held.stream
        self._count, self._keys, self._windows = count, keys, windows
        self._tokens = torch.zeros(batch, count, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._uses = 0

    def __call__(self, compute: Compute, tokens: Tensor, lengths: Tensor) -> Tensor:
        device = self._tokens.device
        self._tokens.copy_(upload(tokens, device))
        self._lengths.copy_(upload(lengths, device))
        self._uses += 1
        if device.type == "cuda" and self._uses == USES:
            self._capture(compute)
        if self._graph is None:
            return self._run(compute)
        self._graph.replay()
        return self._logits

    def _run(self, compute: Compute) -> Tensor:
        layout = Layout.static(self._lengths, self._count, self._keys, self._windows)
        return compute(self._tokens, self._store, layout)

    def _capture(self, compute: Compute) -> None:
        """Capturing computes nothing; the call before it lets libraries make their workspaces. Where memory doesn't
        suffice for a graph, this forward goes on without."""
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        with torch.cuda.device(self._tokens.device), contextlib.suppress(torch.cuda.OutOfMemoryError):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._run(compute)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                self._logits = self._run(compute)
            self._graph = graph
