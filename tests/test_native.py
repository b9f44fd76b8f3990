"""native.c computes what Transformer computes, and a token's logits have the same bits whatever is beside it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import gpt2, letters, save, save_tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import sybil
from sybil.errors import UnsupportedModel
from sybil.models import Model, native
from sybil.models.folders import embedded_folder
from sybil.models.native import NativeTransformer, library
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Rotary, Shape
from sybil.models.storage import Storage, quantise

pytestmark = pytest.mark.skipif(library.load() is None, reason="there is no C compiler here")

COMMON: dict[str, Any] = dict(vocab_size=37, context=48, layers=2, epsilon=1e-5)
ROTARY = Rotary(6, (1.0, 0.1, 0.01))
SHAPES = {
    "gpt2": Shape(**COMMON, heads=2, width=12, inner=21, activation="gelu_tanh", position_offset=0, tied_head=True),
    "opt-350m": Shape(
        **COMMON, heads=4, width=24, embedding_width=17, inner=50, activation="relu", post_norm=True, final_norm=False,
        position_offset=2, tied_head=True,
    ),
    "qwen3, windowed": Shape(
        **COMMON, heads=4, kv_heads=2, head_size=10, width=24, inner=21, activation="silu", gated=True, norm="rms",
        rotary=ROTARY, query_key_norm=True, window=5, tied_head=False,
    ),
    "neox": Shape(
        **COMMON, heads=4, width=32, inner=50, activation="gelu", parallel=True, rotary=ROTARY, tied_head=False
    ),
    "wide": Shape(**COMMON, heads=4, width=200, inner=777, activation="gelu", position_offset=0, tied_head=True),
}  # fmt: skip
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
storages = pytest.mark.parametrize("storage", native.STORAGES, ids=str)


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def norm(name: str, size: int, biased: bool = True) -> None:
        weights[f"{name}.weight"] = 1 + normal(size) / 10
        if biased and shape.norm == "layer":
            weights[f"{name}.bias"] = normal(size) / 10

    def product(name: str, inputs: int, outputs: int, biased: bool = True) -> None:
        weights[f"{name}.weight"] = normal(outputs, inputs) / inputs**0.5
        if biased:
            weights[f"{name}.bias"] = normal(outputs) / 10

    width, embedded = shape.width, shape.embedding_width
    weights["token_embedding"] = normal(shape.vocab_size, embedded)
    if shape.position_offset is not None:
        weights["position_embedding"] = normal(shape.context + shape.position_offset, width)
    if embedded != width:
        product("project_in", embedded, width, biased=False)
        product("project_out", width, embedded, biased=False)
    for layer in range(shape.layers):
        norm(f"{layer}.attention_norm", width)
        norm(f"{layer}.mlp_norm", width)
        if shape.query_key_norm:
            norm(f"{layer}.query_norm", shape.head_size, biased=False)
            norm(f"{layer}.key_norm", shape.head_size, biased=False)
        product(f"{layer}.query_key_value", width, (shape.heads + 2 * shape.kv_heads) * shape.head_size)
        product(f"{layer}.attention_out", shape.heads * shape.head_size, width)
        product(f"{layer}.mlp_in", width, (1 + shape.gated) * shape.inner)
        product(f"{layer}.mlp_out", shape.inner, width)
    if shape.final_norm:
        norm("final_norm", width)
    if not shape.tied_head:
        product("head", width, shape.vocab_size, biased=False)
    return weights


def rounded(weights: dict[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """The same weights in float64, the products' as the storage keeps them."""

    def kept(name: str, weight: Tensor) -> Tensor:
        if weight.ndim == 1 or name == "position_embedding" or storage == "float32":
            return weight.double()
        if storage == "bfloat16":
            return weight.bfloat16().double()
        scales, whole = quantise(weight)
        return scales.double()[:, None] * whole.double()

    return {name: kept(name, weight) for name, weight in weights.items()}


def logits_in_parts(model: Model, tokens: Tensor, parts: list[int], capacity: int = 0) -> Tensor:
    """(batch, n, vocab) of tokens (batch, n) that go in so many at a time."""
    cache = model.new_cache(len(tokens), capacity or tokens.shape[1])
    return torch.cat([model.forward(part, cache) for part in torch.split(tokens, parts, 1)], 1)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    """float32's rounding: 2e-6 of the largest logit."""
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


