"""dtype and draft_dtype: what transformers takes, short names too, and one line for anything else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_huggingface import gpt_neo
from tiny import gpt2, in_sybil, letters, llama, prompts, save, save_tokenizer, sybil
from transformers import AutoModelForCausalLM

from sybil import Decoder, load, loading
from sybil.arguments import described
from sybil.devices import DTYPES, FEW, dtype_named, fitting
from sybil.errors import InvalidSetting
from sybil.measuring.profile import precision


def dtypes(decoder: Decoder) -> tuple[torch.dtype, ...]:
    """What the target's and the draft's weights are kept in."""
    return tuple(getattr(torch, str(precision(model))) for model in decoder.models)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(gpt2(), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a family without a forward of ours."""
    return save(gpt_neo(), tmp_path_factory.mktemp("gpt_neo"))


@pytest.mark.parametrize("name", [name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)])
def test_a_name_of_torch_s_means_what_transformers_takes_it_for(name: str) -> None:
    """Those that a model can be kept in; the others are one line."""
    dtype = getattr(torch, name)
    for draft in (False, True):
        if dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8):
            assert dtype_named(name, draft=draft) == dtype_named(f"torch.{name}", draft=draft) == dtype
            assert dtype_named(dtype, draft=draft) == dtype
        elif name == "int4":  # torch's has no numbers; ours is a word
            assert dtype_named(dtype, draft=draft) == dtype_named(name, draft=draft) == "int4"
        else:
            for given in (name, dtype):
                with pytest.raises(InvalidSetting, match=r"dtype is .*: use float32, float16, bfloat16, float64"):
                    dtype_named(given, draft=draft)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32), ("fp64", torch.float64)],
)
def test_short_names(name: str, dtype: torch.dtype) -> None:
    assert dtype_named(name) == dtype_named(name.upper()) == dtype
    assert dtype_named(None) is None
    assert dtype_named("auto") == "auto"


@given(
    st.one_of(
        st.text(), st.integers(), st.floats(), st.binary(), st.lists(st.text()), st.dictionaries(st.text(), st.text())
    ),
    st.booleans(),
)
def test_anything_else_is_one_line(value: object, draft: bool) -> None:
    if isinstance(value, str) and value.removeprefix("torch.") in {*DTYPES, *FEW, "auto"}:
        return
    with pytest.raises(InvalidSetting, match="dtype is ") as raised:
        dtype_named(value, draft=draft)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "value", [np.float16, np.dtype("float32"), np.zeros(3), torch.zeros(2), float, {"": "float16"}, object()]
)
def test_dtypes_of_others_are_one_line(value: object, folder: Path) -> None:
    for name in ("dtype", "draft_dtype"):
        with pytest.raises(InvalidSetting, match=f"{name} is {re.escape(described(value))}: use float32"):
            load(folder, folder, **{name: value})  # type: ignore[arg-type]


def test_names_reach_the_models(folder: Path, foreign_folder: Path) -> None:
    for place in (folder, foreign_folder):
        for dtype, draft_dtype in (("float64", "fp32"), ("double", "float64"), ("bf16", "half")):
            found = dtypes(load(place, place, dtype=dtype, draft_dtype=draft_dtype, device="cpu"))
            assert found == (dtype_named(dtype), dtype_named(draft_dtype))
    assert dtypes(load(folder, folder, dtype="float32", draft_dtype="int8")) == (torch.float32, torch.int8)
    for draft in ("self", "skip:1", "lookup", "hybrid:lookup,self:8", "cascade:lookup,self"):
        with pytest.raises(InvalidSetting, match=r"^draft_dtype is int8 and draft is .* no second model: .*self:8"):
            load(folder, draft, draft_dtype="int8")
    with pytest.raises(InvalidSetting, match=r"draft_dtype is int8 and .* runs by transformers' forward"):
        load(folder, foreign_folder, draft_dtype="int8", device="cpu")
    assert dtypes(load(foreign_folder, foreign_folder, dtype="bf16")) == (torch.bfloat16, torch.bfloat16)


