"""Copies of a target: what its products are given, which bits they get, which layers are left out."""

from __future__ import annotations

import torch
from shapes import random_tokens, random_weights, shapes
from torch import Tensor

from sybil.models.activations import mean_squares
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape


@shapes
def test_what_products_are_given_is_observed(shape: Shape) -> None:
    """The mean squares of a first layer's inputs and of a head's, computed apart; every product has its own."""
    weights, text = random_weights(shape), random_tokens(shape, 3, 7)
    found = mean_squares(shape, weights, text)
    sizes = {name.removesuffix(".weight"): tensor.shape[1] for name, tensor in weights.items() if tensor.ndim == 2}
    sizes.pop("position_embedding", None)
    if not shape.tied_head:
        sizes.pop("token_embedding")
    assert {name: len(each) for name, each in found.items()} == sizes
    model = Transformer(shape, weights)
    given: list[Tensor] = []
    model.head = lambda x: (given.append(x), x @ weights.get("head.weight", weights["token_embedding"]).T)[1]
    model.forward(text, model.new_cache(3, 7))
    (inputs,) = given
    head = "token_embedding" if shape.tied_head else "head"
    torch.testing.assert_close(found[head], inputs.flatten(0, 1).square().mean(0))
