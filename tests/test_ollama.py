"""Models of a local Ollama, found by their manifests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ggufs
import pytest
import torch
from configurations import example, random_model
from test_fuzz import check, refused
from test_gguf_files import outcome

import sybil
from sybil.errors import NotAModel
from sybil.models.checkpoints import ollama
from sybil.models.folders import locate

MODEL = "application/vnd.ollama.image.model"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ollama's folder, with one model under three names."""
    root = tmp_path / "models"
    (root / "blobs").mkdir(parents=True)
    file = ggufs.write(random_model(example("llama"), torch.float32), tmp_path / "a.gguf").read_bytes()
    digest = hashlib.sha256(file).hexdigest()
    (root / "blobs" / f"sha256-{digest}").write_bytes(file)
    for name in ("registry.example/library/tiny/135m", "hf.example/user/repo/Q4_K_M", "registry.example/me/own/latest"):
        add(root, name, [{"mediaType": "application/vnd.ollama.image.params", "digest": "sha256:" + "0" * 64},
                         {"mediaType": MODEL, "digest": f"sha256:{digest}"}])  # fmt: skip
    monkeypatch.setenv(ollama.MODELS, str(root))
    return root


def add(root: Path, name: str, layers: Any) -> None:
    path = root / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))


@pytest.mark.parametrize("name", ["tiny:135m", "hf.example/user/repo:Q4_K_M", "me/own", "me/own:latest"])
def test_models_are_found_by_their_names(name: str, models: Path) -> None:
    assert locate(f"ollama:{name}").parent == models / "blobs"
    out = sybil.load(f"ollama:{name}", device="cpu").generate([torch.tensor([1, 2])], max_new_tokens=3, eos_token_id=[])
    assert len(out.tokens[0]) == 3


def test_the_users_own_folder_is_where_they_lie(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = models.parent / "home"
    (home / ".ollama").mkdir(parents=True)
    models.rename(home / ".ollama" / "models")
    monkeypatch.delenv(ollama.MODELS)
    monkeypatch.setenv("HOME", str(home))
    assert outcome(locate("ollama:tiny:135m")) == ""


def test_a_name_that_isn_t_there_lists_what_is(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotAModel) as raised:
        locate("ollama:tiny")
    line = str(raised.value)
    check(line, "tiny:135m")
    for name in ("tiny:135m", "hf.example/user/repo:Q4_K_M", "registry.example/me/own:latest"):
        assert name in line
    refused(capsys, Path("ollama:tiny"))


@pytest.mark.parametrize(
    "name",
    ["", ":", "a/b/c/d:e", "../../x", "..:tag", "me/..", "tiny:../135m", "/etc", "a//b", "a b", "x" * 300, "a\nb"],
)
def test_names_that_are_none_stay_in_the_folder(name: str, models: Path) -> None:
    with pytest.raises(NotAModel) as raised:
        locate(f"ollama:{name}")
    check(str(raised.value), "ollama")


def test_no_ollama_at_all(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ollama.MODELS, str(models / "nowhere"))
    with pytest.raises(NotAModel, match="nothing lies in"):
        locate("ollama:tiny:135m")


def test_a_name_of_two_hosts_is_asked_about(models: Path) -> None:
    add(models, "other.example/library/tiny/135m", [])
    with pytest.raises(NotAModel, match=r"other\.example, registry\.example"):
        locate("ollama:tiny:135m")


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (None, "names no weights"),
        ([], "names no weights"),
        ([1], "names no weights"),
        ([{"mediaType": MODEL}], "names no weights"),
        ([{"mediaType": MODEL, "digest": "sha256:../../../x"}], "names no weights"),
        ([{"mediaType": MODEL, "digest": "sha256:" + "1" * 64}], "isn't there"),
        ([{"mediaType": "application/vnd.ollama.image.adapter", "digest": ""}], "adapter"),
    ],
)
def test_manifests_that_are_none(layers: Any, named: str, models: Path) -> None:
    add(models, "registry.example/library/odd/latest", layers)
    with pytest.raises(NotAModel) as raised:
        locate("ollama:odd")
    check(str(raised.value), named)


def test_a_manifest_that_is_no_json(models: Path) -> None:
    (models / "manifests/registry.example/library/tiny/135m").write_bytes(b"\x00")
    with pytest.raises(NotAModel, match="JSON"):
        locate("ollama:tiny:135m")