def rewritten(folder: Path, to: Path, stored: torch.dtype, **config: Any) -> Path:
    """The folder with its weights in another dtype, and fields of its config replaced or, by None, left out."""
    state = {name: tensor.to(stored) for name, tensor in load_file(folder / "model.safetensors").items()}
    to.mkdir()
    save_file(state, to / "model.safetensors", {"format": "pt"})
    fields = json.loads((folder / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))
    save_tokenizer(letters(), to)
    return to


def test_auto_is_the_checkpoint_s_own(folder: Path, foreign_folder: Path, tmp_path: Path) -> None:
    """As transformers has it: the config's, or else the weights'."""
    cases = [
        (dict(dtype="bfloat16"), torch.float32),
        (dict(dtype=None, torch_dtype="float32"), torch.float64),
        (dict(dtype=None), torch.bfloat16),
        (dict(dtype=None), torch.float64),
    ]
    for number, (config, stored) in enumerate(cases):
        for place in (folder, foreign_folder):
            made = rewritten(place, tmp_path / f"{place.name} {number}", stored, **config)
            wanted = AutoModelForCausalLM.from_pretrained(made, dtype="auto").dtype
            assert wanted == dtype_named(str(config.get("dtype") or config.get("torch_dtype") or stored))
            assert dtypes(load(made, made, dtype="auto", draft_dtype="auto", device="cpu")) == (wanted, wanted)
            assert dtypes(load(folder, made, dtype="fp64", draft_dtype="auto", device="cpu")) == (torch.float64, wanted)


@pytest.mark.parametrize("named", ["float8_e4m3fn", "int4", 5, ["float16"], {"a": 1}, "auto", True])
def test_auto_of_a_config_that_names_none_is_one_line(named: Any, folder: Path, tmp_path: Path) -> None:
    made = rewritten(folder, tmp_path / "made", torch.float32, dtype=named)
    with pytest.raises(InvalidSetting, match=r"dtype is auto and .* is in .*: name one of float32") as raised:
        load(made, dtype="auto")
    assert "\n" not in str(raised.value)
    assert precision(load(made, dtype="float32").target) == "float32"


def test_objects_keep_their_own() -> None:
    """What Sybil's own forward computes may be had otherwise; what the object's own computes may not, and is said."""
    known, foreign = llama(), gpt_neo()
    assert dtypes(load(known, known, draft_dtype="auto")) == (torch.float64, torch.float64)
    assert dtypes(load(known, known, dtype="float32", draft_dtype="bf16")) == (torch.float32, torch.bfloat16)
    assert dtypes(load(foreign, foreign, dtype="auto", draft_dtype="auto")) == (torch.float64, torch.float64)
    assert dtypes(load(foreign, foreign, dtype="fp64", draft_dtype="double")) == (torch.float64, torch.float64)
    with pytest.raises(InvalidSetting, match=r"^dtype is torch.float32 and the GPTNeoForCausalLM runs by its own"):
        load(foreign, dtype="float32")
    with pytest.raises(InvalidSetting, match=r"^draft_dtype is torch.bfloat16 and the GPTNeoForCausalLM runs"):
        load(foreign, foreign, draft_dtype="bf16")
    with pytest.raises(InvalidSetting, match=r"^draft_dtype is int8 and GPTNeoForCausalLM runs"):
        load(known, foreign, draft_dtype="int8")
    decoder = load(known, known, dtype="float32", draft_dtype="int8")
    out = decoder.generate(prompts([3]), max_new_tokens=3, eos_token_id=[])
    assert len(out.tokens[0]) == 3


