"""The forward in one call on a CPU, by forward.c, which the machine's C compiler builds once.

By torch, a step of a small model runs 12 operators in each layer. Reading the weights has pushed the operators' code
out of the processor's caches, so together they take longer than reading the weights. In C this cost is gone, and
weights are read at the memory's bandwidth. The order of every sum is fixed, so a token's logits have the same bits
whatever is verified beside it. Without a compiler, Transformer computes everything instead."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sybil.allocation import taking
from sybil.errors import UnsupportedModel
from sybil.models import forking
from sybil.models.native import library, workers
from sybil.models.native.cache import NativeCache
from sybil.models.native.making import in_float32
from sybil.models.native.packing import Arena, Packed, Piece, floats, pack
from sybil.models.native.rotations import Rotations
from sybil.models.native.structs import (
    BLOCK_NORMS,
    BLOCK_PRODUCTS,
    NUMBERS,
    SCALES,
    BlockStruct,
    ModelStruct,
    NormStruct,
    ProductStruct,
)
from sybil.models.native.threads import torch_alone
from sybil.models.shape import Shape, check_layers
from sybil.models.storage import FORMATS, Kept, Rounding, Storage, StoredWeights
from sybil.transfer import CPU

ONE_THREAD_BYTES = 1 << 20
MOST_THREADS = 1 << 10
PREFILL_ROWS = 256
_ACTIVATIONS = ("none", "gelu_tanh", "gelu", "relu", "silu")
_NORMS = ("layer", "rms")
_NORMED = ("input", "output", "both", "sum")
_QUERY_KEY_NORMS = ("none", "head", "whole")
_WHOLE = ("token_embedding", "head", "project_in", "project_out")


class NativeTransformer:
    """Transformer's contract and arguments, computed in float32 by forward.c.

    storage: what the products' weights are kept in. It is float32 or bfloat16; "stored" or the name of a block type,
    for the blocks that weights.blocks() gives (float32 where it gives none); or a Rounding to few bits, for drafts,
    whose products round their inputs as well. A model with another storage, or with fewer layers, may continue in this
    one's cache.

    threads: how many threads compute. None is torch's number at each call, or one for a model so small that two threads
    would mostly wait for each other.

    lanes: floats in a vector; None is what library.load() chooses. Copies and pickles of the model keep the lanes.
    """

    dtype = torch.float32
    device = CPU

    def __init__(
        self,
        shape: Shape,
        weights: Mapping[str, Tensor] | StoredWeights,
        storage: Kept = "float32",
        threads: int | None = None,
        lanes: int | None = None,
    ) -> None:
        """Raises UnsupportedModel where there is no compiler, or where forward.c refuses the shape or its weights, and
        KeyError where a weight of the shape is missing."""
        self._open(shape, storage, threads, lanes, range(shape.layers))
        self._products: dict[str, Packed] = {}
        self._floats: dict[str, Tensor] = {}
        with torch_alone():
            self._take(weights)
        self._rotations = Rotations(shape)
        self._bind()

    def _open(self, shape: Shape, storage: Kept, threads: int | None, lanes: int | None, layers: Sequence[int]) -> None:
        built = library.load(lanes)
        if built is None:
            raise UnsupportedModel("the C forward isn't built here: install a C compiler, or load through Transformer")
        self.shape, self.vocab_size, self.context, self.storage = shape, shape.vocab_size, shape.context, storage
        self._library, self._asked_threads = built, threads
        self._lanes, self.layers = built.sybil_lanes(), tuple(layers)

    def _take(self, weights: Mapping[str, Tensor] | StoredWeights) -> None:
        """Pack each weight of the shape."""
        arena, shape = Arena(), self.shape

        def take_product(name: str, stored: str) -> None:
            gated = shape.gated and name.endswith("mlp_in")
            pieces = _pieces(weights, name, stored, self.storage)
            self._products[name] = pack(pieces, weights.get(f"{name}.bias"), self._lanes, gated, arena)

        def take_floats(name: str, tensor: Tensor | None) -> None:
            if tensor is not None:
                self._floats[name] = arena.take(tensor.float())

        take_product("token_embedding", "token_embedding")  # the largest weight first, while little else is in memory
        for name in _products(shape):
            take_product(name, f"{name}.weight")
        for name in _norms(shape):
            take_floats(f"{name}.weight", weights[f"{name}.weight"])
            take_floats(f"{name}.bias", weights.get(f"{name}.bias"))
        if shape.position_offset is not None:
            take_floats("positions", weights["position_embedding"])

    def with_layers(self, layers: Sequence[int]) -> NativeTransformer:
        """A model that shares this one's weights and runs only those layers. layers: numbers from 0, ascending. It can
        use this model's caches: each layer writes its keys and values to the same place as here. Raises
        InvalidSetting."""
        check_layers(layers, self.layers)
        left_out = tuple(f"{layer}." for layer in set(self.layers) - set(layers))
        model = object.__new__(NativeTransformer)
        model.__dict__.update(self.__dict__)
        model.layers = tuple(layers)
        model._products = {name: each for name, each in self._products.items() if not name.startswith(left_out)}
        model._floats = {name: each for name, each in self._floats.items() if not name.startswith(left_out)}
        model._bind()
        return model

    def _bind(self) -> None:
        """Make the structs that forward.c reads, from the shape and the tensors that this model keeps."""
        shape, count = self.shape, len(self.layers)
        with taking(ctypes.sizeof(BlockStruct) * count, f"a model of {count} layers", CPU):
            self._blocks = (BlockStruct * count)()
        for layer, block in zip(self.layers, self._blocks, strict=True):
            attention = shape.attentions[layer]
            block.window, block.layer = attention.window or 0, layer
            if attention.rotary:
                block.rotary_size = attention.rotary.size
                block.cosines, block.sines = map(floats, self._rotations[attention.rotary])
            for name in BLOCK_NORMS:
                setattr(block, name, self._norm(f"{layer}.{name}"))
            for name in BLOCK_PRODUCTS:
                setattr(block, name, self._product(f"{layer}.{name}"))
        numbers = {name: getattr(shape, name, 0) or 0 for name in NUMBERS} | {
            "activation": _ACTIVATIONS.index(shape.activation),
            "norm": _NORMS.index(shape.norm),
            "normed": _NORMED.index(shape.normed),
            "query_key_norm": _QUERY_KEY_NORMS.index(shape.query_key_norm),
        }
        self._model = ModelStruct(
            **numbers,
            **{name: getattr(shape, name) for name in SCALES},
            blocks=self._blocks,
            block_count=len(self._blocks),
            final_norm=self._norm("final_norm"),
            **{name: self._product(name) for name in _WHOLE},
            positions=floats(self._floats.get("positions")),
        )
        self._address = ctypes.addressof(self._model)
        refusal = self._library.sybil_refusal(self._address)
        if refusal is not None:
            raise UnsupportedModel(f"the C forward refuses the model: {refusal.decode()} doesn't hold of it")
        tensors = [*self._floats.values(), *(each for packed in self._products.values() for each in packed.tensors)]
        self.weight_bytes = sum(tensor.nbytes for tensor in tensors)

    @property
    def threads(self) -> int:
        """How many threads will compute the next call."""
        small = self.weight_bytes < ONE_THREAD_BYTES
        return min(max(self._asked_threads or (1 if small else torch.get_num_threads()), 1), MOST_THREADS)

    def _norm(self, name: str) -> NormStruct:
        return NormStruct(*(floats(self._floats.get(f"{name}.{part}")) for part in ("weight", "bias")))

    def _product(self, name: str) -> ProductStruct:
        packed = self._products.get("token_embedding" if name == "head" and self.shape.tied_head else name)
        return ProductStruct() if packed is None else packed.struct()

    def new_cache(self, batch: int, capacity: int) -> NativeCache:
        forking.note_use()
        return NativeCache(self.shape, batch, capacity, self._lanes)

    def forward(self, tokens: Tensor, cache: NativeCache) -> Tensor:
        """tokens (B, n) -> logits (B, n, vocab) float32. Writes the tokens at each row's length, and advances it by
        n."""
        logits = torch.empty(*tokens.shape, self.vocab_size, dtype=torch.float32, device=CPU)
        self._run(tokens, cache, logits.data_ptr())
        return logits

    def prefill(self, tokens: Tensor, cache: NativeCache) -> None:
        """The same as forward() without the logits, in parts of the tokens."""
        for part in torch.split(tokens, max(1, PREFILL_ROWS // len(tokens)), 1):
            self._run(part, cache, None)

    def _run(self, tokens: Tensor, cache: NativeCache, logits: int | None) -> None:
        (batch, count), lengths = tokens.shape, cache.lengths
        if tokens.dtype != torch.int64 or not tokens.is_cpu or not tokens.is_contiguous():
            tokens = tokens.to("cpu", torch.int64).contiguous()
        if not (lengths.is_cpu and lengths.is_contiguous()):
            lengths = lengths.to(CPU).contiguous()
        if batch != cache.batch or lengths.shape != (batch,) or lengths.dtype != torch.int64:
            raise IndexError(f"tokens {(batch, count)}, lengths {lengths.tolist()}: the cache has {cache.batch} rows")
        rows = batch * count
        if not rows:
            return
        self._rotations.reach(cache.capacity)
        if rows > cache.rows:
            cache.make_room(rows, self._library.sybil_scratch(self._address, rows, cache.capacity))
        try:
            refusal = self._library.sybil_forward(
                self._address,
                cache.address,
                tokens.data_ptr(),
                lengths.data_ptr(),
                count,
                logits,
                cache.scratch_address,
                cache.floats,
                self.threads,
            )
        finally:  # Ctrl-C is raised as the call ends
            workers.keep(self._library, self, cache, cache.scratch)
        if refusal is not None:
            raise IndexError(
                f"tokens {tokens.tolist()} at lengths {lengths.tolist()} don't fit a vocabulary of {self.vocab_size} "
                f"or a cache of {cache.capacity} ({refusal.decode()} doesn't hold)"
            )
        cache.lengths = lengths + count

    def __getstate__(self) -> dict[str, Any]:
        """The state of a pickle: the packed weights, without the rest of the memory that they are in."""
        return {
            "opened": (self.shape, self.storage, self._asked_threads, self._lanes, self.layers),
            "products": {name: packed.copied(torch.clone) for name, packed in self._products.items()},
            "floats": {name: tensor.clone() for name, tensor in self._floats.items()},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(*state["opened"])
        arena, products, floating = Arena(), state["products"], state["floats"]
        self._products = {name: products.pop(name).copied(arena.take) for name in list(products)}
        self._floats = {name: arena.take(floating.pop(name)) for name in list(floating)}
        self._rotations = Rotations(self.shape)
        self._bind()

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeTransformer:
        copy = object.__new__(NativeTransformer)
        copy.__setstate__(self.__getstate__())
        return copy


def _pieces(weights: Mapping[str, Tensor] | StoredWeights, product: str, name: str, storage: Kept) -> list[Piece]:
    """The pieces from which a product is packed: its stored blocks, or its weight converted to the storage. name: under
    which its weight is stored."""
    if isinstance(storage, Rounding):
        return [Piece.in_bits(in_float32(weights, name), storage.bits_of(product), storage.importance.get(product))]
    if storage in FORMATS:
        return [Piece.kept(in_float32(weights, name), cast(Storage, storage))]
    blocks = cast(StoredWeights, weights).blocks(name)
    return [Piece.kept(weights[name], "float32")] if blocks is None else [Piece.lying(each) for each in blocks]


def _products(shape: Shape) -> list[str]:
    """The names of a shape's products, without the token embedding."""
    whole = [] if shape.tied_head else ["head"]
    whole += ["project_in", "project_out"] if shape.embedding_width != shape.width else []
    return [*whole, *(f"{layer}.{name}" for layer in range(shape.layers) for name in BLOCK_PRODUCTS)]


def _norms(shape: Shape) -> list[str]:
    last = ["final_norm"] if shape.final_norm else []
    return [*last, *(f"{layer}.{name}" for layer in range(shape.layers) for name in shape.norms())]
