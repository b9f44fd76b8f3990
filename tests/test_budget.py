"""What a model takes in memory is reckoned before it is loaded, weights to the byte; what can't fit is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ggufs
import pytest
import torch
from configurations import example, random_model
from shapes import compiled
from tiny import gpt2, letters, save

import sybil
from sybil import allocation, budget
from sybil.errors import OutOfMemory
from sybil.models import building, copies, folders, native, planning
from sybil.models.checkpoints.families import FAMILIES, understand
from sybil.models.checkpoints.weights import State
from sybil.models.folders import Checkpoint
from sybil.models.storage import Kept, Rounding, Storage

CPU = torch.device("cpu")
NAMES = sorted(FAMILIES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A folder of every family."""
    root = tmp_path_factory.mktemp("families")
    return {name: save(random_model(example(name), torch.float32), root / name) for name in NAMES}


def loaded(checkpoint: Checkpoint, kept: Kept) -> Any:
    return building.load(checkpoint, kept, torch.float32, CPU)


@compiled
@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("kept", [*native.STORAGES, "int8", "q8_0", Rounding(5)], ids=str)
def test_weights_are_reckoned_to_the_byte(family: str, kept: Kept, saved: Mapping[str, Path]) -> None:
    checkpoint = folders.read(saved[family])
    expected = planning.weights(checkpoint, kept, torch.float32, CPU)
    model = loaded(checkpoint, kept)
    assert expected.total == model.weight_bytes
    assert expected.needed <= expected.loading
    assert expected.total <= expected.needed
    assert expected.step <= expected.total


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "gemma3_text"])
@pytest.mark.parametrize("kept", ["float64", "float32", "float16", "int8"])
def test_the_operators_weights_too(
    family: str, kept: Storage, saved: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "has_native", lambda device: False)
    checkpoint = folders.read(saved[family])
    expected = planning.weights(checkpoint, kept, torch.float32, CPU)
    assert expected.total == loaded(checkpoint, kept).weight_bytes


SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 64},
    "gpt_neox": {"rotary_pct": 0.5, "intermediate_size": 64},
    "gemma3_text": {"query_pre_attn_scalar": 8, "intermediate_size": 64},
}


@compiled
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen2", "phi3", "gemma3_text"])
def test_files_in_blocks_too(family: str, tmp_path: Path) -> None:
    sizes = SIZES.get(family, {"intermediate_size": 64})
    model = random_model(example(family, hidden_size=64, **sizes), torch.float32)
    kinds: tuple[Kept, ...] = ("stored", "float32", "bfloat16", "q8_0", "q4_k", Rounding(8))
    for storage in ("f32", "f16", "q8_0", "q4_1"):
        checkpoint = folders.read(ggufs.write(model, tmp_path / f"{storage}.gguf", storage=storage))
        for kept in kinds:
            expected = planning.weights(checkpoint, kept, torch.float32, CPU)
            assert expected.total == loaded(checkpoint, kept).weight_bytes, (storage, kept)


@compiled
def test_a_copys_head_has_bits_of_its_own(saved: Mapping[str, Path]) -> None:
    checkpoint = folders.read(saved["llama"])
    model = loaded(checkpoint, "float32")
    copy = copies.rounded(checkpoint, model, 4, lambda: torch.tensor([[1, 2, 3]]))
    kept = copies.rounding(model.shape, 4, {})
    assert planning.weights(checkpoint, kept, torch.float32, CPU).total == copy.weight_bytes


