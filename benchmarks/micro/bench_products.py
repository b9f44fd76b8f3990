"""The costs of multiplying a few rows by large weights: by themselves, and within a whole forward."""

from __future__ import annotations

import pytest
import torch
from conftest import Measure

from sybil.measuring.timing import forward_case
from sybil.measuring.workload import RandomModel
from sybil.models import Model
from sybil.models.operators.linear import Linear, Way, can_pack, linear

ROWS, DEPTH = (1, 2, 5, 9, 17), 128
OUTPUTS, INPUTS, MATRICES = 4096, 1024, 12
"""Together the matrices are larger than the processor's caches, as a model's weights are."""
LAYERS = RandomModel("layers", {"model_type": "gpt2", "n_layer": 4, "n_embd": 1024, "n_head": 16, "vocab_size": 1024})
"""Four layers of GPT-2 Medium's width."""
by_rows = pytest.mark.parametrize("rows", ROWS, ids="rows {:02}".format)


@pytest.fixture(scope="module", params=["packed", "int8", "plain"], ids=["float32 packed", "int8", "float32 plain"])
def products(request: pytest.FixtureRequest, device: torch.device) -> list[Linear]:
    """A dozen seeded matrices, stored for one of the ways in which linear() multiplies."""
    way: Way = request.param
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(OUTPUTS, INPUTS, generator=generator).to(device) for _ in range(MATRICES)]
    if (way == "packed" and not can_pack(weights[0])) or (way == "int8" and device.type != "cpu"):
        pytest.skip(f"{way} products are not for this device")
    return [linear(weight, way=way) for weight in weights]


@by_rows
@pytest.mark.benchmark(group="products")
def test_linear(products: list[Linear], rows: int, measure: Measure, device: torch.device) -> None:
    """Multiply the same rows by each of 12 matrices of 4096 x 1024."""
    x = torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(1)).to(device)
    out = measure(lambda: [product(x) for product in products], rounds=10)
    assert {each.shape for each in out} == {(rows, OUTPUTS)}
    measure.tokens(rows, "a row through all 12")


@pytest.fixture(scope="module", params=[torch.float32, torch.int8], ids=["float32", "int8"])
def layers(request: pytest.FixtureRequest, device: torch.device) -> Model:
    """Four layers with the forward that load() would choose: on a CPU that is the C forward."""
    if request.param == torch.int8 and device.type != "cpu":
        pytest.skip("int8 is for CPUs")
    return LAYERS.build(request.param, device)


@by_rows
@pytest.mark.benchmark(group="forward")
def test_forward(layers: Model, rows: int, measure: Measure) -> None:
    """The forward over some tokens after 128 others."""
    logits = measure(forward_case(layers, rows, DEPTH), rounds=20)
    assert logits.shape == (1, rows, layers.vocab_size)
    measure.tokens(rows, "one verified")
