"""Measures how large the inputs of a model's products are. An error in a weight counts more where its input is
larger."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape


def mean_squares(shape: Shape, weights: Mapping[str, Tensor], text: Tensor) -> dict[str, Tensor]:
    """The mean square (inputs,) of each input of each product over a text (rows, tokens), by the products' names.

    If the inputs are uncorrelated, a product's mean squared error over that text is the sum, over its inputs, of the
    input's mean square times the weight's squared error. weights: in float32, on a CPU; they are read once, one layer
    at a time."""
    sums: dict[str, Tensor] = {}

    def observe(name: str, x: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + x.flatten(0, -2).square().sum(0)

    model = Transformer(shape, weights, "plain", static=False, observe=observe)
    model.forward(text, model.new_cache(*text.shape))
    return {name: found / text.numel() for name, found in sums.items()}
