"""A decoder-only forward over a preallocated cache: pre-norm blocks with learned positions (GPT-2).

Shapes: batch B, tokens in the call n, keys so far K, heads H, head size D, width W = H * D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.models.cache import KVCache, Layout
from sybil.models.linear import Activation, Linear, can_pack, linear


@dataclass(frozen=True, slots=True)
class Shape:
    """What a checkpoint's config says, in our words."""

    vocab_size: int
    context: int
    layers: int
    heads: int
    width: int
    inner: int
    activation: Activation
    epsilon: float
    attention_scale: float
    tied_head: bool


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation over the last dimension."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    attention_norm: Norm
    query_key_value: Linear
    attention_out: Linear
    mlp_norm: Norm
    mlp_in: Linear
    mlp_out: Linear


class Transformer:
    """A causal language model as DESIGN's contract has it: forward(tokens, cache) -> logits.

    weights: name -> tensor, named as models.checkpoints names them, (outputs, inputs) each."""

    def __init__(self, shape: Shape, weights: Mapping[str, Tensor], pack: bool | None = None) -> None:
        self.shape = shape
        self.vocab_size, self.context = shape.vocab_size, shape.context
        self.token_embedding = weights["token_embedding"]  # (vocab, W)
        self.position_embedding = weights["position_embedding"]  # (context, W)
        self.device, self.dtype = self.token_embedding.device, self.token_embedding.dtype
        packed_again = shape.tied_head and pack is not False and can_pack(self.token_embedding)
        self.weight_bytes = (
            sum(tensor.nbytes for tensor in weights.values()) + packed_again * self.token_embedding.nbytes
        )

        def norm(name: str) -> Norm:
            return Norm(weights[f"{name}.weight"], weights[f"{name}.bias"], shape.epsilon)

        def product(name: str, activation: Activation = "none") -> Linear:
            return linear(weights[f"{name}.weight"], weights[f"{name}.bias"], activation, pack)

        self.blocks = [
            Block(
                attention_norm=norm(f"{layer}.attention_norm"),
                query_key_value=product(f"{layer}.query_key_value"),
                attention_out=product(f"{layer}.attention_out"),
                mlp_norm=norm(f"{layer}.mlp_norm"),
                mlp_in=product(f"{layer}.mlp_in", shape.activation),
                mlp_out=product(f"{layer}.mlp_out"),
            )
            for layer in range(shape.layers)
        ]
        self.final_norm = norm("final_norm")
        self.head = linear(weights["token_embedding" if shape.tied_head else "head.weight"], pack=pack)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        shape = self.shape
        head_size = shape.width // shape.heads
        return KVCache(shape.layers, batch, shape.heads, capacity, head_size, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """tokens (B, n) -> logits (B, n, vocab); writes the tokens at each row's length, advances it by n."""
        return self.head(self.final_norm(self._hidden(tokens, cache)))

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, cache: KVCache) -> None:
        """forward() without the logits."""
        self._hidden(tokens, cache)

    def _hidden(self, tokens: Tensor, cache: KVCache) -> Tensor:
        layout = cache.layout(tokens.shape[1])
        # a padded row may stand past the context: what is computed there is never read
        positions = layout.positions.clamp(max=self.context - 1)
        x = F.embedding(tokens.to(self.device), self.token_embedding) + F.embedding(positions, self.position_embedding)
        for layer, block in enumerate(self.blocks):
            x = x + block.attention_out(self._attention(block, layer, x, cache, layout))
            x = x + block.mlp_out(block.mlp_in(block.mlp_norm(x)))
        cache.lengths = cache.lengths + tokens.shape[1]
        return x

    def _attention(self, block: Block, layer: int, x: Tensor, cache: KVCache, layout: Layout) -> Tensor:
        batch, count, width = x.shape
        heads = self.shape.heads
        joined = block.query_key_value(block.attention_norm(x))  # (B, n, 3W)
        query, key, value = joined.view(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)  # (B, H, n, D)
        keys, values = cache.write(layer, key, value, layout)  # (B, H, K, D)
        scale = self.shape.attention_scale
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=layout.mask, scale=scale)
        return out.transpose(1, 2).reshape(batch, count, width)