def test_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = rewritten(folder, tmp_path / "made", torch.float32, dtype="bfloat16")
    for name in ("auto", "half", "fp64"):
        arguments = ("--target", made, "--draft", made, "--dtype", name, "--draft-dtype", name, "--max-new-tokens", 3)
        assert sybil("generate", "abc", "--json", *arguments) == 0
    capsys.readouterr()
    for command in ("generate", "profile", "compare", "verify"):
        words = ["abc"] if command == "generate" else []
        assert sybil(command, *words, "--target", made, "--draft", made, "--dtype", "float8") == 2
        assert capsys.readouterr().err.strip().endswith("q4_k, q4_1, q4_0 or auto")
    for command in ("generate", "profile"):
        words = ["abc"] if command == "generate" else []
        assert sybil(command, *words, "--target", made, "--draft", made, "--draft-dtype", "float8") == 2
        assert "draft_dtype is 'float8': use float32, float16, bfloat16, float64, int8" in capsys.readouterr().err
    assert sybil("profile", "--workload", "gpt2:medium", "--dtype", "auto") == 2
    assert "dtype is auto, and gpt2:medium's weights are stored nowhere" in capsys.readouterr().err


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("dtype", "device", "stored", "family", "newer", "older"),
    [
        (FP16, "cuda", FP16, "qwen2", FP16, FP16),  # its own
        (FP16, "cuda", BF16, "gpt2", BF16, FP32),
        (FP16, "cuda", FP32, "gpt2", FP16, FP16),
        (FP16, "cuda", FP32, "qwen2", BF16, FP32),
        (FP16, "cuda", None, "llama", FP16, FP16),  # a GGUF file's blocks say nothing
        (FP16, "cuda", None, "gemma3_text", BF16, FP32),
        (FP16, "cuda", None, None, BF16, FP32),
        (FP32, "cuda", BF16, "qwen2", FP32, FP32),
        (FP32, "cpu", BF16, "qwen2", FP32, FP32),
        (FP16, "cpu", BF16, "qwen2", FP16, FP16),
    ],
)
def test_what_needs_more_than_float16_s_range_gets_it(
    dtype: torch.dtype, device: str, stored: torch.dtype | None, family: str | None, newer: torch.dtype,
    older: torch.dtype, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """newer, older: GPUs with bfloat16 and without."""
    for capability, wanted in (((8, 6), newer), ((7, 5), older)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert fitting(dtype, torch.device(device), stored, family) == wanted


def test_a_model_on_a_gpu_is_loaded_in_what_fits_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Target and draft, as load() asks for them; a GPU without bfloat16 is warned of. No GPU is asked here."""
    asked: list[tuple[str, torch.dtype]] = []
    made = in_sybil(gpt2())
    made.device = torch.device("cuda")

    def build(checkpoint: Any, storage: Any, foreign: torch.dtype, device: torch.device) -> Any:
        asked.append((storage, foreign))
        assert device.type == "cuda"
        return made

    monkeypatch.setattr(loading.building, "load", build)
    monkeypatch.setattr(loading, "choose_device", lambda device: torch.device("cuda"))
    wide = rewritten(folder, tmp_path / "wide", BF16, dtype="bfloat16")
    narrow = rewritten(folder, tmp_path / "narrow", FP32, dtype="float32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    pairs = ((wide, narrow, (BF16, BF16)), (narrow, wide, (FP16, BF16)), (narrow, narrow, (FP16, FP16)))
    for target, draft, wanted in pairs:
        asked.clear()
        load(target, draft)
        assert [dtype for _, dtype in asked] == [*wanted]
        assert [storage for storage, _ in asked] == [str(dtype).removeprefix("torch.") for dtype in wanted]
        assert loading.dtype_chosen(target, None, torch.device("cuda")) == wanted[0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    asked.clear()
    with pytest.warns(UserWarning, match=r"wide may need more than float16's range, and cuda has no bfloat16") as told:
        load(wide)
    assert asked == [("float32", FP32)]
    assert "\n" not in str(told[0].message)
    asked.clear()
    load(wide, dtype="float16")  # as asked, without a word
    load(narrow)
    assert [dtype for _, dtype in asked] == [FP16, FP16]
