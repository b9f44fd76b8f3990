"""The forward in one call on a CPU: forward.c, built once by the machine's C compiler and kept.

A step of a small model is 12 operators a layer, each found cold in the caches after the weights have streamed
through them; together they cost more than the weights. In C they cost nothing, the weights run at the memory's
bandwidth, and the order of every sum is ours: a token's logits have the same bits whatever is verified beside it.
Without a compiler everything goes through Transformer instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.errors import UnsupportedModel
from sybil.models.native import library
from sybil.models.native.library import (
    BLOCK_NORMS,
    BLOCK_PRODUCTS,
    NUMBERS,
    Block,
    Cache,
    Model,
    Norm,
    Product,
)
from sybil.models.native.packing import Arena
from sybil.models.shape import Shape
from sybil.models.storage import Storage, keep

ONE_THREAD_BYTES = 1 << 20
PREFILL_ROWS = 256
STORAGES: tuple[Storage, ...] = ("float32", "bfloat16", "int8")
_ACTIVATIONS = ("none", "gelu_tanh", "gelu", "relu", "silu")
_NORMS = ("layer", "rms")


class NativeCache:
    """Keys (layers, batch, heads, head size, capacity) and values (..., capacity, head size), both in whole lanes;
    and the forward's working memory."""

    def __init__(self, shape: Shape, batch: int, capacity: int, lanes: int) -> None:
        capacity, head_size = (-(-size // lanes) * lanes for size in (capacity, shape.head_size))
        self.keys = torch.zeros(shape.layers, batch, shape.kv_heads, head_size, capacity)
        self.values = torch.zeros(shape.layers, batch, shape.kv_heads, capacity, head_size)
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        self.native = Cache(self.keys.data_ptr(), self.values.data_ptr(), batch, capacity)
        self.nbytes = self.keys.nbytes + self.values.nbytes
        self.address, self.batch, self.capacity = ctypes.addressof(self.native), batch, capacity
        self.scratch, self.scratch_address, self.rows = torch.empty(0), 0, 0

    def make_room(self, rows: int, floats: int) -> None:
        """Working memory for calls of so many rows."""
        self.scratch, self.rows = torch.empty(floats), rows
        self.scratch_address = self.scratch.data_ptr()


class NativeTransformer:
    """Transformer's contract and arguments, computed in float32 by forward.c.

    storage: what the products' weights are kept in: float32, bfloat16, or int8 with a scale an output (for drafts).
    threads: how many compute; None is torch's number, or one for a model so small that two would wait for each other.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(
        self,
        shape: Shape,
        weights: Mapping[str, Tensor],
        storage: Storage = "float32",
        threads: int | None = None,
    ) -> None:
        built = library.load()
        if built is None:
            raise UnsupportedModel("the C forward isn't built here: install a C compiler, or load through Transformer")
        self.shape, self.vocab_size, self.context, self.storage = shape, shape.vocab_size, shape.context, storage
        self._library, self._lanes, self._panel = built, built.sybil_lanes(), built.sybil_panel()
        self._kept: list[object] = []
        self._arena = Arena()
        token_embedding = self._product(weights, "token_embedding")  # the largest first, while little else is there
        head = token_embedding if shape.tied_head else self._product(weights, "head.weight")
        blocks = (Block * shape.layers)()
        for layer in range(shape.layers):
            for name in BLOCK_NORMS:
                setattr(blocks[layer], name, self._norm(weights, f"{layer}.{name}"))
            for name in BLOCK_PRODUCTS:
                setattr(blocks[layer], name, self._product(weights, f"{layer}.{name}"))
        rotary = shape.rotary
        cosines, sines = rotary.tables(shape.context) if rotary else (None, None)
        positions = weights["position_embedding"] if shape.position_offset is not None else None
        numbers = {name: getattr(shape, name, 0) or 0 for name in NUMBERS}
        numbers |= {
            "activation": _ACTIVATIONS.index(shape.activation),
            "norm": _NORMS.index(shape.norm),
            "rotary_size": rotary.size if rotary else 0,
        }
        self._model = Model(
            **numbers,
            epsilon=shape.epsilon,
            attention_scale=shape.attention_scale,
            blocks=blocks,
            final_norm=self._norm(weights, "final_norm"),
            token_embedding=token_embedding,
            head=head,
            project_in=self._product(weights, "project_in"),
            project_out=self._product(weights, "project_out"),
            positions=self._keep(positions),
            cosines=self._keep(cosines),
            sines=self._keep(sines),
        )
        self._address = ctypes.addressof(self._model)
        self.weight_bytes = self._arena.used
        small = self.weight_bytes < ONE_THREAD_BYTES
        self._threads = threads or (1 if small else torch.get_num_threads())

    def new_cache(self, batch: int, capacity: int) -> NativeCache:
        return NativeCache(self.shape, batch, capacity, self._lanes)

    def forward(self, tokens: Tensor, cache: NativeCache) -> Tensor:
        """tokens (B, n) -> logits (B, n, vocab) float32; writes the tokens at each row's length, advances it by n."""
        logits = torch.empty(*tokens.shape, self.vocab_size)
        self._run(tokens, cache, logits.data_ptr())
        return logits

    def prefill(self, tokens: Tensor, cache: NativeCache) -> None:
        """forward() without the logits, some tokens at a time."""
        for part in torch.split(tokens, max(1, PREFILL_ROWS // len(tokens)), 1):
            self._run(part, cache, None)

    def _run(self, tokens: Tensor, cache: NativeCache, logits: int | None) -> None:
        (batch, count), lengths = tokens.shape, cache.lengths
        if tokens.dtype != torch.int64 or tokens.is_cuda or not tokens.is_contiguous():
            tokens = tokens.to("cpu", torch.int64).contiguous()
        if batch != cache.batch or lengths.shape != (batch,) or lengths.dtype != torch.int64:
            raise IndexError(f"tokens {(batch, count)}, lengths {lengths.tolist()}: the cache has {cache.batch} rows")
        rows = batch * count
        if not rows:
            return
        if rows > cache.rows:
            cache.make_room(rows, self._library.sybil_scratch(self._address, rows, cache.capacity, self._threads))
        done = self._library.sybil_forward(
            self._address,
            cache.address,
            tokens.data_ptr(),
            lengths.data_ptr(),
            count,
            logits,
            cache.scratch_address,
            self._threads,
        )
        if not done:
            raise IndexError(
                f"tokens {tokens.tolist()} at lengths {lengths.tolist()} don't fit a vocabulary of {self.vocab_size} "
                f"or a cache of {cache.capacity}"
            )
        cache.lengths = lengths + count

    def _keep(self, tensor: Tensor | None) -> int | None:
        """The address of a float32 copy that lives as long as the model."""
        if tensor is None:
            return None
        copy = self._arena.take(tensor.float())
        self._kept.append(copy)
        return copy.data_ptr()

    def _norm(self, weights: Mapping[str, Tensor], name: str) -> Norm:
        return Norm(*(self._keep(weights.get(f"{name}.{part}")) for part in ("weight", "bias")))

    def _product(self, weights: Mapping[str, Tensor], name: str) -> Product:
        """A weight (outputs, inputs) as (panels, words, panel, inputs a word): forward.c reads it front to back."""
        weight = weights.get(name if name in ("token_embedding", "head.weight") else f"{name}.weight")
        if weight is None:
            return Product()
        outputs, inputs = weight.shape
        gated = self.shape.gated and name.endswith("mlp_in")

        def panels(tensor: Tensor) -> Tensor:
            """(outputs, ...) -> (panels, panel, ...), padded with zeros; gated: of gates and of values in turn."""
            parts = 2 if gated else 1
            each, rest = outputs // parts, tensor.shape[1:]
            padded = tensor.new_zeros(parts, -(-each // self._panel) * self._panel, *rest)
            padded[:, :each] = tensor.view(parts, each, *rest)
            return padded.view(parts, -1, self._panel, *rest).transpose(0, 1).flatten(0, 1)

        scale, numbers = keep(weight, self.storage)
        per_word = 4 // numbers.itemsize
        words = F.pad(numbers, (0, -inputs % per_word)).view(outputs, -1, per_word)
        packed = self._arena.take(panels(words).transpose(1, 2))
        self._kept.append(packed)
        bias = weights.get(f"{name}.bias")
        return Product(
            packed.data_ptr(),
            None if scale is None else self._keep(panels(scale)),
            None if bias is None else self._keep(panels(bias)),
            inputs,
            outputs,
            STORAGES.index(self.storage),
        )
