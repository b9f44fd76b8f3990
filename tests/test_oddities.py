"""The judge accuses no lossless decoder, however odd, and the lossy twin of one it does. More seeds:
`python -m tools.lossless`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sybil.losslessness.evidence import Reference
from sybil.losslessness.judge import verify
from sybil.losslessness.report import Report
from sybil.losslessness.subjects import CallableSubject
from tools.lossless import __main__ as command
from tools.lossless import oddities
from tools.lossless.oddities import UNSURE, After, Probs, Round, pick, verified

PAIR = oddities.Chains(oddities.chain(), oddities.chain(noise=0.4), command.letters())
REFERENCE = Reference(PAIR.target, PAIR.tokenizer, PAIR.draft)


def judged(way: Round, **settings: object) -> Report:
    plan = replace(command.PLAN, **settings)
    return verify(CallableSubject(PAIR.decoder(way), "odd"), REFERENCE, command.PROMPTS, plan)


@pytest.mark.parametrize("name", oddities.ROUNDS)
def test_what_is_lossless_passes(name: str) -> None:
    report = judged(oddities.ROUNDS[name])
    assert report.verdict == "PASS", report.reasons


def test_the_lossy_twin_fails() -> None:
    """A token that the draft is unsure of is left out, after a look at it; the odd one stays, and ends the proposal."""

    def dropped(target: After, draft: After, text: list[int], gamma: int, rng: np.random.Generator) -> list[int]:
        proposed = list[tuple[int, Probs]]()
        while len(proposed) < gamma:
            probs = draft(text + [token for token, _ in proposed])
            token = pick(probs, rng.random())
            if probs[token] < UNSURE:
                break
            proposed.append((token, probs))
        return verified(target, text, proposed, rng)

    report = judged(dropped, repeats=16)
    assert report.verdict == "FAIL"
    assert "quality" in {check.name for check in report.checks if check.failed}


def test_runs_that_were_made_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, made = tmp_path / "runs.jsonl", list[int]()
    monkeypatch.setattr(command, "verify", lambda *rest: made.append(1) or verify(*rest))
    for runs in (1, 2, 2):
        done = CliRunner().invoke(command.app, [str(file), "--runs", str(runs), "--only", "one uniform a place"])
        assert done.exit_code == 0, done.output
    assert len(made) == 2
    assert [json.loads(line)["seed"] for line in file.read_text().splitlines()] == [0, 1]
    assert "| the same, target and draft with one uniform a place | 2 | 2 | 2 | 2 | 2 | 2 |" in done.output
    assert "| uniform | 2 |" in done.output
