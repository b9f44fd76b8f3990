"""A decoder-only forward over a preallocated cache: one for every family that models.shape can describe.

Shapes: batch B, tokens in the call n, keys so far K, heads H, heads of keys and values G, head size D, width W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.models import forking
from sybil.models.operators.cache import KVCache, Layout, check_fit
from sybil.models.operators.linear import Linear, Way, can_pack, linear
from sybil.models.operators.static import LONGEST, StaticCache, StaticCaches
from sybil.models.shape import Activation, Shape
from sybil.models.storage import FORMATS, Storage, storage_of
from sybil.transfer import upload


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation over the last dimension, or root mean square normalisation (rms)."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float
    rms: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.rms:
            return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer's weights."""

    attention_norm: Norm
    query_key_value: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    attention_out: Linear
    mlp_norm: Norm
    mlp_in: Linear
    """With its activation."""
    mlp_up: Linear | None
    """What the activation of a gated layer is multiplied by."""
    mlp_out: Linear


@dataclass(frozen=True, slots=True)
class Call:
    """What every layer of one forward shares."""

    cache: KVCache
    layout: Layout
    rotation: tuple[Tensor, Tensor] | None
    """Cosines and sines at the tokens' positions, (B, 1, n, rotary size / 2) each."""


class Transformer:
    """A causal language model as DESIGN's contract has it: forward(tokens, cache) -> logits.

    weights: name -> tensor, (outputs, inputs) for a product; each is asked for once, and `in` says whether a product
    has a bias, so that a mapping may read them one at a time. The names, {layer} from 0, those in brackets where
    the shape has them: token_embedding, [position_embedding], [project_in.weight], [project_out.weight],
    {layer}.attention_norm, {layer}.query_key_value (all queries' rows, then keys', then values', heads in order),
    [{layer}.query_norm.weight], [{layer}.key_norm.weight], {layer}.attention_out, {layer}.mlp_norm, {layer}.mlp_in
    (gated: the gate's rows, then those it multiplies), {layer}.mlp_out, [final_norm], [head.weight]."""

    def __init__(
        self, shape: Shape, weights: Mapping[str, Tensor], way: Way | None = None, static: bool | None = None
    ) -> None:
        """way: of the products, see models.linear; static: fixed shapes, see models.static; None is on a GPU."""
        self.shape = shape
        self.vocab_size, self.context = shape.vocab_size, shape.context
        self.weight_bytes = 0

        def take(name: str) -> Tensor:
            tensor = weights[name]
            self.weight_bytes += tensor.nbytes
            return tensor

        def take_product(name: str) -> Tensor:
            weight = weights[name]
            self.weight_bytes += FORMATS["int8"].nbytes(*weight.shape) if way == "int8" else weight.nbytes
            return weight

        def bias(name: str) -> Tensor | None:
            return take(f"{name}.bias") if f"{name}.bias" in weights else None

        def norm(name: str) -> Norm:
            return Norm(take(f"{name}.weight"), bias(name), shape.epsilon, shape.norm == "rms")

        def product(name: str, activation: Activation = "none") -> Linear:
            return linear(take_product(f"{name}.weight"), bias(name), activation, way)

        def gate_and_up(name: str) -> tuple[Linear, Linear | None]:
            if not shape.gated:
                return product(name, shape.activation), None
            gate, up = take_product(f"{name}.weight").chunk(2)
            biases = bias(name)
            gate_bias, up_bias = (None, None) if biases is None else biases.chunk(2)
            return linear(gate, gate_bias, shape.activation, way), linear(up, up_bias, way=way)

        def block(layer: int) -> Block:
            mlp_in, mlp_up = gate_and_up(f"{layer}.mlp_in")
            return Block(
                attention_norm=norm(f"{layer}.attention_norm"),
                query_key_value=product(f"{layer}.query_key_value"),
                query_norm=norm(f"{layer}.query_norm") if shape.query_key_norm else None,
                key_norm=norm(f"{layer}.key_norm") if shape.query_key_norm else None,
                attention_out=product(f"{layer}.attention_out"),
                mlp_norm=norm(f"{layer}.mlp_norm"),
                mlp_in=mlp_in,
                mlp_up=mlp_up,
                mlp_out=product(f"{layer}.mlp_out"),
            )

        self.token_embedding = take("token_embedding")  # (vocab, embedding width)
        self.device, self.dtype = self.token_embedding.device, self.token_embedding.dtype
        self.storage: Storage = "int8" if way == "int8" else storage_of(self.dtype)
        self.position_embedding = None if shape.position_offset is None else take("position_embedding")
        self.rotations = shape.rotary and shape.rotary.tables(shape.context, self.dtype, self.device)
        projected = shape.embedding_width != shape.width
        self.project_in = product("project_in") if projected else None
        self.blocks = [block(layer) for layer in range(shape.layers)]
        self.final_norm = norm("final_norm") if shape.final_norm else None
        self.project_out = product("project_out") if projected else None
        if shape.tied_head:
            self.head = linear(self.token_embedding, way=way)
            if way == "int8":  # a copy beside the one that is looked up in
                self.weight_bytes += FORMATS["int8"].nbytes(*self.token_embedding.shape)
            elif way == "packed" or (way is None and can_pack(self.token_embedding)):
                self.weight_bytes += self.token_embedding.nbytes
        else:
            self.head = product("head")

        self._static = StaticCaches() if static or (static is None and self.device.type == "cuda") else None

    def _cache(self, batch: int, capacity: int) -> KVCache:
        shape = self.shape
        return KVCache(shape.layers, batch, shape.kv_heads, capacity, shape.head_size, self.dtype, self.device)

    def new_cache(self, batch: int, capacity: int) -> KVCache | StaticCache:
        forking.note_use()
        return self._static.take(self._cache, batch, capacity) if self._static else self._cache(batch, capacity)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: KVCache | StaticCache) -> Tensor:
        """tokens (B, n) -> logits (B, n, vocab); writes the tokens at each row's length, advances it by n."""
        if isinstance(cache, StaticCache) and tokens.shape[1] <= LONGEST:
            logits = cache.forward(self._logits, tokens, self.shape.window)
            cache.lengths = cache.lengths + tokens.shape[1]
            return logits
        return self._finish(self._at_lengths(tokens, cache))

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, cache: KVCache | StaticCache) -> None:
        """forward() without the logits."""
        self._at_lengths(tokens, cache)

    def _at_lengths(self, tokens: Tensor, cache: KVCache | StaticCache) -> Tensor:
        store = cache.store if isinstance(cache, StaticCache) else cache
        layout = Layout(cache.lengths, tokens.shape[1], self.device, self.shape.window)
        check_fit(layout.start, tokens.shape[1], cache.capacity)
        cache.lengths = cache.lengths + tokens.shape[1]
        return self._hidden(upload(tokens, self.device), store, layout)

    def _logits(self, tokens: Tensor, store: KVCache, layout: Layout) -> Tensor:
        return self._finish(self._hidden(tokens, store, layout))

    def _finish(self, x: Tensor) -> Tensor:
        if self.final_norm:
            x = self.final_norm(x)
        if self.project_out:
            x = self.project_out(x)
        return self.head(x)

    def _hidden(self, tokens: Tensor, store: KVCache, layout: Layout) -> Tensor:
        # a padded row may stand past the context: what is computed there is never read
        positions = layout.positions.clamp(max=self.context - 1)
        rotation = None
        if self.rotations:
            cosines, sines = self.rotations
            rotation = cosines[positions][:, None], sines[positions][:, None]
        call = Call(store, layout, rotation)

        x = self._embed(tokens, positions)
        for layer, block in enumerate(self.blocks):
            x = self._layer(layer, block, x, call)
        return x

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = F.embedding(tokens, self.token_embedding)
        if self.project_in:
            x = self.project_in(x)
        if self.position_embedding is not None:
            x = x + F.embedding(positions + (self.shape.position_offset or 0), self.position_embedding)
        return x

    def _layer(self, layer: int, block: Block, x: Tensor, call: Call) -> Tensor:
        if self.shape.parallel:
            return x + self._attention(layer, block, block.attention_norm(x), call) + _mlp(block, block.mlp_norm(x))
        if self.shape.post_norm:
            x = block.attention_norm(x + self._attention(layer, block, x, call))
            return block.mlp_norm(x + _mlp(block, x))
        x = x + self._attention(layer, block, block.attention_norm(x), call)
        return x + _mlp(block, block.mlp_norm(x))

    def _attention(self, layer: int, block: Block, x: Tensor, call: Call) -> Tensor:
        shape = self.shape
        joined = block.query_key_value(x).view(*x.shape[:2], -1, shape.head_size).transpose(1, 2)  # (B, H + 2G, n, D)
        query, key, value = torch.split(joined, [shape.heads, shape.kv_heads, shape.kv_heads], 1)
        if block.query_norm and block.key_norm:
            query, key = block.query_norm(query), block.key_norm(key)
        if call.rotation:
            query, key = _rotate(query, *call.rotation), _rotate(key, *call.rotation)
        keys, values = call.cache.write(layer, key, value, call.layout)  # (B, G, K, D)
        out = F.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=call.layout.mask,
            scale=shape.attention_scale,
            enable_gqa=shape.kv_heads != shape.heads,
        )
        return block.attention_out(out.transpose(1, 2).flatten(2))


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x (B, heads, n, D): its first dimensions rotated in the planes (i, i + size / 2), the others as they are."""
    half = cosines.shape[-1]
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines, rest], -1)


def _mlp(block: Block, x: Tensor) -> Tensor:
    inner = block.mlp_in(x)
    return block.mlp_out(inner if block.mlp_up is None else inner * block.mlp_up(x))
