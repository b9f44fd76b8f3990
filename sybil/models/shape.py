"""Describes a decoder-only model in Sybil's words. Every forward of Sybil's own takes this description."""

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
    """Rotary position embedding. The first `size` dimensions of each head are rotated, one half against the other."""

    size: int
    inverse_frequencies: tuple[float, ...]
    """size / 2 angles, in radians a token. They are float32 values, whatever the model's dtype."""

    def tables(
        self, positions: range, dtype: torch.dtype = torch.float32, device: torch.device = CPU
    ) -> tuple[Tensor, Tensor]:
        """(cosines, sines), each (positions, size / 2). Angles are computed in float32 for every dtype, as in
        transformers."""
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
    """A checkpoint's config. Where a field's default is 0, it stands for the value that the field's text names."""

    vocab_size: int
    context: int
    layers: int
    heads: int
    kv_heads: int = 0
    """The heads of keys and values. Each is shared by heads / kv_heads heads of queries. 0: as many as heads."""
    head_size: int = 0
    """0: width / heads."""
    width: int
    embedding_width: int = 0
    """The width of the token embedding and the head. If it isn't `width`, a product before the first layer and one
    after the last convert between them. 0: width."""
    inner: int
    activation: Activation
    gated: bool = False
    """Whether the MLP computes act(gate) * up instead of act(in)."""
    norm: Literal["layer", "rms"] = "layer"
    epsilon: float
    normed: Literal["input", "output", "both", "sum"] = "input"
    """Where norms are. In the order of these words: x + f(norm(x)), x + norm(f(x)), x + norm(f(norm(x))) and
    norm(x + f(x)), where f is the attention or the MLP."""
    parallel: bool = False
    """Whether a layer computes x + attention(norm(x)) + mlp(other norm(x)) instead of one after the other."""
    final_norm: bool = True
    embedding_scale: float = 1.0
    """A token's embedding is multiplied by this. A head that shares the embedding's weight isn't."""
    residual_scale: float = 1.0
    """The output of attention and MLP is multiplied by this before it is added to x."""
    logit_divisor: float = 1.0
    logit_cap: float = 0.0
    """logits = cap * tanh(logits / cap); 0: no cap."""
    attention_scale: float = 0.0
    """0: 1 / sqrt(head_size)."""
    attention_cap: float = 0.0
    """Scaled scores become cap * tanh(score / cap) before the softmax; 0: no cap."""
    position_offset: int | None = None
    """The row of the first position in the table of learned positions; None: there is no table."""
    attentions: tuple[Attention, ...] = ()
    """The attention of each layer; (): every layer has Attention(), without rotation and window."""
    query_key_norm: Literal["none", "head", "whole"] = "none"
    """How queries and keys are normalised before they are rotated: not at all, each head by itself, or all heads
    together."""
    tied_head: bool

    def __post_init__(self) -> None:
        self._default("kv_heads", self.heads)
        self._default("head_size", self.width // self.heads)
        self._default("embedding_width", self.width)
        self._default("attention_scale", self.head_size**-0.5)
        self._default("attentions", (Attention(),) * self.layers)

    def norms(self) -> dict[str, int]:
        """The norms of a layer: the number of values that each one normalises over, by the norm's name."""
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
    """Raises InvalidSetting unless `layers` are at least one of a model's layers, in the model's order. every: all of
    the model's layers."""
    if list(layers) != sorted(set(layers) & set(every)) or not layers:
        raise InvalidSetting(f"layers {[*layers]} of a model that has {[*every]}: name some, in their order")
