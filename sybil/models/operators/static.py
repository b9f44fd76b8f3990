"""Forwards of fixed shapes over a cache that stays where it is, so that a GPU can replay them as CUDA graphs.

A decoding step launches hundreds of small kernels; launched one by one they take longer than they run. Shapes are
fixed by reading keys up to the end of a bucket and hiding those beyond a token, by computing a few tokens more than
were asked for, and by computing positions and masks on the device from the lengths there. The same code runs on a CPU,
without the graphs.
"""

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
"""Keys in the first bucket. Further ones are as large, and larger where there are many keys."""
LONGEST = 32
"""Tokens a row up to which a forward is worth a graph of its own; a prompt isn't."""
SIZES = (1, 2, 3, 5, 9, 17, LONGEST)
"""Tokens a row that are computed: of these the first that is enough. gamma + 1, for gammas of 1, 2, 4, 8 and 16."""
USES = 3
"""A forward is recorded when it is asked for the third time: a generation's last rounds have shapes of their own."""
KEPT = 16
"""Forwards of a model over one cache that are kept, the latest."""

Compute = Callable[[Tensor, KVCache, CacheLayout], Tensor]
"""tokens (batch, count) on the device -> logits (batch, count, vocab)."""


def padded(count: int) -> int:
    """How many tokens are computed where so many are asked for, LONGEST at most."""
    return next(size for size in SIZES if size >= count)


def bucket(keys: int) -> int:
    """How many keys are read where so many are needed: at most a quarter more, from four times BUCKET on."""
    step = max(BUCKET, 1 << max((keys - 1).bit_length() - 3, 0))
    return -(-keys // step) * step


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
        other._held.is_outgrown = True

    def forward(self, model: object, compute: Compute, tokens: Tensor, masks: Masks) -> Tensor:
        """Logits of tokens (batch, count) at the rows' lengths, good until the next call of the model that computes."""
        check_fit(int(self.lengths.max()), tokens.shape[1], self.capacity)
        return self._held.forwards_of(model, masks)(compute, tokens, self.lengths)


class Held:
    """Keys and values, and the forwards over them of each model: a model and its copies may compute over one cache.

    is_outgrown: a larger cache has taken its tokens over, so that no generation is to have it again."""

    def __init__(self, store: KVCache) -> None:
        self.store = store
        self.is_outgrown = False
        self._forwards: weakref.WeakKeyDictionary[object, StaticForwards] = weakref.WeakKeyDictionary()

    def forwards_of(self, model: object, masks: Masks) -> StaticForwards:
        """Those of a model."""
        if model not in self._forwards:
            self._forwards[model] = StaticForwards(self.store, masks)
        return self._forwards[model]

    @property
    def nbytes(self) -> int:
        """What the keys, the values and the graphs' logits take."""
        return self.store.nbytes + sum(each.nbytes for each in self._forwards.values())

    @property
    def graph_bytes(self) -> int:
        """See Graphs.nbytes."""
        return sum(each.graphs.nbytes for each in self._forwards.values() if each.graphs)

    def __reduce__(self) -> tuple[type[Held], tuple[KVCache]]:
        """A copy or a pickle holds the keys and values, and makes forwards of its own."""
        return Held, (self.store,)


class StaticCaches:
    """A model's caches: the one that a generation let go of last is the next one's, if large enough, graphs and all."""

    def __init__(self) -> None:
        self._idle: dict[int, Held] = {}  # one at most, by its rows

    def __reduce__(self) -> tuple[type[StaticCaches], tuple[()]]:
        """A copy or a pickle of a model holds no cache."""
        return StaticCaches, ()

    @property
    def idle(self) -> Held | None:
        """What no generation holds at present."""
        return next(iter(self._idle.values()), None)

    def take(self, make: Callable[[int, int], KVCache], batch: int, capacity: int) -> StaticCache:
        """For a batch of at most capacity tokens a row; make(batch, capacity) where none is idle."""
        held = self._idle.pop(batch, None)
        self._idle.clear()  # of another batch: memory is for what is in use
        if held is not None and held.store.capacity < capacity:
            held = None  # before a larger one is made, lest memory has to hold both
        if held is None:
            held = Held(make(batch, -(-capacity // BUCKET) * BUCKET))
        held.store.clear()  # what is hidden is multiplied by 0, and 0 * NaN would be seen
        cache = StaticCache(held, capacity)
        weakref.finalize(cache, self._take_back, batch, held).atexit = False
        return cache

    def _take_back(self, batch: int, held: Held) -> None:
        if not held.is_outgrown:
            self._idle = {batch: held}


class StaticForwards:
    """A model's forwards over one cache, the latest KEPT of them: one for each number of tokens and of keys.

    graphs: what records them, None where nothing does. Of equally many tokens all write their logits to one place."""

    def __init__(self, store: KVCache, masks: Masks) -> None:
        self.graphs = graphs_on(store.keys.device)
        self._store, self._masks = store, masks
        self._kept: OrderedDict[tuple[int, int], StaticForward] = OrderedDict()
        self._logits: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """What the logits that graphs write take."""
        return sum(logits.nbytes for logits in self._logits.values())

    def __call__(self, compute: Compute, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits of tokens (batch, count) at lengths (batch,)."""
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
    """One forward of (batch, count) tokens that reads the first `keys` places of a cache. uses: how often it has read
    tokens."""

    def __init__(self, store: KVCache, count: int, keys: int, masks: Masks) -> None:
        device, batch = store.keys.device, len(store.lengths)
        self.uses = 0
        self._store, self._keys, self._masks = store, keys, masks
        self._tokens = torch.zeros(batch, count, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self._replay: Callable[[], None] | None = None
        self._logits: Tensor | None = None

    def read(self, tokens: Tensor, lengths: Tensor) -> None:
        """Take tokens (batch, count or fewer) at lengths (batch,); what follows them is anything."""
        self._tokens[:, : tokens.shape[1]] = upload(tokens, self._tokens.device)
        self._lengths.copy_(upload(lengths, self._lengths.device))
        self.uses += 1

    def record(self, graphs: Graphs, compute: Compute, logits: Tensor) -> None:
        """From now on run() is one launch, whose logits are written where these lie."""
        self._logits = logits
        self._replay = graphs.record(lambda: logits.copy_(self._compute(compute)))

    def run(self, compute: Compute) -> Tensor:
        """The logits (batch, count, vocab) of the tokens that were read last."""
        if self._replay is None or self._logits is None:
            return self._compute(compute)
        self._replay()
        return self._logits

    def _compute(self, compute: Compute) -> Tensor:
        layout = CacheLayout.static(self._lengths, self._tokens.shape[1], self._keys, self._masks)
        return compute(self._tokens, self._store, layout)
