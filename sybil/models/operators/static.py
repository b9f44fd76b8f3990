"""Forwards of fixed shapes over a cache that stays at its place in memory, so that a GPU can replay them as CUDA
graphs.

A decoding step launches hundreds of small kernels. Launched one by one, they take longer to launch than to run. Three
measures fix the shapes. Keys are read up to the end of a bucket, and keys after a token are masked. The number of
tokens is rounded up. Positions and masks are computed on the device from the lengths there. The same code runs on a
CPU, without graphs."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from sybil.models.operators.cache import CacheLayout, KVCache, Masks, check_fit
from sybil.models.operators.graphs import Graphs, graphs_on
from sybil.transfer import upload

BUCKET = 128
"""Keys in the first bucket. Further buckets are as large, and larger where there are many keys."""
LONGEST = 32
"""A forward of at most so many tokens in each row gets a graph. A longer one, such as a prompt's, doesn't."""
SIZES = (1, 2, 3, 5, 9, 17, LONGEST)
"""A row's number of tokens is rounded up to the next of these. 2, 3, 5, 9 and 17 are gamma + 1 for gammas of 1, 2, 4, 8
and 16."""
USES = 3
"""A forward is recorded at its third use, because a generation's last rounds have shapes that may never come again."""
KEPT = 16
"""How many forwards of a model over one cache are kept: the ones used last."""

Compute = Callable[[Tensor, KVCache, CacheLayout], Tensor]
"""tokens (batch, count) on the device -> logits (batch, count, vocab)."""


def padded(count: int) -> int:
    """How many tokens are computed where `count` tokens, LONGEST at most, are asked for."""
    return next(size for size in SIZES if size >= count)


