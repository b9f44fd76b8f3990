"""What a decoder-only model is, in our words: the description that every forward of ours takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sybil.allocation import taking
from sybil.errors import InvalidSetting
from sybil.transfer import CPU

Activation = Literal["none", "gelu_tanh", "gelu", "relu", "silu"]
_OF_INPUTS, _OF_OUTPUTS = ("attention_norm", "mlp_norm"), ("attention_out_norm", "mlp_out_norm")


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding of the first `size` dimensions of each head, halves rotated against each other."""

    size: int
    inverse_frequencies: tuple[float, ...]
    """size / 2 of them, radians a token: float32 values, whatever the model's dtype."""

    def tables(
        self, positions: range, dtype: torch.dtype = torch.float32, device: torch.device = CPU
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (positions, size / 2) each; angles in float32 in every dtype, as transformers has them."""
        count = len(positions)
        with taking(16 * count * len(self.inverse_frequencies), f"rotations of {count} positions", device):
            frequencies = torch.tensor(self.inverse_frequencies, dtype=torch.float32, device=device)
            places = torch.arange(positions.start, positions.stop, dtype=torch.int64, device=device)
            angles = places[:, None].float() * frequencies
            return angles.cos().to(dtype), angles.sin().to(dtype)


@dataclass(frozen=True, slots=True)
class Attention:
    """What may differ between the attentions of two layers."""

    rotary: Rotary | None = None
    """None: queries and keys are not rotated."""
    window: int | None = None
    """A token sees itself and the window - 1 before it; None: all before it."""


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
    normed: Literal["input", "output", "both", "sum"] = "input"
    """x + f(norm(x)), x + norm(f(x)), x + norm(f(norm(x))) or norm(x + f(x))."""
    parallel: bool = False
    """x + attention(norm(x)) + mlp(other norm(x)) in place of one after the other."""
    final_norm: bool = True
    embedding_scale: float = 1.0
    """What a token's embedding is multiplied by. A head of the same weights isn't multiplied."""
    residual_scale: float = 1.0
    """What f's output is multiplied by before it is added."""
    logit_divisor: float = 1.0
    logit_cap: float = 0.0
    """logits = cap * tanh(logits / cap); 0: no cap."""
    attention_scale: float = 0.0
    """0: 1 / sqrt(head_size)."""
    attention_cap: float = 0.0
    """cap * tanh(scaled score / cap) before the softmax; 0: no cap."""
    position_offset: int | None = None
    """Row of the first position in the table of learned positions; None: no table."""
    attentions: tuple[Attention, ...] = ()
    """The attention of each layer; (): none is rotated, and each sees everything before it."""
    query_key_norm: Literal["none", "head", "whole"] = "none"
    """Queries and keys are normalised before they are rotated: each head by itself, or all heads as one."""
    tied_head: bool

    def __post_init__(self) -> None:
        self._default("kv_heads", self.heads)
        self._default("head_size", self.width // self.heads)
        self._default("embedding_width", self.width)
        self._default("attention_scale", self.head_size**-0.5)
        self._default("attentions", (Attention(),) * self.layers)

    def norms(self) -> dict[str, int]:
        """The names of a layer's norms, and over how many numbers each is."""
        names = {"input": _OF_INPUTS, "output": _OF_OUTPUTS, "both": _OF_INPUTS + _OF_OUTPUTS, "sum": _OF_INPUTS}
        sizes = dict.fromkeys(names[self.normed], self.width)
        if self.query_key_norm == "none":
            return sizes
        heads = (self.heads, self.kv_heads) if self.query_key_norm == "whole" else (1, 1)
        return sizes | {"query_norm": heads[0] * self.head_size, "key_norm": heads[1] * self.head_size}

    def _default(self, name: str, value: object) -> None:
        if not getattr(self, name):
            object.__setattr__(self, name, value)


def check_layers(layers: Sequence[int], every: Sequence[int]) -> None:
    """Raises InvalidSetting unless layers are some of a model's, at least one, in their order."""
    if list(layers) != sorted(set(layers) & set(every)) or not layers:
        raise InvalidSetting(f"layers {[*layers]} of a model that has {[*every]}: name some, in their order")
