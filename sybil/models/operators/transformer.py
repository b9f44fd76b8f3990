"""A decoder-only forward over a preallocated cache, for every family that models.shape can describe.

Shapes: batch B, tokens in the call n, keys so far K, heads H, heads of keys and values G, head size D, width W.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.models import forking
from sybil.models.operators.attention import attend, capped
from sybil.models.operators.blocks import Block, BlockMaker, Norm, Observe, Passing
from sybil.models.operators.cache import CacheLayout, KVCache, Masks, check_fit
from sybil.models.operators.linear import Way, can_pack, is_half
from sybil.models.operators.packaged import Packaged
from sybil.models.operators.static import LONGEST, Held, StaticCache, StaticCaches
from sybil.models.shape import Rotary, Shape, check_layers
from sybil.models.storage import Storage, storage_of
from sybil.transfer import drawn_at, upload

PROMPT = 512
"""The tokens of each row that prefill() computes at once."""


@dataclass(frozen=True, slots=True)
class Call:
    """What every layer of one forward shares."""

    cache: KVCache
    layout: CacheLayout
    rotations: Mapping[Rotary | None, tuple[Tensor, Tensor]]
    """Cosines and sines at the tokens' positions, (B, 1, n, rotary size / 2) each."""


class Transformer:
    """A causal language model with the forward of the protocol models.Model: forward(tokens, cache) -> logits.

    weights: a mapping from names to tensors; a product's weight is (outputs, inputs). Each weight is asked for once,
    and `in` tells whether a product has a bias, so a mapping may read weights one at a time. {layer} counts from 0, and
    names in brackets are needed only where the shape has them. The names are token_embedding, [position_embedding],
    [project_in.weight], [project_out.weight], {layer}.{norm} for each of Shape.norms(), {layer}.query_key_value (all
    queries' rows, then keys', then values', heads in order), {layer}.attention_out, {layer}.mlp_in (if gated: the
    gate's rows, then the rows that it multiplies), {layer}.mlp_out, [final_norm] and [head.weight]."""

    def __init__(
        self,
        shape: Shape,
        weights: Mapping[str, Tensor],
        way: Way | None = None,
        static: bool | None = None,
        observe: Observe | None = None,
    ) -> None:
        """way: how products are computed, see operators.linear. static: whether shapes are fixed, see operators.static;
        None fixes them on a GPU. observe: called with the inputs of each product. A model with observe is for one pass
        only: it reads a layer's weights when it comes to the layer, and drops them."""
        self.shape = shape
        self.vocab_size, self.context = shape.vocab_size, shape.context
        maker = BlockMaker(shape, weights, way, observe)
        self.token_embedding = maker.take("token_embedding")  # (vocab, embedding width)
        self.device, self.dtype = self.token_embedding.device, self.token_embedding.dtype
        few = way == "int8" or isinstance(way, Packaged)
        self.storage: Storage = "int8" if few else storage_of(self.dtype)
        self.position_embedding = None if shape.position_offset is None else maker.take("position_embedding")
        self.embedding_scale = torch.tensor(shape.embedding_scale, dtype=self.dtype, device=self.device)
        windows = tuple({attention.window: None for attention in shape.attentions})
        self._masks = Masks(self.dtype, windows, shape.heads // shape.kv_heads)
        self.rotations = {
            attention.rotary: attention.rotary.tables(range(shape.context), self.dtype, self.device)
            for attention in dict.fromkeys(shape.attentions)
            if attention.rotary
        }
        projected = shape.embedding_width != shape.width
        self.project_in = maker.product("project_in") if projected else None
        self.blocks: Mapping[int, Block] = Passing(maker) if observe else {}
        self._block_bytes: dict[int, int] = {}
        if isinstance(self.blocks, dict):
            for layer in range(shape.layers):
                before = maker.weight_bytes
                self.blocks[layer] = maker.block(layer)
                self._block_bytes[layer] = maker.weight_bytes - before
        self.final_norm = maker.norm("final_norm") if shape.final_norm else None
        self.project_out = maker.product("project_out") if projected else None
        if shape.tied_head:
            before = maker.weight_bytes
            self.head = maker.head("token_embedding", self.token_embedding)
            if not few and (way == "plain" or is_half(self.token_embedding) or not can_pack(self.token_embedding)):
                maker.weight_bytes = before  # the tied head is the embedding itself, no copy
        else:
            self.head = maker.head("head", maker.weights["head.weight"])
        self.weight_bytes = maker.weight_bytes

        self._static = StaticCaches() if static or (static is None and self.device.type == "cuda") else None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that the model runs, numbered from 0."""
        return tuple(self.blocks)

    def with_layers(self, layers: Sequence[int]) -> Transformer:
        """A model that shares this one's weights and runs only those layers. layers: numbers from 0, ascending. It can
        use this model's caches. Raises InvalidSetting."""
        check_layers(layers, self.layers)
        model = copy.copy(self)
        model.blocks = {layer: self.blocks[layer] for layer in layers}
        model.weight_bytes -= sum(self._block_bytes[layer] for layer in self.layers if layer not in layers)
        return model

    def _cache(self, batch: int, capacity: int) -> KVCache:
        shape = self.shape
        return KVCache(shape.layers, batch, shape.kv_heads, capacity, shape.head_size, self.dtype, self.device)

    def new_cache(self, batch: int, capacity: int) -> KVCache | StaticCache:
        forking.note_use()
        return self._static.take(self._cache, batch, capacity) if self._static else self._cache(batch, capacity)

    @property
    def idle(self) -> Held | None:
        """The idle cache, with its graphs, that the next generation may get; None where there is none."""
        return self._static.idle if self._static else None

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: KVCache | StaticCache) -> Tensor:
        """tokens (B, n) -> logits (B, n, vocab). Writes the tokens at each row's length, and advances it by n."""
        if isinstance(cache, StaticCache) and tokens.shape[1] <= LONGEST:
            logits = cache.forward(self, self._logits, tokens, self._masks)
            cache.lengths = cache.lengths + tokens.shape[1]
            return logits
        return upload(self._finish(self._at_lengths(tokens, cache)), drawn_at(self.device))

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, cache: KVCache | StaticCache) -> None:
        """The same as forward() without the logits, PROMPT tokens at a time, because masks and activations take
        memory."""
        check_fit(int(cache.lengths.max()), tokens.shape[1], cache.capacity)
        for part in torch.split(tokens, PROMPT, 1):
            self._at_lengths(part, cache)

    def _at_lengths(self, tokens: Tensor, cache: KVCache | StaticCache) -> Tensor:
        store = cache.store if isinstance(cache, StaticCache) else cache
        layout = CacheLayout(cache.lengths, tokens.shape[1], self.device, self._masks)
        check_fit(layout.start, tokens.shape[1], cache.capacity)
        cache.lengths = cache.lengths + tokens.shape[1]
        return self._hidden(upload(tokens, self.device), store, layout)

    def _logits(self, tokens: Tensor, store: KVCache, layout: CacheLayout) -> Tensor:
        return self._finish(self._hidden(tokens, store, layout))

    def _finish(self, x: Tensor) -> Tensor:
        if self.final_norm:
            x = self.final_norm(x)
        if self.project_out:
            x = self.project_out(x)
        logits = self.head(x)
        if self.shape.logit_divisor != 1:
            logits = logits / self.shape.logit_divisor
        return capped(logits, self.shape.logit_cap)

    def _hidden(self, tokens: Tensor, store: KVCache, layout: CacheLayout) -> Tensor:
        # a padded row may run past the context, but what is computed there is never read
        positions = layout.positions.clamp(max=self.context - 1)
        call = Call(
            store,
            layout,
            {
                rotary: (cosines[positions][:, None], sines[positions][:, None])
                for rotary, (cosines, sines) in self.rotations.items()
            },
        )

        x = self._embed(tokens, positions)
        for layer, block in self.blocks.items():
            x = self._layer(layer, block, x, call)
        return x

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = F.embedding(tokens, self.token_embedding)
        if self.shape.embedding_scale != 1:
            x = x * self.embedding_scale
        if self.project_in:
            x = self.project_in(x)
        if self.position_embedding is not None:
            x = x + F.embedding(positions + (self.shape.position_offset or 0), self.position_embedding)
        return x

    def _layer(self, layer: int, block: Block, x: Tensor, call: Call) -> Tensor:
        norms = block.norms
        if self.shape.parallel:
            attended = self._out(norms, "attention", self._attention(layer, block, norms["attention_norm"](x), call))
            return x + attended + self._out(norms, "mlp", _mlp(block, norms["mlp_norm"](x)))
        if self.shape.normed == "sum":
            x = norms["attention_norm"](x + self._out(norms, "attention", self._attention(layer, block, x, call)))
            return norms["mlp_norm"](x + self._out(norms, "mlp", _mlp(block, x)))
        x = x + self._out(norms, "attention", self._attention(layer, block, _in(norms, "attention", x), call))
        return x + self._out(norms, "mlp", _mlp(block, _in(norms, "mlp", x)))

    def _out(self, norms: Mapping[str, Norm], name: str, x: Tensor) -> Tensor:
        """The output of attention or the MLP, normalised and scaled where the shape says so, ready to be added."""
        norm = norms.get(f"{name}_out_norm")
        x = x if norm is None else norm(x)
        return x if self.shape.residual_scale == 1 else x * self.shape.residual_scale

    def _attention(self, layer: int, block: Block, x: Tensor, call: Call) -> Tensor:
        shape, attention = self.shape, self.shape.attentions[layer]
        joined = block.query_key_value(x)
        if shape.query_key_norm == "whole":
            sizes = [shape.heads * shape.head_size, shape.kv_heads * shape.head_size]
            query, key, value = torch.split(joined, [*sizes, sizes[1]], -1)
            joined = torch.cat([block.norms["query_norm"](query), block.norms["key_norm"](key), value], -1)
        joined = joined.view(*x.shape[:2], -1, shape.head_size).transpose(1, 2)  # (B, H + 2G, n, D)
        query, key, value = torch.split(joined, [shape.heads, shape.kv_heads, shape.kv_heads], 1)
        if shape.query_key_norm == "head":
            query, key = block.norms["query_norm"](query), block.norms["key_norm"](key)
        if attention.rotary:
            cosines, sines = call.rotations[attention.rotary]
            query, key = _rotate(query, cosines, sines), _rotate(key, cosines, sines)
        keys, values = call.cache.write(layer, key, value, call.layout)  # (B, G, K, D)
        out = attend(shape, query, keys, values, call.layout.masks[attention.window])
        return block.attention_out(out.transpose(1, 2).flatten(2))


def _in(norms: Mapping[str, Norm], name: str, x: Tensor) -> Tensor:
    """The input of attention or the MLP, normalised where the shape says so."""
    norm = norms.get(f"{name}_norm")
    return x if norm is None else norm(x)


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x (B, heads, n, D) with its first `size` dimensions rotated in the planes (i, i + size / 2), and the others
    unchanged."""
    half = cosines.shape[-1]
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines, rest], -1)


def _mlp(block: Block, x: Tensor) -> Tensor:
    inner = block.mlp_in(x)
    return block.mlp_out(inner if block.mlp_up is None else inner * block.mlp_up(x))
