"""sybil verify as a user types it: its verdicts, its files, and one line for what it can't do.

The target is tiny and random; what the judge itself is worth is the matter of other tests.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import gpt2, letters, perturbed, save, sybil
from vocabularies import turned

from sybil.agreement import Q8_ACTIVATIONS
from sybil.losslessness import foreign


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(gpt2(), root / "target")
    save(perturbed(gpt2(), 0.05), root / "draft")
    save(gpt2(seed=7), root / "other")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 31, (40, 8), generator=generator).tolist()
    texts = [letters().decode(row) for row in rows]
    (root / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return root


def command(folders: Path, out: Path, *arguments: object) -> tuple[object, ...]:
    models = ("--target", folders / "target", "--draft", folders / "draft", "--device", "cpu")
    sizes = ("--max-new-tokens", 40, "--greedy", 6, "--stopping", 4, "--resolution", 0.4)
    return ("verify", *models, "--prompts", folders / "prompts.jsonl", *sizes, "--out", out, *arguments)


def report(out: Path) -> dict[str, Any]:
    """The report that was written, beside its chart."""
    (path,) = out.glob("*.json")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    parsed: dict[str, Any] = json.loads(path.read_text())
    return parsed


def test_sybil_passes_and_leaves_a_report(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil(*command(folders, tmp_path)) == 0
    out = capsys.readouterr().out
    assert "| greedy " in out
    assert "| quality " in out
    assert "drift: " in out
    assert "PASS: sybil, rule token, gamma 4\n" in out
    questions = ("distribution", "tokens", "endings", "width")
    assert {f"  {question}: PASS" for question in questions} <= set(out.splitlines())
    assert "    would have been seen, nine times in ten: " in out
    written = report(tmp_path)
    assert written["verdicts"] == dict.fromkeys(questions, "PASS")
    assert written["verdict"] == "PASS"
    assert written["target"] == str(folders / "target")
    assert written["plan"]["request"]["eos_token_ids"] == [0]
    assert {"processor", "torch", "commit", "dtype", "prompts"} <= written.keys()
    assert not any(check["failed"] for check in written["checks"])


def test_a_seed_repeats_a_report(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for number, seed in enumerate((3, 3, 4)):
        sizes = ("--repeats", 1, "--count", 8, "--greedy", 1, "--stopping", 1)
        sybil(*command(folders, tmp_path / str(number), "--seed", seed, *sizes, "--json"))
        printed.append(json.loads(capsys.readouterr().out))
        assert printed[-1] == report(tmp_path / str(number))
        del printed[-1]["date"], printed[-1]["commit"]  # which may change under a test
    one, same, other = printed
    assert one == same
    assert one["checks"] != other["checks"]


def test_advice_comes_first(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--count", 6, "--repeats", 1, "--max-new-tokens", 8)
    assert sybil(*command(folders, tmp_path, *sizes)) == 3
    out = capsys.readouterr().out
    assert out.startswith("at most 48 tokens will be sampled, too few for a PASS")
    assert "would do: use " in out


def test_a_tolerance_is_apart_from_the_target_s_dtype(folders: Path, tmp_path: Path) -> None:
    sizes = ("--repeats", 0, "--greedy", 2, "--stopping", 0)
    for number, (stated, absolute, doubtful) in enumerate(
        (
            ((), 1e-3, True),
            (("--tolerance", "q8 activations"), Q8_ACTIVATIONS.absolute, False),
            (("--dtype", "bfloat16", "--tolerance", 0.25), 0.25, False),
        )
    ):
        out = tmp_path / str(number)
        sybil(*command(folders, out, "--decoder", "decoders:stubborn", *sizes, *stated))
        plan = report(out)["plan"]
        assert plan["near_tie"]["absolute"] == absolute
        assert (plan["doubtful"] is not None) == doubtful


def test_end_tokens_by_id_and_text(folders: Path, tmp_path: Path) -> None:
    sizes = ("--repeats", 0, "--greedy", 2, "--stopping", 0)
    sybil(*command(folders, tmp_path, *sizes, "--eos", 3, "--eos", "z"))
    assert report(tmp_path)["plan"]["request"]["eos_token_ids"] == [3, letters().token_to_id("z")]


def test_a_draft_of_other_tokens_is_told_and_left_out(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(gpt2(), tmp_path / "turned", turned(letters()))
    draft = ("--draft", tmp_path / "turned")
    sizes = ("--repeats", 1, "--count", 6, "--greedy", 0, "--stopping", 0, "--max-new-tokens", 8)
    assert sybil(*command(folders, tmp_path / "out", *sizes, *draft, "--decoder", "decoders:stubborn")) in (1, 3)
    out = capsys.readouterr().out
    assert out.startswith("the check of the draft is left out: draft")
    assert "entries of their vocabularies differ" in out
    (check,) = (each for each in report(tmp_path / "out")["checks"] if each["name"] == "draft")
    assert "has other tokens than the target" in check["detail"]
    assert sybil(*command(folders, tmp_path / "none", *sizes, *draft, "--decoder", "assisted")) == 2
    assert "choose a draft with the target's" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("decoder", ["transformers", "prompt-lookup"])
def test_decoders_of_transformers_by_name(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], decoder: str
) -> None:
    sizes = ("--count", 6, "--repeats", 1, "--max-new-tokens", 8)
    assert sybil(*command(folders, tmp_path, "--decoder", decoder, *sizes)) == 3
    assert "too few tokens" in capsys.readouterr().out
    assert report(tmp_path)["subject"].startswith("transformers")


def test_a_decoder_that_is_too_cold_fails(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--count", 16, "--repeats", 1, "--greedy", 2, "--stopping", 1)
    assert sybil(*command(folders, tmp_path, "--decoder", "decoders:cold", *sizes)) == 1
    out = capsys.readouterr().out
    assert "FAIL |" in out
    assert "too greedy" in out
    assert "FAIL: decoders:cold\n" in out
    assert report(tmp_path)["drift"]["low"] > 0


def test_a_control_is_told_in_report_and_terminal(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--count", 8, "--repeats", 1, "--greedy", 2, "--stopping", 1, "--max-new-tokens", 24, "--no-stop-strings")
    chosen = ("--decoder", f"{Path(__file__).with_name('decoders.py')}:cold", "--control", "sybil")
    assert sybil(*command(folders, tmp_path, *sizes, *chosen)) == 1
    out = capsys.readouterr().out
    assert "decoders.py:cold\n" in out
    assert "\ncontrol: INCONCLUSIVE: sybil, no draft\n" in out
    assert "whether speculation is to blame is open" in out
    written = report(tmp_path)
    assert written["control"]["subject"] == "sybil, no draft"
    assert written["control"]["told"]
    assert "stop strings were left out" in written["reasons"]
    assert written["plan"]["stop_strings"] is False


def test_help_tells_how_a_function_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("verify", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    for word in ("file.py:function", "max_new_tokens", "stop_strings", "--traceback", "--no-stop-strings", "--control"):
        assert word in out


def test_a_function_s_traceback_is_shown_where_it_is_asked_for(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--decoder", "decoders:exits", "--timeout", 60)
    assert sybil(*command(folders, tmp_path, *chosen)) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert sybil(*command(folders, tmp_path, *chosen, "--traceback")) == 2
    assert "in exits" in capfd.readouterr().err


def test_another_target_is_inconclusive(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(folders, tmp_path, "--decoder", "decoders:stubborn")
    assert sybil(*arguments) == 3
    assert "another target" in capsys.readouterr().out
    assert report(tmp_path)["verdict"] == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--decoder", "nonesuch"), ["'nonesuch'", "transformers", "package.module:function"]),
        (("--decoder", "no_such_module:f"), ["no_such_module", "ModuleNotFoundError"]),
        (("--decoder", "decoders:absent"), ["'absent'", "cold"]),
        (("--decoder", "decoders:echoing", "--count", 4), ["echoing", "new tokens only"]),
        (("--decoder", "sybil", "--endpoint", "http://127.0.0.1:9/v1"), ["'sybil'", "http://127.0.0.1:9/v1", "one"]),
        (("--endpoint", "http://127.0.0.1:9/v1"), ["http://127.0.0.1:9/v1/models", "can't be reached"]),
        (("--endpoint", "127.0.0.1:9"), ["'127.0.0.1:9'", "URL"]),
        (("--endpoint", "http://me:hunter2@127.0.0.1:9/v1"), ["password"]),
        (("--decoder", "sybil", "--endpoint", "http://me:hunter2@127.0.0.1:9/v1"), ["password"]),
        (("--timeout", 0), ["timeout is 0"]),
        (("--timeout", "inf"), ["timeout is inf"]),
        (("--temperature", 0), ["temperature is 0", "above 0"]),
        (("--temperature", -1), ["temperature is -1"]),
        (("--decoder", "transformers", "--draft", "."), ["config.json"]),
        (("--out", "/dev/null/x"), ["/dev/null is a file"]),
        (("--top-p", 1.5), ["top_p is 1.5"]),
        (("--alpha", 0), ["alpha is 0"]),
        (("--alpha", 1), ["alpha is 1"]),
        (("--tolerance", "q9"), ["'q9'", "q8 activations"]),
        (("--tolerance", 0), ["'0'", "above 0"]),
        (("--eos", 31), ["'31'", "no token of the target"]),
        (("--eos", "<stop>"), ["'<stop>'", "whole text"]),
        (("--widths", -1), ["widths is -1"]),
        (("--rule", "lucky"), ["'lucky'", "token"]),
        (("--window", "round"), ["'round'", "constant"]),
        (("--gamma", 0), ["gamma is 0"]),
        (("--count", 0), ["count is 0"]),
        (("--max-new-tokens", 0), ["max_new_tokens is 0"]),
        (("--max-new-tokens", 60), ["60", "context of 64"]),
        (("--prompts", "absent.jsonl"), ["absent.jsonl"]),
        (("--out", __file__), ["is a file"]),
    ],
)
def test_bad_requests(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...], words: list[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("no_proxy", "*")
    assert sybil(*command(folders, tmp_path / "out", *arguments)) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("sybil: ")
    assert captured.err.count("\n") == 1
    assert "hunter2" not in captured.err
    for word in words:
        assert word in captured.err
    assert not (tmp_path / "out").exists()


def test_assisted_generation_needs_a_draft_of_equal_size(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ("--target", folders / "target", "--prompts", folders / "prompts.jsonl", "--out", tmp_path / "out")
    assert sybil("verify", *target, "--decoder", "assisted") == 2
    assert "--draft" in capsys.readouterr().err
    padded = save(gpt2(vocab=40), folders / "padded")
    assert sybil("verify", *target, "--decoder", "assisted", "--draft", padded, "--device", "cpu") == 2
    assert "31 tokens" in (line := capsys.readouterr().err)
    assert "for 40" in line


def test_ctrl_c_while_a_decoder_is_at_work_leaves_no_report(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def ask(process: subprocess.Popen[bytes], message: dict[str, Any]) -> bytes:
        processes.append(process)
        if "prompt" in message:
            os.kill(os.getpid(), signal.SIGINT)
        return original(process, message)

    original = foreign._ask
    monkeypatch.setattr(foreign, "_ask", ask)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert sybil(*command(folders, tmp_path / "out", "--decoder", "decoders:spins")) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    captured = capsys.readouterr()
    assert "interrupted: there is no verdict" in captured.out
    assert captured.err == ""
    assert not (tmp_path / "out").exists()
    gc.collect()
    assert processes[0].returncode is not None


def test_a_draft_with_fewer_logits(folders: Path, tmp_path: Path) -> None:
    """Padding of the one that the other lacks: both know the tokenizer's 31 tokens, or at least those in use."""
    save(gpt2(seed=3, vocab=28), tmp_path / "narrow")
    sizes = ("--count", 6, "--repeats", 1, "--max-new-tokens", 8, "--draft", tmp_path / "narrow")
    assert sybil(*command(folders, tmp_path / "out", *sizes)) in (0, 3)
    checks = {check["name"]: check for check in report(tmp_path / "out")["checks"]}
    assert checks["greedy"]["statistic"] == 0


def test_two_reports_of_a_second_are_two(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    for _ in range(2):
        sybil(*command(folders, tmp_path, "--repeats", 0, "--greedy", 2, "--stopping", 0))
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["20260101-000000-2.json", "20260101-000000.json"]
