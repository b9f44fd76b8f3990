"""Folders whose files are not what they should be: one line that names the file, and exit 2."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import example, random_model
from safetensors.torch import load_file, save_file
from tiny import gpt2, save, sybil
from transformers import GPTNeoConfig, GPTNeoForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from sybil.errors import NotAModel, PackageMissing, SybilError, WeightsMismatch
from sybil.loading import load
from sybil.models import folders, pretrained
from sybil.models.checkpoints import files
from sybil.models.checkpoints.safetensors import INDEX

JSON = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder, in shards."""
    root = tmp_path_factory.mktemp("models") / "whole"
    save(gpt2(), root)
    (root / "model.safetensors").unlink()
    gpt2().save_pretrained(root, max_shard_size="20KB")
    return root


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "spoilt"))


def refused(folder: Path, kind: type[SybilError] = NotAModel) -> str:
    """The one line that loading gives."""
    with pytest.raises(kind) as raised:
        load(folder, device="cpu")
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < 700
    return line


def test_a_good_folder_and_one_of_links_as_in_the_hub_s_cache(whole: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    shutil.copytree(whole, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        file.rename(blobs / f"{abs(hash(file.name))}")
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / f"{abs(hash(file.name))}", snapshot))
    prompt = [torch.tensor([1, 2, 3])]
    one, other = (load(each, dtype="float64").generate(prompt).tokens[0].tolist() for each in (whole, snapshot))
    assert one == other


def no_object(path: Path) -> None:
    path.write_text("[1]")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_text("")


def latin(path: Path) -> None:
    path.write_bytes(b'{"a": "\xe9"}')


def marked(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def deep(path: Path) -> None:
    path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")


def long_number(path: Path) -> None:
    path.write_text('{"a": ' + "9" * 5000 + "}")


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a hole: it takes no room on the disk


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize(
    "spoil", [no_object, cut, empty, latin, marked, deep, long_number, huge, pipe, folder_instead, device, loop]
)
def test_json_files_that_are_none(spoil: Callable[[Path], None], name: str, folder: Path) -> None:
    spoil(folder / name)
    assert name in refused(folder)


@pytest.mark.parametrize("name", JSON)
def test_files_that_may_not_be_read(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def denied(path: Path, *arguments: Any, **keywords: Any) -> str:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "read_text", denied)
    line = refused(folder)
    assert name in line
    assert "Permission denied" in line


def test_links_that_point_to_nothing_are_no_files(folder: Path) -> None:
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "gone")
    folders.read(folder)
    for name, named in (("config.json", "no config.json"), ("tokenizer.json", "no tokenizer.json")):
        kept = (folder / name).rename(folder / "kept")
        (folder / name).symlink_to(folder / "gone")
        assert named in refused(folder)
        (folder / name).unlink()
        kept.rename(folder / name)


def test_the_largest_json_is_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    room = files.JSON_BYTES - len(json.dumps(config | {"note": ""}))
    (folder / "config.json").write_text(json.dumps(config | {"note": "x" * room}))
    folders.read(folder)
    (folder / "config.json").write_text(json.dumps(config | {"note": "x" * (room + 1)}))
    assert f"at most {files.JSON_BYTES}" in refused(folder)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("spoil", [cut, empty, pipe, folder_instead, device])
