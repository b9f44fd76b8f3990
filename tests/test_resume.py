"""`sybil verify` interrupted and gone on with, as a user types it; what it says where it takes long; and several stop
trials at once."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from serving import Good, completion, decoded, servers, subject_of
from tiny import gpt2, letters, perturbed, save, sybil

from sybil.cli import keeping, verdict
from sybil.errors import InvalidSetting, ResultsMismatch
from sybil.losslessness import endpoint
from sybil.losslessness.evidence import Reference
from sybil.losslessness.judge import Plan, verify
from sybil.losslessness.kept import Kept
from sybil.losslessness.samples import Request, Sample

Serve = Callable[..., Good]
SIZES = ("--max-new-tokens", 12, "--count", 6, "--greedy", 3, "--stopping", 2, "--widths", 0, "--resolution", 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(gpt2(), root / "target")
    save(perturbed(gpt2(), 0.05), root / "draft")
    rows = torch.randint(1, 31, (12, 8), generator=torch.Generator().manual_seed(0)).tolist()
    (root / "prompts.jsonl").write_text("".join(json.dumps({"text": letters().decode(row)}) + "\n" for row in rows))
    return root


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    monkeypatch.setattr(endpoint, "PATIENCE", 0.05)
    with servers() as start:
        yield start


def command(folders: Path, *arguments: object) -> tuple[object, ...]:
    models = ("--target", folders / "target", "--prompts", folders / "prompts.jsonl", "--device", "cpu")
    return ("verify", *models, *SIZES, *arguments)


def found(path: Path) -> dict[str, Any]:
    """A report, but for what may change under a test."""
    report: dict[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in report.items() if name not in ("date", "commit")}


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C after so many answers of this run."""
    keep, kept = Kept.keep, list[str]()

    def until(self: Kept, key: str, phase: str, sample: Sample) -> None:
        if len(kept) == after:
            raise KeyboardInterrupt
        kept.append(key)
        keep(self, key, phase, sample)

    monkeypatch.setattr(Kept, "keep", until)


def test_ctrl_c_loses_nothing(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = ("--draft", folders / "draft")
    status = sybil(*command(folders, *draft, "--out", tmp_path / "whole"))
    (whole,) = (tmp_path / "whole").glob("*.json")
    assert "answers: " in capsys.readouterr().out
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        interrupt(patched, 14)
        assert sybil(*command(folders, *draft, "--out", out)) == 130
    (answers,) = out.iterdir()
    said = capsys.readouterr()
    assert f"interrupted: there is no verdict; 14 answers are kept: go on with --resume {answers}\n" in said.out
    assert said.err == ""
    with monkeypatch.context() as patched:
        interrupt(patched, 5)
        assert sybil(*command(folders, *draft, "--out", out, "--resume", out)) == 130  # by its folder
    assert "19 answers are kept" in capsys.readouterr().out
    assert sybil(*command(folders, *draft, "--resume", answers)) == status  # by its file
    assert f"going on with 19 answers of {answers}\n" in capsys.readouterr().out
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".jsonl", ".png"]
    assert found(answers.with_suffix(".json")) == found(whole)
    with monkeypatch.context() as patched:  # all is there: nothing more is asked, or kept
        interrupt(patched, 0)
        assert sybil(*command(folders, *draft, "--resume", answers.with_suffix(".json"), "--resolution", 5)) == status
    assert len(list(out.glob("*.json"))) == 2


def tiny(body: dict[str, Any]) -> Any:
    tokens = decoded(body)
    return completion(token_ids=tokens, finish_reason="length" if len(tokens) == body["max_tokens"] else "stop")


