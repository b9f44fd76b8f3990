"""Attention over a cache's keys and values, in shapes that GPUs' attention kernels accept.

Shapes: batch B, tokens in the call n, keys so far K, heads H, heads of keys and values G, head size D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.models.shape import Shape


def attend(shape: Shape, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """query (B, H, n, D), keys and values (B, G, K, D), mask (B, 1, n * H / G, K) or None -> (B, H, n, D). The mask is
    added to the scores.

    Query heads that share a head of keys are passed as more queries of one head. So keys and values are read in place.
    If torch itself shares the heads, it copies keys and values for each query head where there is a mask, by its
    slowest kernel."""
    grouped = query.reshape(len(query), shape.kv_heads, -1, shape.head_size)
    if shape.attention_cap:
        out = _capped_attention(shape, grouped, keys, values, mask)
    else:
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=shape.attention_scale)
    return out.reshape(query.shape)


def _capped_attention(shape: Shape, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    scores = capped(query @ keys.transpose(2, 3) * shape.attention_scale, shape.attention_cap)
    if mask is not None:
        scores = scores + mask
    shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return shares.to(values.dtype) @ values


def capped(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap); x unchanged where cap is 0."""
    return (x / cap).tanh() * cap if cap else x
