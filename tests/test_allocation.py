"""Nothing is allocated beyond what a generation can use, and what can't be had is refused by its bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shapes import SHAPES, compiled, random_weights
from test_huggingface import gpt_neo
from tiny import fixed, foreign, gpt2, in_sybil, save

import sybil
from sybil import allocation
from sybil.allocation import as_out_of_memory, available, taking
from sybil.decoding import Decoder
from sybil.drafting import DraftModel
from sybil.errors import OutOfMemory
from sybil.measuring.contenders import TransformersContender
from sybil.models import Model
from sybil.models.native import NativeTransformer
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Rotary

CPU = torch.device("cpu")
PROMPT = [torch.tensor([1, 2, 3])]


def native() -> Model:
    return NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]))


def operators() -> Model:
    return Transformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]))


models = pytest.mark.parametrize("make", [pytest.param(native, marks=compiled), operators])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What caches are asked for: (batch, capacity)."""
    found: list[tuple[int, int]] = []
    for kind in (NativeTransformer, Transformer):
        original: Callable[..., Any] = kind.new_cache

        def new_cache(self: Any, batch: int, capacity: int, original: Callable[..., Any] = original) -> Any:
            found.append((batch, capacity))
            return original(self, batch, capacity)

        monkeypatch.setattr(kind, "new_cache", new_cache)
    return found


@models
@pytest.mark.parametrize("window", ["constant", "heuristic", "confident"])
@pytest.mark.parametrize("gamma", [1, 4, 200_000, 10**9])
def test_a_cache_is_no_longer_than_a_generation(make: Any, window: str, gamma: int, asked: list[Any]) -> None:
    """gamma 200,000 with four new tokens took 4 GB."""
    model = make()
    decoder, plain = Decoder(model, DraftModel(model)), Decoder(model).generate(PROMPT, max_new_tokens=4)
    asked.clear()
    out = decoder.generate(PROMPT, max_new_tokens=4, gamma=gamma, window=window)
    assert out.tokens[0].equal(plain.tokens[0])
    assert {batch for batch, _ in asked} == {1}
    assert max(capacity for _, capacity in asked) <= 3 + 4 + 4


@models
def test_a_cache_is_no_longer_than_the_context(make: Any, asked: list[Any]) -> None:
    model = make()
    decoder = Decoder(model, DraftModel(model))
    prompts = [torch.tensor([1, 2, 3]), torch.arange(1, 31)]
    out = decoder.generate(prompts, max_new_tokens=10**12, gamma=10**6)
    assert [len(row) for row in out.tokens] == [model.context - 3, model.context - 30]
    assert max(capacity for _, capacity in asked) <= 2 * model.context
    assert all(row.equal(alone) for row, alone in zip(out.tokens, rows_alone(model, prompts), strict=True))


