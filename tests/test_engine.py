"""`python -m benchmarks.engine`: the commands of the drafters' bars, in small, over the embedded pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.engine import drafts
from benchmarks.engine.__main__ import app


@pytest.mark.parametrize(
    "command",
    [
        "window stdlib draft --prompts 3 --tokens 8",
        "window stdlib useless --prompts 3",
        "drafts lookup-stdlib --prompts 4",
    ],
)
def test_a_command_prints_its_bars_and_keeps_its_samples(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drafts, "NEW_TOKENS", 16)
    monkeypatch.setattr("benchmarks.engine.window.USELESS_TOKENS", 16)
    out = tmp_path / "engine.jsonl"
    app([*command.split(), "--out", str(out)], standalone_mode=False)
    (record,) = map(json.loads, out.read_text().splitlines())
    same = [bar for bar in record["bars"] if "texts that are plain decoding's" in bar["what"]]
    assert [bar["found"]["value"] for bar in same] == [1.0]
    prompts = int(command.split()[command.split().index("--prompts") + 1])
    assert all(len(samples) == prompts for samples in record["samples"].values())
    assert "plain decoding's" in capsys.readouterr().out