def test_weights_that_are_no_file(spoil: Callable[[Path], None], folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    spoil(shard)
    assert shard.name in refused(folder)


def changed(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """A JSON file of the folder with something else in it."""
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    "file",
    ["../whole/model.safetensors", "/etc/passwd", "/srv/model.safetensors", "a/../../b.safetensors", "..", "",
     "a\\b.safetensors", "config.json", "x" * 3000 + ".bin", "a\nb.txt"],
)  # fmt: skip
def test_an_index_that_leaves_the_folder(file: str, folder: Path) -> None:
    changed(folder, INDEX, lambda index: index | {"weight_map": index["weight_map"] | {"transformer.wte.weight": file}})
    line = refused(folder)
    assert "'transformer.wte.weight'" in line
    assert "allowed is a *.safetensors file of the folder" in line


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors", {"a": 1}, {"a": None}, {"a": ["b"]}])
def test_an_index_without_files(weight_map: Any, folder: Path) -> None:
    changed(folder, INDEX, lambda index: {"weight_map": weight_map})
    assert "weight_map" in refused(folder)


def test_an_index_that_names_a_file_which_lacks_the_tensor(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    name = "transformer.ln_f.weight"
    other = next(file for file in index.values() if file != index[name])
    changed(folder, INDEX, lambda content: {"weight_map": content["weight_map"] | {name: other}})
    assert f"lacks the weight {name}" in refused(folder, WeightsMismatch)


def test_a_tensor_in_two_files_is_the_index_s(folder: Path) -> None:
    index, name = json.loads((folder / INDEX).read_text())["weight_map"], "transformer.ln_f.weight"
    other = folder / next(file for file in index.values() if file != index[name])
    save_file(load_file(other) | {name: torch.zeros(32)}, other, {"format": "pt"})
    prompt = [torch.tensor([1, 2, 3])]
    load(folder, dtype="float64").generate(prompt)  # zeros would make all logits equal
    assert folders.read(folder).stored.files[name] == folder / index[name]  # type: ignore[union-attr]
    (folder / INDEX).unlink()
    assert "both hold 'transformer.ln_f.weight'" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "eos",
    [-1, [0, -1], True, [True], 0.5, 2.0, float("nan"), float("inf"), 2**31, 10**30, "2", [[0]], {"id": 2}, ["x"]],
    ids=str,
)
def test_end_tokens_that_are_none(eos: Any, name: str, folder: Path) -> None:
    changed(folder, name, lambda content: content | {"eos_token_id": eos})
    assert f"{name} has eos_token_id" in refused(folder)


def test_end_tokens(folder: Path) -> None:
    for eos, wanted in (
        (3, {3}),
        ([3, 5], {3, 5}),
        ([], set()),
        (50256, {50256}),
        (None, {7}),
    ):  # one beyond is never drawn
        changed(folder, "config.json", lambda content: content | {"eos_token_id": 7})
        changed(folder, "generation_config.json", lambda content, eos=eos: content | {"eos_token_id": eos})
        assert load(folder).eos_token_ids == wanted
    load(folder).generate([torch.tensor([1, 2])], eos_token_id=50256)


def neo(folder: Path, **changes: Any) -> Path:
    """A family that goes through transformers."""
    config = GPTNeoConfig(
        vocab_size=31, hidden_size=8, num_layers=2, num_heads=2, attention_types=[[["global"], 2]],
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    save(GPTNeoForCausalLM(config), folder)
    changed(folder, "config.json", lambda content: content | changes)
    return folder


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_layers": 10**9}, "num_layers 1000000000"),
        ({"num_layers": 10**30}, "num_layers 1000000000000000000000000000000"),
        ({"attention_types": [[["global"], 10**9]]}, "attention_types 1000000000"),
        ({"num_heads": 10**6}, "num_heads 1000000"),
        ({"vocab_size": 10**9}, "asks for 8000002224 parameters"),
        ({"hidden_size": 2**40}, "1099511627776"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"window_size": 2**70}, "window_size"),
        ({"text_config": {"n_layers": 10**7}}, "n_layers 10000000"),
        ({"activation_function": "no"}, "can't be loaded"),
        ({"activation_function": "x" * 5000 + "\n"}, "can't be loaded"),
        ({"num_heads": 3}, "can't be loaded"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}, "model_type": "made-up"}, "made-up"),
        ({"max_position_embeddings": "x"}, "max_position_embeddings"),
        ({"model_type": "mamba"}, "can't be loaded"),
    ],
    ids=str,
)
def test_configs_that_transformers_would_choke_on(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    line = refused(neo(tmp_path, **changes), SybilError)
    assert named.lower() in line.lower()


def test_a_model_that_loads_and_cannot_compute(tmp_path: Path) -> None:
    save(random_model(example("llama"), torch.float32), tmp_path)  # transformers' Llama rotates no part of a head
    rope = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 16, "partial_rotary_factor": 0.5}
    changed(tmp_path, "config.json", lambda content: content | {"rope_parameters": rope})
    assert "loads and can't compute" in refused(tmp_path)


@pytest.mark.timeout(60)
def test_pipes_that_transformers_would_wait_for(tmp_path: Path) -> None:
    neo(tmp_path)
    os.mkfifo(tmp_path / "chat_template.jinja")
    assert "chat_template.jinja is no regular file" in refused(tmp_path)


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize(
    ("method", "packages"),
    [
        ("gptq", "optimum gptqmodel"),
        ("awq", "gptqmodel"),
        ("bitsandbytes", "bitsandbytes"),
        ("compressed-tensors", "compressed-tensors"),
        ("torchao", "torchao"),
        ("hqq", "hqq"),
        ("quanto", "optimum-quanto"),
        ("fbgemm_fp8", "fbgemm-gpu"),
    ],
)
def test_a_quantised_folder_names_the_packages_that_it_needs(
    method: str, packages: str, accelerate: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, *pretrained.PACKAGES[method], *([] if accelerate else ["accelerate"]))
    changed(folder, "config.json", lambda content: content | {"quantization_config": {"quant_method": method}})
    line = refused(folder, PackageMissing)
    assert f"is quantised by '{method}', which needs " in line
    assert line.endswith(f"pip install {'' if accelerate else 'accelerate '}{packages}")


@pytest.mark.parametrize("method", ["fp8", "mxfp4", "bitnet"])
def test_a_method_of_transformers_own_needs_accelerate_alone(
    method: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "accelerate")
    changed(folder, "config.json", lambda content: content | {"quantization_config": {"quant_method": method}})
    assert refused(folder, PackageMissing).endswith("pip install accelerate")


def test_the_methods_are_transformers_own() -> None:
    assert {*pretrained.PACKAGES} <= {*AUTO_QUANTIZER_MAPPING, "bitsandbytes"}


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these weren't installed."""
    find = importlib.util.find_spec

    def spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in modules else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", spec)


@pytest.mark.parametrize(
    "config", [5, "gptq", [1], {"quant_method": 5}, {"quant_method": ["gptq"]}, {"quant_method": "x\n"}]
)
def test_a_quantisation_that_is_none(config: Any, folder: Path) -> None:
    changed(folder, "config.json", lambda content: content | {"quantization_config": config})
    assert "quant" in refused(folder, SybilError)


@pytest.mark.parametrize("name", ["x" * 300, "/" + "y" * 300, "a/" * 3000, "~nobody-of-that-name/model"])
def test_names_that_no_file_can_have(name: str) -> None:
    refused(Path(name))
    with pytest.raises(SybilError, match="give") as raised:
        load(name)
    assert len(str(raised.value)) < 500


def test_the_command_ends_with_2_and_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for spoil, name in (
        (deep, "config.json"),
        (pipe, "tokenizer_config.json"),
        (huge, INDEX),
        (latin, "tokenizer.json"),
    ):
        kept = (folder / name).read_bytes()
        spoil(folder / name)
        capsys.readouterr()
        assert sybil("generate", "abc", "--target", folder) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert name in captured.err
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
