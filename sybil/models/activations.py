"""How large the inputs of a model's products are, which says where an error of a weight counts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape


def mean_squares(shape: Shape, weights: Mapping[str, Tensor], text: Tensor) -> dict[str, Tensor]:
    """For each product, by its name, the mean square (inputs,) of each of its inputs over a text (rows, tokens).

    A product's error over that text is the sum over its inputs of mean square times squared error of the weight, where
    inputs don't go together. weights: in float32, on a CPU, read once, a layer at a time."""
    sums: dict[str, Tensor] = {}

    def observe(name: str, x: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + x.flatten(0, -2).square().sum(0)

    model = Transformer(shape, weights, "plain", static=False, observe=observe)
    model.forward(text, model.new_cache(*text.shape))
    return {name: found / text.numel() for name, found in sums.items()}