def rows_alone(model: Model, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
    return [Decoder(model).generate([prompt], max_new_tokens=10**12).tokens[0] for prompt in prompts]


@pytest.mark.parametrize("wrap", [in_sybil, fixed, foreign])
@pytest.mark.parametrize("do_sample", [False, True])
def test_uneven_rows_have_room_to_their_end(wrap: Any, do_sample: bool) -> None:
    """A row that has ended is still computed beside another's proposal."""
    model, draft = wrap(gpt2()), in_sybil(gpt2(seed=3))
    prompts = [torch.arange(1, 30), torch.tensor([5])]
    decoder = Decoder(model, DraftModel(draft))
    out = decoder.generate(prompts, max_new_tokens=40, do_sample=do_sample, seed=0, gamma=100, rule="coupled")
    assert [len(row) for row in out.tokens] == [35, 40]


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 100 kB to spare, which looks at every byte."""
    monkeypatch.setattr(allocation, "available", lambda: 100_000)
    monkeypatch.setattr(allocation, "WORTH_ASKING", 0)


@pytest.mark.usefixtures("little")
@models
@pytest.mark.parametrize(
    "asked",
    [
        {"num_return_sequences": 10**6},
        {"num_return_sequences": 10**7},
        {"max_new_tokens": 40, "num_return_sequences": 90},
        {"max_new_tokens": 40, "gamma": 40, "num_return_sequences": 15, "do_sample": True},
    ],
)
def test_what_is_not_there_is_refused_by_its_bytes(make: Any, asked: dict[str, Any]) -> None:
    """Before anything is made: as many Python lists would be the end of the process already."""
    model = make()
    decoder = Decoder(model, DraftModel(model))
    with pytest.raises(OutOfMemory, match=r"would take [\d,]+ bytes, and 100,000 are free: lower max_new_tokens"):
        decoder.generate(PROMPT, **asked)


@pytest.mark.usefixtures("little")
@models
def test_a_cache_is_refused_by_its_bytes(make: Any) -> None:
    model = make()
    for batch, capacity in ((1, 10**6), (10**6, 8), (2**40, 2**40), (1, 2**70)):
        with pytest.raises(OutOfMemory, match=rf"a cache of {batch} rows of {capacity} tokens would take [\d,]+ bytes"):
            model.new_cache(batch, capacity)


@compiled
def test_working_memory_is_refused_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = native()
    cache = model.new_cache(4, 40)
    monkeypatch.setattr(allocation, "available", lambda: 10_000)
    monkeypatch.setattr(allocation, "WORTH_ASKING", 0)
    with pytest.raises(OutOfMemory, match="a forward of 160 tokens would take"):
        model.forward(torch.zeros(4, 40, dtype=torch.int64), cache)
    assert cache.lengths.tolist() == [0] * 4


@pytest.mark.usefixtures("little")
def test_rotations_are_refused_by_their_bytes() -> None:
    with pytest.raises(OutOfMemory, match="rotations of 1099511627776 positions"):
        Rotary(2, (1.0,)).tables(range(2**40))


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.zeros(10**14, dtype=torch.float32, device=CPU),
        lambda: torch.zeros(2**62, 4, dtype=torch.float32, device=CPU),
        lambda: np.zeros(10**16),
        lambda: bytearray(10**17),
        lambda: [None] * 10**17,
    ],
)
def test_what_the_system_refuses_is_one_line(allocate: Callable[[], object]) -> None:
    for around in (taking(7, "the thing", CPU), as_out_of_memory("the thing")):
        with pytest.raises(OutOfMemory, match=r"^the thing ") as caught, around:
            allocate()
        assert "\n" not in str(caught.value)


def test_what_is_no_lack_of_memory_is_left_alone() -> None:
    for around in (taking(7, "the thing", CPU), as_out_of_memory("the thing")):
        with pytest.raises(RuntimeError, match=r"^shapes don't fit$"), around:
            raise RuntimeError("shapes don't fit")
    for around in (taking(7, "the thing", CPU), as_out_of_memory("the thing")):
        with pytest.raises(OutOfMemory, match=r"^mine$"), around:
            raise OutOfMemory("mine")


def test_a_generation_that_runs_out_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(in_sybil(gpt2()))

    def verify(self: Any, tokens: Any) -> Any:
        return torch.zeros(10**14, dtype=torch.float32, device=CPU)

    monkeypatch.setattr("sybil.decoding._BatchRun._verify", verify)
    with pytest.raises(OutOfMemory, match="tried to allocate 400000000000000 bytes"):
        decoder.generate(PROMPT)


CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 3.63 GiB\nof which little is free"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.cuda.OutOfMemoryError(CUDA), "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "ALLOC_FAILED"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), "CUDA error: out of memory"),
        (MemoryError(), "there is no memory left"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its weights are read, by either forward, and while a draft is made of it."""

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    folder, foreign_folder = save(gpt2(), tmp_path / "ours"), save(gpt_neo(), tmp_path / "theirs")
    cases = (
        ("sybil.models.building.arrange", lambda: sybil.load(folder), r"ours takes more memory than is free on cpu \("),
        (
            "sybil.models.pretrained.AutoModelForCausalLM.from_pretrained",
            lambda: sybil.load(foreign_folder),
            r"theirs ",
        ),
        ("sybil.models.pretrained._check_size", lambda: sybil.load(foreign_folder), r"theirs takes more memory than "),
        ("sybil.models.copies.arrange", lambda: sybil.load(folder, draft="self:8"), "the draft takes more memory"),
    )
    for where, load, match in cases:
        with monkeypatch.context() as patch:
            patch.setattr(where, fails)
            with pytest.raises(OutOfMemory, match=match) as caught:
                load()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "max_new_tokens" not in str(caught.value)  # no remedy here


def test_transformers_generate_that_runs_out_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError(CUDA)

    contender = TransformersContender(copy.deepcopy(gpt2()), frozenset())
    monkeypatch.setattr(type(contender.model), "generate", fails)
    with pytest.raises(OutOfMemory, match=r"^transformers' generate takes more memory .* lower max_new_tokens$"):
        contender.run(PROMPT[0], 3)


def test_what_is_free_is_what_the_system_and_the_groups_allow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def read(self: Path, *arguments: Any) -> str:
        return real(tmp_path / self.relative_to("/"), *arguments)

    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", read)
    assert available() is None
    write("proc/meminfo", "MemTotal:  99 kB\nMemAvailable:   50 kB\n")
    assert available() == 50 * 1024
    write("proc/self/cgroup", "4:memory:/old\n0::/outer/inner\n")
    write("sys/fs/cgroup/outer/inner/memory.max", "max\n")
    write("sys/fs/cgroup/outer/inner/memory.current", "5000\n")
    assert available() == 50 * 1024
    write("sys/fs/cgroup/outer/memory.max", "40000\n")
    write("sys/fs/cgroup/outer/memory.current", "10000\n")
    assert available() == 30000
    write("sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 700\nactive_file 1\n")
    assert available() == 30700
    write("sys/fs/cgroup/memory/old/memory.limit_in_bytes", "20000\n")
    write("sys/fs/cgroup/memory/old/memory.usage_in_bytes", "15000\n")
    assert available() == 5000
    write("sys/fs/cgroup/memory/old/memory.usage_in_bytes", "25000\n")
    assert available() == 0


def test_it_is_known_here() -> None:
    free = available()
    assert free is None or 1 << 20 < free < 1 << 50


def test_huge_numbers_take_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded pair, as a caller who wants everything until the end asks for it."""
    decoder = sybil.load("stdlib")
    out = decoder.generate("import os\n", max_new_tokens=10**9, gamma=10**9, stop_strings=["\n"])
    assert out.finish_reasons == ("stop_string",)
