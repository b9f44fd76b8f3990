"""forward.c computes what Transformer computes, by vectors of 4, 8 and 16 floats, in its own memory and no other."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import (
    SHAPES,
    assert_near,
    assert_same_bits,
    compiled,
    logits_in_parts,
    random_tokens,
    random_weights,
    rounded,
    shapes,
    storages,
    widths,
)
from tiny import gpt2, letters, save
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import sybil
from sybil.errors import InvalidSetting
from sybil.models.folders import embedded_folder
from sybil.models.native import NativeTransformer
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Shape
from sybil.models.storage import Kept, Rounding, Storage

pytestmark = compiled

CAPACITIES = (1, 5, 8, 9, 16)


@shapes
@storages
def test_it_computes_what_the_operators_compute(shape: Shape, storage: Storage) -> None:
    weights = random_weights(shape)
    reference = Transformer(shape, rounded(weights, storage))
    tokens, lengths = random_tokens(shape, 3, 30), torch.tensor([4, 19, 9])

    def computed(model: Any) -> Tensor:
        cache = model.new_cache(3, 40)
        model.prefill(tokens[:, :20], cache)
        cache.lengths = lengths
        logits = torch.cat([model.forward(part, cache) for part in torch.split(tokens[:, 20:], [1, 4, 5], 1)], 1)
        assert cache.lengths.tolist() == (lengths + 10).tolist()
        return logits

    wanted = computed(reference)
    for lanes, threads in ((4, 1), (8, 2), (16, 1), (16, 2)):
        assert_near(computed(NativeTransformer(shape, weights, storage, threads, lanes)), wanted)


@widths
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_cache_holds_what_was_asked_for(capacity: int, lanes: int) -> None:
    """The same number whatever is stored in whole vectors, with and without a window, by storages in turn."""
    storage: Kept
    for shape, storage in zip(SHAPES.values(), itertools.cycle(("float32", Rounding(5), "bfloat16")), strict=False):
        model = NativeTransformer(shape, random_weights(shape), storage, lanes=lanes)
        tokens, cache = random_tokens(shape, 2, capacity + 1), model.new_cache(2, capacity)
        fitting = tokens[:, :capacity]
        found = torch.cat([model.forward(part, cache) for part in fitting.split(3, 1)], 1)
        assert_same_bits(found, logits_in_parts(model, fitting, [1] * capacity, 48))
        held = [part.clone() for part in (cache.keys, cache.values)]
        for lengths in ([capacity, 0], [0, capacity]):
            cache.lengths = torch.tensor(lengths)
            with pytest.raises(IndexError, match=f"a cache of {capacity} "):
                model.forward(tokens[:, capacity:], cache)
            assert cache.lengths.tolist() == lengths
        with pytest.raises(IndexError, match=f"a cache of {capacity} "):
            model.forward(tokens, model.new_cache(2, capacity))
        assert all(map(torch.equal, held, (cache.keys, cache.values)))
        assert (cache.capacity, cache.keys.shape[-1] % lanes) == (capacity, 0)


def test_tokens_and_lengths_may_lie_anyhow() -> None:
    """C reads them one after the other."""
    shape = SHAPES["gpt2"]
    model = NativeTransformer(shape, random_weights(shape))
    tokens = random_tokens(shape, 3, 5)
    wanted = logits_in_parts(model, tokens, [3, 2])[:, 3:]
    for lengths in (torch.tensor([3]).expand(3), torch.tensor([[3, -9]] * 3)[:, 0]):
        for part in (tokens[:, 3:], tokens[:, 3:].t().contiguous().t(), tokens[:, 3:].int()):
            cache = model.new_cache(3, 8)
            model.prefill(tokens[:, :3], cache)
            cache.lengths = lengths
            assert_same_bits(model.forward(part, cache), wanted)
            assert cache.lengths.tolist() == [5, 5, 5]
    for wrong in (
        torch.tensor([3, 3]),
        torch.tensor([[3, 3, 3]]),
        torch.tensor([3.0] * 3),
        torch.tensor([3] * 3).int(),
    ):
        cache.lengths = wrong
        with pytest.raises(IndexError, match="has 3 rows"):
            model.forward(tokens, cache)


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("static", [False, True])
def test_the_operators_caches_hold_as_much(capacity: int, static: bool) -> None:
    """torch drops a token that finds no place without a word, and a static cache has places to spare."""
    shape = SHAPES["qwen3, windowed"]
    model = Transformer(shape, random_weights(shape), "plain", static)
    tokens, cache = random_tokens(shape, 2, capacity + 1), model.new_cache(2, capacity)
    model.forward(tokens[:, :capacity], cache)
    for lengths in ([capacity, capacity], [capacity, 0]):
        cache.lengths = torch.tensor(lengths)
        with pytest.raises(IndexError, match=f"a cache of {capacity}$"):
            model.forward(tokens[:, capacity:], cache)
        with pytest.raises(IndexError, match=f"a cache of {capacity}$"):
            model.prefill(tokens[:, capacity:], cache)
        assert cache.lengths.tolist() == lengths


@widths
@pytest.mark.parametrize("token", [-1, 37, 2**31, -(2**63)])
def test_what_does_not_fit_is_an_error_and_no_memory_of_others(token: int, lanes: int) -> None:
    model = NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]), lanes=lanes)
    cache = model.new_cache(1, 8)
    with pytest.raises(IndexError, match=str(token)):
        model.forward(torch.tensor([[1, token]]), cache)
    model.forward(torch.ones(1, 8, dtype=torch.int64), cache)
    with pytest.raises(IndexError, match="a cache of 8"):
        model.forward(torch.tensor([[1]]), cache)
    assert cache.lengths.tolist() == [8]
    for length in (-1, 9, 2**31, 2**62, -(2**63), 2**63 - 1):
        cache.lengths = torch.tensor([length])
        with pytest.raises(IndexError, match="a cache of 8"):
            model.forward(torch.tensor([[1]]), cache)
    with pytest.raises(IndexError, match="has 2 rows"):
        model.forward(torch.tensor([[1]]), model.new_cache(2, 8))
    model.prefill(torch.empty(1, 0, dtype=torch.int64), model.new_cache(1, 8))
    for batch, capacity in ((0, 8), (-1, 8), (1, -1)):
        with pytest.raises(InvalidSetting, match=f"{batch} rows of {capacity} tokens"):
            model.new_cache(batch, capacity)


def test_loading_takes_little_more_memory_than_the_model(tmp_path: Path) -> None:
    sizes: dict[str, Any] = dict(vocab_size=4096, n_positions=64, n_embd=512, n_layer=12, n_head=8)
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path, max_shard_size="40MB")
    letters().save(str(tmp_path / "tokenizer.json"))
    size = 4 * model.num_parameters()
    code = f"""
import torch
from pathlib import Path
from sybil.models import building, folders, native

def resident(which):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(which))

def load(folder):
    return building.load(folders.read(Path(folder)), "float32", torch.float32, torch.device("cpu"))

load({str(embedded_folder("stdlib/draft"))!r})  # the code itself
folders.read(Path({str(tmp_path)!r}))
before = resident("VmRSS")
model = load({str(tmp_path)!r})
assert isinstance(model, native.NativeTransformer)
print(resident("VmHWM") - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what glibc keeps for later is no part of loading
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert size < int(out.stdout) < 1.2 * size


def test_a_float64_model_is_left_to_the_operators(tmp_path: Any) -> None:
    folder = save(gpt2(), tmp_path)
    assert isinstance(sybil.load(folder, dtype=torch.float64).target, Transformer)
    assert isinstance(sybil.load(folder, dtype=torch.float32).target, NativeTransformer)