def test_no_tensor_is_read(saved: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = folders.read(saved["llama"])

    def read(*_: object) -> None:
        raise AssertionError("a tensor was read")

    assert checkpoint.stored is not None
    monkeypatch.setattr(type(checkpoint.stored), "read", read)
    monkeypatch.setattr(type(checkpoint.stored), "blocks", read)
    for kept in (*native.STORAGES, "stored", Rounding(6)):
        planning.weights(checkpoint, kept, torch.float32, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("lanes", [0, 4, 8, 16])
@pytest.mark.parametrize("batch", [1, 3])
def test_caches_are_reckoned_to_the_byte(
    lanes: int, batch: int, saved: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = folders.read(saved["llama"])
    _, shape = understand(checkpoint.config)
    if lanes:
        cache: Any = native.cache.NativeCache(shape, batch, 21, lanes)
    else:
        monkeypatch.setattr(planning, "has_native", lambda device: False)
        cache = loaded(checkpoint, "float32").new_cache(batch, 21)
    assert budget.cache(shape, batch, 21, budget.Engine(lanes)) == cache.nbytes


@compiled
def test_working_memory_is_the_c_forwards(saved: Mapping[str, Path]) -> None:
    checkpoint = folders.read(saved["llama"])
    model = loaded(checkpoint, "float32")
    cache = model.new_cache(1, 20)
    model.forward(torch.zeros(1, 16, dtype=torch.int64), cache)
    logits = 4 * 16 * model.vocab_size
    ours = budget.activations(model.shape, 1, 20, 16, 1, planning.engine("float32", CPU)) - logits
    assert 4 * cache.floats <= ours <= 2 * 4 * cache.floats + 4096


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine that says that so many bytes are free, and looks at every byte."""

    def planted(free: int | None) -> None:
        monkeypatch.setattr(allocation, "available", lambda: free)
        monkeypatch.setattr(allocation, "spare", lambda: 0)

    monkeypatch.setattr(budget, "WORTH_ASKING", 0)
    return planted


def folder_of(tmp_path: Path) -> Path:
    return save(gpt2(width=64, layers=4), tmp_path / "model")


@compiled
def test_what_cannot_fit_is_refused_with_what_would(tmp_path: Path, little: Any) -> None:
    folder = folder_of(tmp_path)
    checkpoint = folders.read(folder)
    wide, narrow = (planning.weights(checkpoint, kept, torch.float32, CPU).needed for kept in native.STORAGES)
    little(narrow)
    with pytest.raises(OutOfMemory) as raised:
        sybil.load(folder, device="cpu")
    line = str(raised.value)
    assert line == (
        f"loading {folder} in float32 needs {wide:,} bytes, and {narrow:,} are free: bfloat16 needs {narrow:,}, "
        "`sybil check` shows what fits, or use a smaller model"
    )
    assert sybil.load(folder, dtype="bfloat16", device="cpu")
    little(100)
    with pytest.raises(OutOfMemory, match=r"are free: `sybil check` shows what fits"):
        sybil.load(folder, device="cpu")


@compiled
def test_a_model_that_would_fit_is_never_refused(tmp_path: Path, little: Any) -> None:
    """By a tenth: neither the reckoning nor what the system says is free is exact. The planted reading is that."""
    folder = folder_of(tmp_path)
    needed = planning.weights(folders.read(folder), "float32", torch.float32, CPU).needed
    for free in (needed, int(needed / 1.09), 10**15, None):
        little(free)
        assert sybil.load(folder, device="cpu")
    little(int(needed / 1.11))
    with pytest.raises(OutOfMemory):
        sybil.load(folder, device="cpu")


@compiled
def test_swap_counts_as_room(tmp_path: Path, little: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path)
    little(0)
    monkeypatch.setattr(allocation, "spare", lambda: 10**9)
    assert sybil.load(folder, device="cpu")


def test_what_can_be_made_room_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Swap, and ZFS's cache of files, which MemAvailable leaves out."""

    def read(self: Path, *arguments: Any) -> str:
        return real(tmp_path / self.relative_to("/"), *arguments)

    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", read)
    assert allocation.spare() == 0
    for name, text in {
        "proc/meminfo": "MemTotal: 9 kB\nSwapFree:   5 kB\n",
        "proc/spl/kstat/zfs/arcstats": "name type data\nc_min    4    1000\nsize     4    7000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert allocation.spare() == 5 * 1024 + 6000


def test_a_gpus_memory_is_not_what_files_are_read_into(saved: Mapping[str, Path], tmp_path: Path) -> None:
    model = random_model(example("llama", hidden_size=64, intermediate_size=64), torch.float32)
    checkpoint = folders.read(ggufs.write(model, tmp_path / "a.gguf", storage="q8_0"))
    found = planning.weights(checkpoint, "float16", torch.float16, torch.device("cuda"))
    largest = 2 * 64 * 64 * 3
    assert found.total == 2 * found.parameters
    assert found.total <= found.needed <= found.total + largest


@compiled
def test_a_draft_and_a_copy_are_refused_too(tmp_path: Path, little: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path)
    needed = planning.weights(folders.read(folder), "float32", torch.float32, CPU).needed
    free = iter([needed])
    monkeypatch.setattr(allocation, "available", lambda: next(free, 10))
    for draft in (str(folder), "self:8"):
        free = iter([needed])
        with pytest.raises(OutOfMemory, match=r"in (int8|8 bits) needs"):
            sybil.load(folder, draft=draft, device="cpu")


def test_an_objects_weights_are_there_already(little: Any) -> None:
    little(0)
    assert sybil.load(gpt2(), tokenizer=letters(), device="cpu")


def test_small_models_are_not_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "available", lambda: 0)
    monkeypatch.setattr(allocation, "spare", lambda: 0)
    assert sybil.load(folder_of(tmp_path), device="cpu")


def test_a_head_stored_beside_its_embedding_is_taken_for_the_same() -> None:
    model = gpt2()
    state = model.state_dict()
    checkpoint = Checkpoint(
        "tiny", model.config.to_dict(), None, letters(), understand(model.config.to_dict()), State(state)
    )
    assert "lm_head.weight" in state
    whole = planning.weights(checkpoint, "float32", torch.float32, CPU)
    assert whole.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_models_of_transformers_own_forward_are_reckoned_by_their_tensors() -> None:
    stored = State({"a": torch.zeros(3, 5), "b": torch.zeros(7)})
    assert budget.foreign(stored, torch.float16, quantised=False).total == 2 * 22
    assert budget.foreign(stored, torch.float16, quantised=True).total == stored.nbytes
    config = {"model_type": "nothing", "vocab_size": 31}
    checkpoint = Checkpoint("tiny", config, None, None, None, stored)
    assert planning.weights(checkpoint, "float32", torch.bfloat16, CPU).kept == {"bfloat16": 44}
    quantised = replace(checkpoint, config={"quantization_config": {"quant_method": "awq"}})
    assert planning.weights(quantised, "float32", torch.float32, CPU).kept == {"quantised": 88}
