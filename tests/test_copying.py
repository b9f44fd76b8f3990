"""Copies of a target: what its products are given, which bits they get, which layers are left out."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shapes import SHAPES, compiled, random_tokens, random_weights, shapes
from torch import Tensor

from sybil.errors import InvalidSetting, PackageMissing
from sybil.models import copies, skipping
from sybil.models.activations import mean_squares
from sybil.models.native import NativeTransformer
from sybil.models.operators.packaged import Packaged, packaged
from sybil.models.operators.transformer import Transformer
from sybil.models.rounding import decoded, rounded
from sybil.models.shape import Shape
from sybil.models.storage import Bits


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


bits = pytest.mark.parametrize("bits", copies.BITS)


def errors(weight: Tensor, bits: Bits, importance: Tensor, told: Tensor | None) -> Tensor:
    """(outputs,): the squared errors, weighted, of a weight that is rounded for the importance that it is told."""
    return (
        importance.double() * (decoded(rounded(weight, bits, told), bits, weight.shape[1]) - weight).double() ** 2
    ).sum(1)


@bits
@pytest.mark.parametrize("inputs", [32, 50, 256])
def test_important_inputs_have_less_error(bits: Bits, inputs: int) -> None:
    """Never more in any row; less in sum, though another importance doesn't help so."""
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(40, inputs, generator=generator)
    importance = torch.randn(inputs, generator=generator).mul(2).exp()
    plain = errors(weight, bits, importance, None)
    fitted = errors(weight, bits, importance, importance)
    other = errors(weight, bits, importance, importance.roll(1))
    assert (fitted <= plain * (1 + 1e-6)).all()
    assert fitted.sum() < 0.9 * plain.sum()
    assert fitted.sum() < 0.9 * other.sum()


@bits
def test_weights_on_a_grid_stay(bits: Bits) -> None:
    """What was rounded before, as a file's blocks were, is met again, whatever is important."""
    weight = decoded(rounded(torch.randn(9, 96), bits), bits, 96)
    again = decoded(rounded(weight, bits, torch.rand(96)), bits, 96)
    assert torch.equal(again, decoded(rounded(weight, bits), bits, 96))


@bits
def test_importance_that_is_no_number_counts_nothing(bits: Bits) -> None:
    weight = torch.randn(5, 64)
    for odd in (torch.full((64,), torch.nan), torch.full((64,), torch.inf), torch.zeros(64)):
        assert torch.equal(rounded(weight, bits, odd), rounded(weight, bits, torch.ones(64)))
    weight[2, 7] = torch.nan
    assert decoded(rounded(weight, bits, torch.ones(64)), bits, 64)[2, :32].isnan().all()


@pytest.mark.parametrize(
    ("storages", "wanted"),
    [
        (["q4_1", "q4_1", "q8_0"], 4), (["q4_k", "q6_k", "q4_k"], 4), (["q5_1", "q5_1", None], 5), (["q8_0"] * 3, 6),
        ([None, None, "q4_0"], 6), ([], 6),
    ],
)  # fmt: skip
def test_bits_follow_the_files(storages: list[Any], wanted: int) -> None:
    lying = {str(number): storage for number, storage in enumerate(storages) if storage is not None}
    shapes = {str(number): (8, 256) for number in range(len(storages))}
    stored = SimpleNamespace(shapes={"norm": (8,), **shapes}, storages=lying)
    checkpoint: Any = SimpleNamespace(stored=stored)
    assert copies.best_bits(checkpoint) == wanted
    assert copies.best_bits(SimpleNamespace(stored=None)) == 6


def with_useless(shape: Shape, useless: int) -> dict[str, Tensor]:
    """Random weights of which one layer adds nothing."""
    weights = random_weights(shape)
    for name in ("attention_out", "mlp_out"):
        for part in ("weight", "bias"):
            weights[f"{useless}.{name}.{part}"].zero_()
    return weights


def of_kind(kind: str, shape: Shape, weights: dict[str, Tensor]) -> skipping.Layered:
    return NativeTransformer(shape, weights, threads=1) if kind == "native" else Transformer(shape, weights)


@compiled
@pytest.mark.parametrize("kind", ["native", "operators"])
@pytest.mark.parametrize("useless", [0, 1])
def test_a_layer_that_does_nothing_is_left_out(kind: str, useless: int) -> None:
    """Then nothing changes, bit for bit."""
    shape = SHAPES["gpt2"]
    model, text = of_kind(kind, shape, with_useless(shape, useless)), random_tokens(shape, 3, 9)
    for count in (None, 1):
        kept = skipping.kept(model, text, count)
        assert kept == (1 - useless,)
        other = model.with_layers(kept)
        cache = model.new_cache(3, 9)
        assert torch.equal(other.forward(text, cache).clone(), model.forward(text, model.new_cache(3, 9)))
        assert other.weight_bytes < model.weight_bytes
    for wrong in ([], [1, 0], [0, 0], [2]):
        with pytest.raises(InvalidSetting, match="in their order"):
            model.with_layers(wrong)


def test_worth_is_the_papers() -> None:
    """Leviathan et al. 2023, theorem 3.8, by simulation, at the best gamma."""
    agreed, cost = 0.8, 0.2
    generator = torch.Generator().manual_seed(0)
    kept = (torch.rand(200_000, 8, generator=generator) < agreed).cumprod(1)
    found = max(float(1 + kept[:, :gamma].sum(1).double().mean()) / (1 + gamma * cost) for gamma in range(1, 9))
    assert skipping.worth(agreed, cost) == pytest.approx(found, abs=0.01)
    assert skipping.worth(1.0, 0.0) == 9


@shapes
def test_a_librarys_products_stand_in_for_ours(shape: Shape) -> None:
    """With a library that rounds nothing the forward is the same; what it says that it takes is what is counted."""
    weights, text = random_weights(shape), random_tokens(shape, 2, 7)

    def make(weight: Tensor, bias: Tensor | None) -> torch.nn.Module:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        linear.weight.data, linear.bias = weight, None if bias is None else torch.nn.Parameter(bias)
        return linear.requires_grad_(False)

    plain, other = Transformer(shape, weights, "plain"), Transformer(shape, weights, Packaged(8, make))
    found, wanted = (each.forward(text, each.new_cache(2, 7)) for each in (other, plain))
    torch.testing.assert_close(found, wanted)
    head = shape.vocab_size * shape.embedding_width if shape.tied_head else 0  # beside the table that is looked up in
    products = sum(len(each) * each.shape[1] for name, each in weights.items() if each.ndim == 2 and "emb" not in name)
    assert other.weight_bytes == plain.weight_bytes - 3 * products + head


@pytest.mark.parametrize(("bits", "dtype", "named"), [
    (4, torch.float16, "bitsandbytes, which"), (4, torch.bfloat16, "bitsandbytes or torchao"),
    (5, torch.float16, "torchao or bitsandbytes"), (8, torch.float32, "torchao or bitsandbytes"),
])  # fmt: skip
def test_a_library_that_lacks_is_one_line(
    bits: Bits, dtype: torch.dtype, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match=r"pip install \w+, or give") as refused:
        packaged(bits, dtype, f"self:{bits}")
    assert named in str(refused.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert packaged(bits, dtype, "self").bits == (4 if bits == 4 else 8)
