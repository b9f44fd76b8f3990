"""Models of the hub: fetched by revision, found again without a network, gated, and each way to fail in one line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hubs import TOKEN, Hub, asking, offline, serving
from test_adapters import GPT2, adapter
from test_huggingface import gpt_neo
from tiny import gpt2, prompts, save, sybil
from transformers.utils import logging

from sybil import load, progress
from sybil.errors import GatedModel, HubUnreachable, InvalidSetting, NotAModel, SybilError
from sybil.models.checkpoints import hub as hubs
from sybil.models.checkpoints.weights import State, Watched


@pytest.fixture(autouse=True)
def _bars() -> None:
    """An earlier test's command may have turned off the bars of the whole process."""
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repositories")
    save(gpt2(), root / "new")
    save(gpt2(seed=7), root / "old")
    adapter(root / "adapter", GPT2)
    (root / "new" / "README.md").write_text("not wanted")
    return root


@pytest.fixture
def hub(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    new, old = folders / "new", folders / "old"
    repositories = {
        "me/model": {"main": new, "v1": old, "a/branch": old},
        "me/gated": {"main": new},
        "me/adapter": {"main": folders / "adapter"},
        "me/gated-adapter": {"main": folders / "adapter"},
    }
    with serving(Hub(repositories, ("me/gated", "me/gated-adapter"))) as served:
        asking(served, tmp_path / "cache", monkeypatch)
        yield served


def text(name: str | Path, **keywords: object) -> list[int]:
    decoder = load(name, dtype="float64", **keywords)  # type: ignore[arg-type]
    found: list[int] = decoder.generate(prompts([4]), max_new_tokens=12, eos_token_id=[]).tokens[0].tolist()
    return found


def refused(kind: type[SybilError], match: str, name: str, **keywords: object) -> None:
    with pytest.raises(kind, match=match) as raised:
        load(name, **keywords)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_model_is_fetched_once_and_of_the_revision_that_is_named(hub: Hub, folders: Path) -> None:
    new, old = text(folders / "new"), text(folders / "old")
    assert new != old
    assert text("me/model") == new
    assert text("me/model", revision="v1") == text("me/model", revision="a/branch") == old
    assert not [path for path in hub.asked if "README" in path]
    files = [path for path in hub.asked if "safetensors" in path]
    commit = next(path.split("/")[4] for path in files)
    assert text("me/model", revision=commit) in (new, old)
    assert [path for path in hub.asked if "safetensors" in path] == files


def test_what_is_in_the_cache_needs_no_network(
    hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    new = text("me/model")
    asked = len(hub.asked)
    offline(monkeypatch)
    assert text("me/model") == new
    line = r"^HF_HUB_OFFLINE is set and the hub's cache lacks 'me/other': unset it where there is a net"
    refused(HubUnreachable, line, "me/other")
    refused(HubUnreachable, r"cache lacks 'me/model' at revision 'v1': .* 'stdlib'$", "me/model", revision="v1")
    assert len(hub.asked) == asked
    offline(monkeypatch, False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    assert text("me/model") == new
    line = r"^the hub can't be reached and the hub's cache lacks 'me/other': check the network, give a folder"
    refused(HubUnreachable, line, "me/other")
    weights = next((tmp_path / "cache").rglob("model.safetensors"))
    weights.unlink()
    refused(HubUnreachable, r"cache has only a part of 'me/model': check the network", "me/model")


def test_a_gated_model_names_the_page_to_ask_at_and_opens_by_the_hubs_own_token(
    hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = rf"^the model 'me/gated' is gated: ask for access at {hub.url}/me/gated, then log in by `hf auth login`"
    refused(GatedModel, line, "me/gated")
    refused(
        GatedModel,
        r"^the adapter 'me/gated-adapter' is gated: ask for access at",
        "me/model",
        adapter="me/gated-adapter",
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert text("me/gated") == text(folders / "new")


def test_a_revision_that_is_not_there(hub: Hub, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        rf"^the model 'me/model' has no revision 'v2': give a branch, a tag or a commit of {hub.url}/me/model/commits$"
    )
    refused(NotAModel, line, "me/model", revision="v2")
    for command in ("generate", "chat", "compare", "verify", "profile"):
        words = ["abc"] if command == "generate" else []
        assert sybil(command, *words, "--target", "me/model", "--revision", "v2") == 2
        assert "the model 'me/model' has no revision 'v2'" in capsys.readouterr().err
    local = r"^revision is 'v1' and .* is no hub id: what lies on this machine has no revisions, leave revision out$"
    for name in (folders / "new", "stdlib"):
        refused(InvalidSetting, local, str(name), revision="v1")
    for odd in ("", " ", 3, ["v1"]):
        refused(InvalidSetting, "^revision is .*: give a branch, a tag or a commit", "me/model", revision=odd)
    with pytest.raises(InvalidSetting, match="the target is an object: leave revision out"):
        load(gpt2(), revision="v1")


@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have() -> None:
    line = (
        r"^the hub gives no model 'me/nothing' \(RepositoryNotFoundError: 401.*\): check the id; for a private one log"
    )
    refused(NotAModel, line, "me/nothing")
    refused(NotAModel, r"^the hub gives no model 'a--b' \(HFValidationError", "a--b")
    refused(NotAModel, r"^the hub gives no adapter 'me/nothing'", "me/model", adapter="me/nothing")


@pytest.mark.usefixtures("hub")
def test_whatever_else_goes_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    refused(
        HubUnreachable, r"^the model 'me/model' can't be fetched \(OSError: .*No space left on device\)", "me/model"
    )


@pytest.mark.usefixtures("hub")
def test_an_adapter_of_the_hub(folders: Path) -> None:
    assert text("me/model", adapter="me/adapter") == text(folders / "new", adapter=folders / "adapter")


@pytest.mark.usefixtures("hub")
def test_bars_are_for_terminals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text("me/model")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "WAIT", 0.0)
    text("me/model", revision="v1", progress=True)
    shown = capsys.readouterr().err
    assert "loading me/model" in shown
    assert "100%" in shown
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    assert progress.is_shown(None)
    assert not progress.is_shown(False)
    monkeypatch.setattr(sys, "stderr", None)
    assert not progress.is_shown(None)


def test_a_download_has_a_bar_where_one_is_asked_for(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hubs.fetch("me/model", hubs.MODEL_FILES, "v1", progress=False)
    assert capsys.readouterr().err == ""
    hubs.fetch("me/model", hubs.MODEL_FILES, None, progress=True)
    assert "100%" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "cache")


def test_transformers_bars_are_hidden_with_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(gpt_neo(), tmp_path / "foreign")
    capsys.readouterr()
    load(folder, device="cpu")
    assert capsys.readouterr().err == ""


def test_the_bar_of_weights_ends_at_their_bytes() -> None:
    stored = State({"a": torch.zeros(3, 5), "b": torch.zeros(7)})
    told: list[int] = []
    watched = Watched(stored, told.append)
    for name in ("a", "b", "a"):
        assert watched.read(name) is stored.read(name)
        assert watched.blocks(name) is None
    assert told == [60, 28]
    assert watched.nbytes == sum(told)