def bucket(keys: int) -> int:
    """How many keys are read where `keys` keys are needed. From four times BUCKET on, it is at most a quarter more."""
    step = max(BUCKET, 1 << max((keys - 1).bit_length() - 3, 0))
    return -(-keys // step) * step


class StaticCache:
    """The cache of one generation. It uses keys and values that outlive the generation, and the forwards over them."""

    def __init__(self, held: Held, capacity: int) -> None:
        """capacity: the tokens asked for, at most the capacity of the held cache."""
        self.store, self.nbytes, self.capacity = held.store, held.store.nbytes, capacity
        self._held = held
        self.lengths = torch.zeros(len(held.store.lengths), dtype=torch.int64, device="cpu")

    def take_over(self, other: StaticCache) -> None:
        """See models.Cache."""
        self.store.copy(other.store, int(other.lengths.max()))
        self.lengths = other.lengths
        other._held.is_outgrown = True

    def forward(self, model: object, compute: Compute, tokens: Tensor, masks: Masks) -> Tensor:
        """The logits of tokens (batch, count) at the rows' lengths. They are valid until the model's next forward."""
        check_fit(int(self.lengths.max()), tokens.shape[1], self.capacity)
        return self._held.forwards_of(model, masks)(compute, tokens, self.lengths)


class Held:
    """Keys and values, and each model's forwards over them. A model and its copies may compute over one cache.

    is_outgrown: whether a larger cache has taken its tokens over, so that no later generation gets it."""

    def __init__(self, store: KVCache) -> None:
        self.store = store
        self.is_outgrown = False
        self._forwards: weakref.WeakKeyDictionary[object, StaticForwards] = weakref.WeakKeyDictionary()

    def forwards_of(self, model: object, masks: Masks) -> StaticForwards:
        """A model's forwards over these keys and values."""
        if model not in self._forwards:
            self._forwards[model] = StaticForwards(self.store, masks)
        return self._forwards[model]

    @property
    def nbytes(self) -> int:
        """The bytes of the keys, the values and the graphs' logits."""
        return self.store.nbytes + sum(each.nbytes for each in self._forwards.values())

    @property
    def graph_bytes(self) -> int:
        """See Graphs.nbytes."""
        return sum(each.graphs.nbytes for each in self._forwards.values() if each.graphs)

    def __reduce__(self) -> tuple[type[Held], tuple[KVCache]]:
        """A copy or a pickle holds the keys and values, and makes forwards of its own."""
        return Held, (self.store,)


class StaticCaches:
    """A model's idle caches. A generation gets the cache that the last generation released, with its graphs, if the
    cache is large enough."""

    def __init__(self) -> None:
        self._idle: dict[int, Held] = {}  # by the number of rows; at most one

    def __reduce__(self) -> tuple[type[StaticCaches], tuple[()]]:
        """A copy or a pickle of a model holds no cache."""
        return StaticCaches, ()

    @property
    def idle(self) -> Held | None:
        """The cache that no generation uses at present; None where there is none."""
        return next(iter(self._idle.values()), None)

    def take(self, make: Callable[[int, int], KVCache], batch: int, capacity: int) -> StaticCache:
        """A cache for `batch` rows of at most `capacity` tokens. make(batch, capacity) makes one where no idle cache is
        large enough."""
        held = self._idle.pop(batch, None)
        self._idle.clear()  # a cache for another number of rows would take memory in vain
        if held is not None and held.store.capacity < capacity:
            held = None  # dropped before a larger one is made, so that both never take memory at once
        if held is None:
            held = Held(make(batch, -(-capacity // BUCKET) * BUCKET))
        held.store.clear()  # masked values are multiplied by 0, and a NaN among them would give NaN
        cache = StaticCache(held, capacity)
        weakref.finalize(cache, self._take_back, batch, held).atexit = False
        return cache

    def _take_back(self, batch: int, held: Held) -> None:
        if not held.is_outgrown:
            self._idle = {batch: held}


class StaticForwards:
    """A model's forwards over one cache, one for each number of tokens and of keys. The KEPT ones used last are kept.

    graphs: records the forwards; None where there are no graphs. All forwards of the same number of tokens write their
    logits to the same memory."""

    def __init__(self, store: KVCache, masks: Masks) -> None:
        self.graphs = graphs_on(store.keys.device)
        self._store, self._masks = store, masks
        self._kept: OrderedDict[tuple[int, int], StaticForward] = OrderedDict()
        self._logits: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """The bytes of the logits that graphs write."""
        return sum(logits.nbytes for logits in self._logits.values())

    def __call__(self, compute: Compute, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The logits of tokens (batch, count) at lengths (batch,)."""
        asked, longest = tokens.shape[1], int(lengths.max())
        count = padded(asked)
        if longest + count > self._store.capacity:
            count = asked
        forward = self._forward(count, min(bucket(longest + count), self._store.capacity))
        forward.read(tokens, lengths)
        if self.graphs and forward.uses == USES:
            if count not in self._logits:
                self._logits[count] = torch.empty_like(forward.run(compute))
            forward.record(self.graphs, compute, self._logits[count])
        return forward.run(compute)[:, :asked]

    def _forward(self, count: int, keys: int) -> StaticForward:
        if (count, keys) not in self._kept:
            self._kept[count, keys] = StaticForward(self._store, count, keys, self._masks)
        self._kept.move_to_end((count, keys))
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[count, keys]


class StaticForward:
    """One forward of (batch, count) tokens that reads the first `keys` places of a cache. uses: how often read() was
    called."""

    def __init__(self, store: KVCache, count: int, keys: int, masks: Masks) -> None:
        device, batch = store.keys.device, len(store.lengths)
        self.uses = 0
        self._store, self._keys, self._masks = store, keys, masks
        self._tokens = torch.zeros(batch, count, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self._replay: Callable[[], None] | None = None
        self._logits: Tensor | None = None

    def read(self, tokens: Tensor, lengths: Tensor) -> None:
        """Take tokens (batch, count or fewer) at lengths (batch,). Missing tokens are arbitrary."""
        self._tokens[:, : tokens.shape[1]] = upload(tokens, self._tokens.device)
        self._lengths.copy_(upload(lengths, self._lengths.device))
        self.uses += 1

    def record(self, graphs: Graphs, compute: Compute, logits: Tensor) -> None:
        """Record the forward: from now on run() is one launch, which writes its logits to the memory of `logits`."""
        self._logits = logits
        self._replay = graphs.record(lambda: logits.copy_(self._compute(compute)))

    def run(self, compute: Compute) -> Tensor:
        """Compute the logits (batch, count, vocab) of the tokens that were read last."""
        if self._replay is None or self._logits is None:
            return self._compute(compute)
        self._replay()
        return self._logits

    def _compute(self, compute: Compute) -> Tensor:
        layout = CacheLayout.static(self._lengths, self._tokens.shape[1], self._keys, self._masks)
        return compute(self._tokens, self._store, layout)