@st.composite
def partitions(draw: st.DrawFn, whole: int) -> list[int]:
    cuts = sorted(draw(st.sets(st.integers(1, whole - 1))))
    return [end - start for start, end in zip([0, *cuts], [*cuts, whole], strict=True)]


@shapes
@storages
def test_it_computes_what_the_operators_compute(shape: Shape, storage: Storage) -> None:
    weights = random_weights(shape)
    reference = Transformer(shape, rounded(weights, storage))
    tokens = torch.randint(shape.vocab_size, (3, 30), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([4, 19, 9])
    for threads in (1, 2):
        model = NativeTransformer(shape, weights, storage, threads)
        caches = reference.new_cache(3, 40), model.new_cache(3, 40)
        for each, cache in zip((reference, model), caches, strict=True):
            each.prefill(tokens[:, :20], cache)
            cache.lengths = lengths
        for part in torch.split(tokens[:, 20:], [1, 4, 5], 1):
            wanted, found = reference.forward(part, caches[0]), model.forward(part, caches[1])
            assert_near(found, wanted)
        assert caches[1].lengths.tolist() == (lengths + 10).tolist()


@shapes
@storages
@settings(max_examples=8)
@given(data=st.data())
def test_the_bits_depend_on_nothing_beside_a_token(shape: Shape, storage: Storage, data: st.DataObject) -> None:
    """Not on the tokens verified with it nor its place among them, not on rows of the batch, capacity or threads."""
    weights = random_weights(shape, data.draw(st.integers(0, 9)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    tokens = torch.randint(shape.vocab_size, (4, 24), generator=generator)
    model = NativeTransformer(shape, weights, storage, threads=1)
    alone = torch.cat([logits_in_parts(model, row[None], [1] * 24) for row in tokens])
    assert_same_bits(alone, logits_in_parts(model, tokens, data.draw(partitions(24)), data.draw(st.integers(24, 48))))
    model = NativeTransformer(shape, weights, storage, threads=2)
    assert_same_bits(alone, logits_in_parts(model, tokens, data.draw(partitions(24))))


def assert_same_bits(one: Tensor, other: Tensor) -> None:
    assert one.view(torch.int32).equal(other.view(torch.int32))


def test_the_check_of_bits_sees_sums_of_another_order() -> None:
    """torch's own products are such."""
    shape = SHAPES["wide"]
    model = Transformer(shape, random_weights(shape), "plain")
    tokens = torch.randint(shape.vocab_size, (1, 24), generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError):
        assert_same_bits(logits_in_parts(model, tokens, [1] * 24), logits_in_parts(model, tokens, [5, 5, 9, 5]))


def test_a_prompt_of_many_parts_has_the_same_bits() -> None:
    shape = replace(SHAPES["qwen3, windowed"], context=700)
    model = NativeTransformer(shape, random_weights(shape))
    tokens = torch.randint(shape.vocab_size, (2, 600), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(2, 640)
    model.prefill(tokens[:, :-1], cache)
    assert_same_bits(model.forward(tokens[:, -1:], cache), logits_in_parts(model, tokens, [600])[:, -1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_greedy_speculative_output_is_autoregressive_output_bit_for_bit(dtype: torch.dtype) -> None:
    decoder = sybil.load("stdlib", dtype=dtype)
    assert isinstance(decoder.target, NativeTransformer)
    texts = ["def read(path):\n", "import os\n", "The list of", "class Node:\n    def"]
    wanted = [decoder.without_draft().generate(text, max_new_tokens=60).tokens[0].tolist() for text in texts]
    for gamma in (1, 4, 8):
        found = decoder.generate(texts, max_new_tokens=60, gamma=gamma)
        assert [row.tolist() for row in found.tokens] == wanted
        assert 0 < found.stats.accepted < found.stats.proposed


@pytest.mark.parametrize("token", [-1, 37])
def test_what_does_not_fit_is_an_error_and_no_memory_of_others(token: int) -> None:
    model = NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]))
    cache = model.new_cache(1, 8)
    with pytest.raises(IndexError, match=str(token)):
        model.forward(torch.tensor([[1, token]]), cache)
    model.forward(torch.ones(1, 8, dtype=torch.int64), cache)
    with pytest.raises(IndexError, match="a cache of 8"):
        model.forward(torch.tensor([[1]]), cache)
    assert cache.lengths.tolist() == [8]
    with pytest.raises(IndexError, match="has 2 rows"):
        model.forward(torch.tensor([[1]]), model.new_cache(2, 8))
    model.prefill(torch.empty(1, 0, dtype=torch.int64), model.new_cache(1, 8))


def test_a_compiler_is_a_command_and_a_home_may_be_missing(rebuilt: pytest.MonkeyPatch) -> None:
    rebuilt.setenv("CC", "cc -pipe")
    rebuilt.delenv("XDG_CACHE_HOME")
    rebuilt.setattr(Path, "home", lambda: Path("/proc/nowhere"))
    assert library.load() is not None


def test_two_threads_of_a_program_may_use_one_model() -> None:
    shape = SHAPES["wide"]
    model = NativeTransformer(shape, random_weights(shape), threads=2)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(shape.vocab_size, (1, 40), generator=generator) for _ in range(6)]
    wanted = [logits_in_parts(model, row, [4] * 10) for row in rows]
    found: dict[int, list[Tensor]] = {}

    def work(index: int) -> None:
        found[index] = [logits_in_parts(model, rows[index], [4] * 10) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, row in enumerate(wanted):
        for again in found[index]:
            assert_same_bits(row, again)


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """library.load() as on another machine: what it has found and built is forgotten before and after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load.cache_clear()
    yield monkeypatch
    library.load.cache_clear()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_vectors_of_another_width_compute_the_same(rebuilt: pytest.MonkeyPatch) -> None:
    for shape in SHAPES.values():
        weights = random_weights(shape)
        tokens = torch.randint(shape.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
        reference = logits_in_parts(Transformer(shape, rounded(weights, "float32")), tokens, [4, 5])
        for lanes in (4, 16):
            rebuilt.setattr(library, "FLAGS", (*library.FLAGS, f"-DLANES={lanes}"))
            library.load.cache_clear()
            model = NativeTransformer(shape, weights)
            assert_near(logits_in_parts(model, tokens, [4, 5]), reference)


@pytest.mark.filterwarnings("ignore:.*C forward:RuntimeWarning")
@pytest.mark.parametrize(("variable", "value"), [("SYBIL_NATIVE", "0"), ("CC", "false"), ("CC", "no-such-compiler")])
def test_without_a_compiler_the_operators_decode(variable: str, value: str, rebuilt: pytest.MonkeyPatch) -> None:
    wanted = sybil.load("stdlib").generate("def main(", max_new_tokens=12).tokens[0]
    rebuilt.setenv(variable, value)
    library.load.cache_clear()
    decoder = sybil.load("stdlib")
    assert isinstance(decoder.target, Transformer)
    found = decoder.generate("def main(", max_new_tokens=12)
    assert found.tokens[0].equal(wanted)
    assert found.stats.accepted > 0  # by a draft in int8
    with pytest.raises(UnsupportedModel, match="compiler"):
        NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]))


def test_loading_takes_little_more_memory_than_the_model(tmp_path: Path) -> None:
    sizes: dict[str, Any] = dict(vocab_size=4096, n_positions=64, n_embd=512, n_layer=12, n_head=8)
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path, max_shard_size="40MB")
    save_tokenizer(letters(), tmp_path)
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
before = resident("VmRSS")
model = load({str(tmp_path)!r})
assert isinstance(model, native.NativeTransformer)
print(resident("VmHWM") - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert size < int(out.stdout) < 1.2 * size


def test_a_float64_model_is_left_to_the_operators(tmp_path: Path) -> None:
    folder = save(gpt2(), tmp_path)
    assert isinstance(sybil.load(folder, dtype=torch.float64).target, Transformer)
    assert isinstance(sybil.load(folder, dtype=torch.float32).target, NativeTransformer)
