"""The examples run as they are printed, on the embedded pair, and say what they promise."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
OTHERS = {"wrong_decoders.py": "test_subjects.py"}
"""Examples that another file tests."""


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The example's exit status."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("quickstart.py", [], "the same text without a draft: True"),
        ("quickstart.py", ["--draft", "lookup", "--prompt", "import os\nimport", "--tokens", "12"], "True"),
        ("own_model_without_draft.py", ["--tokens", "24"], "hybrid:lookup,self: "),
        ("gguf_file.py", ["--tokens", "24"], "same text without a draft: True"),
        ("transformers_generate.py", [], "the same tokens as generate() alone: True"),
    ],
)
def test_an_example_runs(
    name: str, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, *arguments, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert said in out
    assert "False" not in out


def test_the_judge_finds_the_wrong_decoder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The right one is judged by test_guides.py, as docs/guides/judge-a-decoder.md has it."""
    few = "--count", "3", "--tokens", "8"
    assert run("judge_your_decoder.py", *few, "--wrong", monkeypatch=monkeypatch) == 1
    assert "distribution: FAIL" in capsys.readouterr().out


def test_a_file_that_is_written_as_gguf_is_the_model(tmp_path: Path) -> None:
    """In blocks of 8 bits it is another model than the folder's, and says much the same."""
    import sybil

    example = runpy.run_path(str(EXAMPLES / "gguf_file.py"))
    example["write"](example["FOLDER"], tmp_path / "a.gguf")
    decoders = sybil.load(tmp_path / "a.gguf"), sybil.load(sybil.PAIRS["stdlib"].target)
    texts = [decoder.generate("def main(", max_new_tokens=8).text[0] for decoder in decoders]
    assert texts[0] == texts[1]


def test_every_example_is_run() -> None:
    here = Path(__file__).read_text()
    assert {file.name for file in EXAMPLES.glob("*.py") if f'"{file.name}"' not in here} == set()
    assert all(name.removesuffix(".py") in (Path(__file__).parent / test).read_text() for name, test in OTHERS.items())
