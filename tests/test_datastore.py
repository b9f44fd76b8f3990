"""A datastore by its files: what is read, what is refused, and that it changes how fast a text comes, not the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import gpt2, letters, save
from tiny import sybil as run

import sybil
from sybil import texts
from sybil.errors import InvalidSetting

ASKED: dict[str, Any] = dict(max_new_tokens=30, eos_token_id=[], gamma=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(gpt2(), tmp_path_factory.mktemp("model"), letters())


def loaded(folder: Path, **chosen: Any) -> sybil.Decoder:
    return sybil.load(folder, dtype=torch.float64, device="cpu", **chosen)


def test_a_text_that_was_said_before_is_proposed_and_stays_the_same(folder: Path, tmp_path: Path) -> None:
    plain = loaded(folder).generate("abcd", **ASKED)
    file = tmp_path / "said.txt"
    file.write_text(f"zz zz abcd{plain.text[0]}")
    alone = loaded(folder, draft="lookup").generate("abcd", **ASKED)
    for datastore in ([file], ["no such thing", f"abcd{plain.text[0]}"]):
        for draft in ("lookup", "hybrid:lookup,self"):
            found = loaded(folder, draft=draft, datastore=datastore).generate("abcd", **ASKED)
            assert found.tokens[0].tolist() == plain.tokens[0].tolist()
            assert found.stats.rounds < alone.stats.rounds
    keeping = loaded(folder, draft="lookup", keep_answers=True)
    first, again = (keeping.generate("abcd", **ASKED) for _ in range(2))
    assert again.tokens[0].tolist() == plain.tokens[0].tolist()
    assert again.stats.rounds < first.stats.rounds


def test_texts_that_no_file_could_be_named_by(folder: Path) -> None:
    for text in ("\u4e16" * 200, "\0abc", "a\ud800b", "a/" * 5000):
        loaded(folder, draft="lookup", datastore=[text])


def test_what_can_t_be_a_datastore_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, empty = (tmp_path / name for name in ("good.txt", "bad.txt", "empty.txt"))
    good.write_text("abc abc")
    bad.write_bytes(b"abc\xff")
    empty.write_text(" \n")
    for datastore, named in (
        ([tmp_path / "none.txt"], r"none\.txt'?, which can't be read"),
        ([tmp_path], "no file"),
        ([bad], "no UTF-8 at byte 3"),
        ([good, empty], r"empty\.txt'?, which is empty"),
        ([""], "empty"),
        ([str(good)], "pathlib.Path"),
        ("abc", "a list"),
        ([3], "datastore has 3"),
    ):
        with pytest.raises(InvalidSetting, match=named) as raised:
            loaded(folder, draft="lookup", datastore=datastore)
        assert "\n" not in str(raised.value)
    for draft in (None, "self", "cascade:self:4,self:8"):
        for chosen in ({"datastore": [good]}, {"keep_answers": True}):
            with pytest.raises(InvalidSetting, match="looks nothing up"):
                loaded(folder, draft=draft, **chosen)
    monkeypatch.setattr(texts, "MOST", 10)
    with pytest.raises(InvalidSetting, match="more than 0 MiB"):
        loaded(folder, draft="lookup", datastore=[good, good])
    with pytest.raises(InvalidSetting, match="no tokenizer"):
        sybil.load(gpt2(), "lookup", datastore=["abc"])


def test_the_command_takes_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.txt"
    file.write_text("abcdefgh" * 4)
    arguments = ["generate", "abc", "--target", folder, "--max-new-tokens", 4, "--device", "cpu"]
    assert run(*arguments, "--draft", "lookup", "--datastore", file, "--datastore", file) == 0
    capsys.readouterr()
    assert run(*arguments, "--draft", "lookup", "--datastore", tmp_path / "none") == 2
    assert "can't be read" in capsys.readouterr().err
    assert run(*arguments, "--datastore", file) == 2
    assert "looks nothing up" in capsys.readouterr().err
