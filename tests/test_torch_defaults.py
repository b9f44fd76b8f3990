"""No default of torch's reaches what Sybil computes: neither its dtype, nor its device, nor how it fills memory."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import SHAPES, compiled, random_weights
from tiny import fixed, foreign, gpt2, in_sybil, perturbed, prompts, windowed

import sybil
from sybil.decoding import Decoder
from sybil.drafting import DraftLookup, DraftModel
from sybil.models.native import NativeTransformer
from sybil.models.operators.transformer import Transformer
from sybil.models.storage import Rounding

MAKERS = {
    "zeros",
    "empty",
    "ones",
    "full",
    "tensor",
    "arange",
    "rand",
    "randn",
    "randint",
    "randperm",
    "eye",
    "linspace",
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """torch fills what it allocates with NaN then."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


DEFAULTS = {
    **{str(dtype): lambda dtype=dtype: default_dtype(dtype) for dtype in DTYPES},
    "meta": lambda: default_device("meta"),
    "with meta": lambda: torch.device("meta"),
    "inference": lambda: torch.inference_mode(),
    "no grad": lambda: torch.no_grad(),
    "grad": lambda: torch.enable_grad(),
    "deterministic": deterministic,
}


def everything(decoder: Decoder, inputs: Any) -> list[list[int]]:
    """Greedy and sampled tokens, by every rule, window and kind of filter in turn."""
    common: dict[str, Any] = dict(max_new_tokens=9, gamma=3, repetition_penalty=1.1)
    sampled = dict(common, do_sample=True, seed=5, top_k=20, top_p=0.95, min_p=0.001)
    asked: list[dict[str, Any]] = [
        {**common, "eos_token_id": [0, 30]},
        {**sampled, "rule": "token", "window": "confident"},
        {**sampled, "rule": "block", "window": "heuristic"},
        {**sampled, "rule": "coupled", "stopping_criteria": [lambda ids, scores: ids.shape[1] > 14]},
    ]
    found = [decoder.generate(inputs, **each) for each in asked]
    return [row.tolist() for out in found for row in out.tokens]


def decoders() -> dict[str, Decoder]:
    shape = SHAPES["qwen3, windowed"]
    weights = random_weights(shape)
    draft = {name: weight + 0.02 * torch.randn(weight.shape) for name, weight in weights.items()}
    helper = DraftModel(Transformer(shape, draft, "int8"))
    found = {
        "operators": Decoder(Transformer(shape, weights), helper),
        "float64": Decoder(in_sybil(windowed()), DraftLookup()),
        "fixed shapes": Decoder(fixed(gpt2()), DraftModel(in_sybil(perturbed(gpt2(), 0.02)))),
        "transformers": Decoder(foreign(gpt2()), DraftModel(foreign(perturbed(gpt2(), 0.02)))),
    }
    with contextlib.suppress(sybil.errors.UnsupportedModel):
        found |= {
            storage: Decoder(
                NativeTransformer(shape, weights, storage), DraftModel(NativeTransformer(shape, draft, Rounding(8)))
            )
            for storage in ("float32", "bfloat16")
        }
    return found


@pytest.fixture(scope="module")
def wanted() -> dict[str, tuple[Decoder, list[list[int]]]]:
    torch.manual_seed(0)
    return {name: (decoder, everything(decoder, prompts([4, 7]))) for name, decoder in decoders().items()}


@pytest.mark.parametrize("default", DEFAULTS)
def test_the_tokens_are_the_same_under_every_default(default: str, wanted: Any) -> None:
    for name, (decoder, tokens) in wanted.items():
        inputs = prompts([4, 7])
        with DEFAULTS[default]():
            found = everything(decoder, inputs)
        assert found == tokens, name


@compiled
@pytest.mark.parametrize("default", DEFAULTS)
def test_models_are_made_the_same_under_every_default(default: str) -> None:
    """Rotations, scales, packed weights and caches: the same bits."""
    shape = SHAPES["qwen3, windowed"]
    weights, tokens = random_weights(shape), torch.arange(10)[None]

    def logits() -> list[torch.Tensor]:
        made = [
            NativeTransformer(shape, weights, Rounding(8)),
            Transformer(shape, weights),
            Transformer(shape, weights, "int8"),
        ]
        return [model.forward(tokens, model.new_cache(1, 10)) for model in made]

    before = logits()
    with DEFAULTS[default]():
        after = logits()
    assert [each.dtype for each in after] == [torch.float32] * 3
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("default", ["torch.float64", "torch.bfloat16", "meta", "with meta", "inference"])
def test_loading_and_generating_under_a_default(default: str) -> None:
    def text() -> list[str]:
        decoder = sybil.load("stdlib")
        greedy = decoder.generate("def main(", max_new_tokens=12).text
        return greedy + decoder.generate("import os\n", max_new_tokens=12, do_sample=True, seed=3).text

    before = text()
    with DEFAULTS[default]():
        after = text()
    assert before == after


def unnamed(source: str) -> list[str]:
    """Tensors made in a source without a device, or without a dtype."""
    wrong = []
    for call in ast.walk(ast.parse(source)):
        if not (isinstance(call, ast.Call) and ast.unparse(call.func).removeprefix("torch.") in MAKERS):
            continue
        if not ast.unparse(call.func).startswith("torch."):
            continue
        said = {word.arg for word in call.keywords}
        needed = {"device"} if ast.unparse(call.func) in ("torch.randint", "torch.randperm") else {"device", "dtype"}
        if needed - said:
            wrong.append(f"{call.lineno}: {ast.unparse(call)}")
    return wrong


def test_every_tensor_is_made_with_its_dtype_and_device() -> None:
    library = Path(sybil.__file__).parent
    assert {str(file): wrong for file in library.rglob("*.py") if (wrong := unnamed(file.read_text()))} == {}


def test_a_tensor_made_without_them_is_seen() -> None:
    assert unnamed("a = torch.zeros(3)\nb = torch.arange(4, device=d)\nc = torch.tensor([1], dtype=t, device=d)") == [
        "1: torch.zeros(3)",
        "2: torch.arange(4, device=d)",
    ]