def test_a_server_that_stays_away_loses_nothing(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], serve: Serve
) -> None:
    server = serve(tiny)
    asked = command(folders, "--endpoint", server.url, "--concurrency", 3)
    status = sybil(*asked, "--out", tmp_path / "whole")
    (whole,) = (tmp_path / "whole").glob("*.json")
    probing, server.bodies = sum(body["max_tokens"] == 4 for body in server.bodies), []
    capsys.readouterr()

    def away(body: dict[str, Any]) -> Any:
        return tiny(body) if len(server.bodies) < probing + 17 else None

    server.answers, out = away, tmp_path / "out"
    assert sybil(*asked, "--out", out) == 2
    said = capsys.readouterr()
    (answers,) = out.iterdir()
    count = len(answers.read_text().splitlines()) - 1
    assert count >= 13  # of 16; two were under way beside the one that was lost
    assert f"{count} answers are kept: go on with --resume {answers}\n" in said.out
    assert said.err.startswith("sybil: http://127.0.0.1")
    assert said.err.count("\n") == 1
    server.answers, server.bodies = tiny, []
    assert sybil(*asked, "--resume", out) == status
    assert found(answers.with_suffix(".json")) == found(whole)
    kept = [json.loads(line)["question"] for line in answers.read_text().splitlines()[1:]]
    assert len(kept) == len(set(kept)) == count + len(server.bodies) - probing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seed", 7), ["seed=0, and this run has seed=7", "use the same, or start anew"]),
        (("--count", 5), ["prompts="]),
        (("--max-new-tokens", 11), ["max_new_tokens=12, and this run has max_new_tokens=11"]),
        (("--top-k", 3), ["top_k=0, and this run has top_k=3"]),
        (("--decoder", "prompt-lookup"), ["'transformers'", "'prompt-lookup'"]),
        (("--eos", 5), ["eos_token_ids=[0]"]),
        (("--dtype", "bfloat16"), ["'float32'", "'bfloat16'"]),
    ],
)
def test_other_settings_are_refused(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], words: list[str]
) -> None:
    few = ("--decoder", "transformers", "--repeats", 0, "--greedy", 1, "--stopping", 0)
    sybil(*command(folders, *few, "--out", tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert sybil(*command(folders, *few, "--resume", tmp_path, *arguments)) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert str(tmp_path) in said.err
    assert all(word in said.err for word in words)
    assert said.out == ""
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_can_t_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(ResultsMismatch, match="holds no answers"):
        keeping.kept_in(None, tmp_path, {})
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(InvalidSetting, match="give one of them"):
        keeping.kept_in(tmp_path / "other", tmp_path, {})
    assert keeping.kept_in(tmp_path, tmp_path, {}).path == tmp_path / "b.jsonl"
    assert keeping.kept_in(None, tmp_path / "a.json", {}).path == tmp_path / "a.jsonl"


# --- what is said on the way


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    now, out = 0.0, io.StringIO()
    report = verdict.lines(Console(file=out, width=200), lambda: now)
    for second in range(100):
        now = float(second)
        report("sampling", second, 100)
    assert out.getvalue().splitlines() == [
        f"sampling: {second} of 100, after {second} s" for second in (15, 30, 45, 60, 75, 90)
    ]


def test_lines_go_to_standard_error_and_bars_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    verdict_every, verdict.EVERY = verdict.EVERY, 0.0
    try:
        with verdict.progress_on(Console(file=io.StringIO())) as report:
            report("greedy", 1, 2)
    finally:
        verdict.EVERY = verdict_every
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "greedy: 1 of 2, after 0 s\n"
    terminal = io.StringIO()
    with verdict.progress_on(Console(file=terminal, force_terminal=True)) as report:
        report("greedy", 1, 2)
    assert "greedy" in terminal.getvalue()


# --- several stop trials at once


def test_stop_trials_are_asked_for_at_once(serve: Serve) -> None:
    together, begun = threading.Barrier(3, timeout=20), list[dict[str, Any]]()

    def answer(body: dict[str, Any]) -> Any:
        if stopping and (body.get("stop") or body["max_tokens"] < 12 or body["stop_token_ids"]):
            begun.append(body)
            together.wait()  # which no server is past before three are asked for
        return tiny(body)

    stopping = False
    subject = subject_of(serve(answer), concurrency=3)
    plan = Plan(request=Request(max_new_tokens=12), repeats=0, greedy=4, stopping=3, widths=0)
    prompts = [[1 + index, 2, 3] for index in range(4)]

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal stopping
        stopping = stopping or (phase == "greedy" and done == total)

    report = verify(subject, Reference(gpt2(), letters()), prompts, plan, progress)
    assert report.verdict == "PASS"
    assert len(begun) == 9
    alone = verify(subject_of(serve(tiny)), Reference(gpt2(), letters()), prompts, plan)
    assert alone.verdicts == report.verdicts
    assert alone.checks == report.checks
