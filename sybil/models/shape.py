"""What a decoder-only model is, in our words: the description that every forward of ours takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sybil.allocation import taking
from sybil.transfer import CPU

Activation = Literal["none", "gelu_tanh", "gelu", "relu", "silu"]


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding of the first `size` dimensions of each head, halves rotated against each other."""

    size: int
    inverse_frequencies: tuple[float, ...]
    """size / 2 of them, radians a token: float32 values, whatever the model's dtype."""

    def tables(
        self, context: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (context, size / 2) each; angles in float32 in every dtype, as transformers has them."""
        with taking(
            16 * context * len(self.inverse_frequencies), f"rotations for a context of {context} tokens", device
        ):
            frequencies = torch.tensor(self.inverse_frequencies, dtype=torch.float32, device=device)
            angles = torch.arange(context, dtype=torch.int64, device=device)[:, None].float() * frequencies
            return angles.cos().to(dtype), angles.sin().to(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A checkpoint's config. Where 0 is the default, it stands for the value named beside it."""

    vocab_size: int
    context: int
    layers: int
    heads: int
    kv_heads: int = 0
    """Heads of keys and values, each shared by heads / kv_heads queries; 0: heads."""
    head_size: int = 0
    """0: width / heads."""
    width: int
    embedding_width: int = 0
    """Of the token embedding and the head; where it isn't the blocks' width, products lead in and out. 0: width."""
    inner: int
    activation: Activation
    gated: bool = False
    """act(gate) * up in place of act(in)."""
    norm: Literal["layer", "rms"] = "layer"
    epsilon: float
    post_norm: bool = False
    """x = norm(x + f(x)) in place of x + f(norm(x))."""
    parallel: bool = False
    """x + attention(norm(x)) + mlp(other norm(x)) in place of one after the other."""
    final_norm: bool = True
    attention_scale: float = 0.0
    """0: 1 / sqrt(head_size)."""
    position_offset: int | None = None
    """Row of the first position in the table of learned positions; None: no table."""
    rotary: Rotary | None = None
    query_key_norm: bool = False
    """Each head's query and key are normalised before they are rotated."""
    window: int | None = None
    """A token sees itself and the window - 1 before it; None: all before it."""
    tied_head: bool

    def __post_init__(self) -> None:
        self._default("kv_heads", self.heads)
        self._default("head_size", self.width // self.heads)
        self._default("embedding_width", self.width)
        self._default("attention_scale", self.head_size**-0.5)

    def _default(self, name: str, value: float) -> None:
        if not getattr(self, name):
            object.__setattr__(self, name, value)
