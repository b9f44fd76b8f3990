"""Somebody else's function in a process of its own: whatever it does is an answer or one error, in time."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import pytest

from sybil.errors import InvalidSetting, NotJudgeable, SybilError
from sybil.losslessness import foreign
from sybil.losslessness.foreign import ForeignSubject
from sybil.losslessness.samples import Request, Sample

REQUEST = Request(max_new_tokens=4, eos_token_ids=(3,), stop_strings=("é\ud800",))


def subject(function: str, timeout: float = 60) -> ForeignSubject:
    """Imported in its own time."""
    made = ForeignSubject(f"decoders:{function}", 60)
    made._timeout = timeout
    return made


def refusal(made: ForeignSubject, prompt: list[int]) -> str:
    """The one line that an answer gets which is none, in time."""
    began = time.monotonic()
    with pytest.raises(NotJudgeable, match="decoders:") as caught:
        list(made.sample([prompt], REQUEST, 0))
    assert time.monotonic() - began < 30
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 700
    return line


def test_a_function_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(subject("counts").sample([[1]], REQUEST, 0)) == [Sample((1,), (0, 1, 2, 3), (0, 1, 0, 1))]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "decoders.py").write_text("VALUE = 3\ndef same(prompt, **rest): return prompt\n")
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind\n")
    monkeypatch.chdir(tmp_path)
    assert list(ForeignSubject("mine.decoders:same").sample([[7]], REQUEST, 0)) == [Sample((7,), (7,))]
    for spec, words in {
        "counts": ["'counts'", "package.module:function"],
        "mine.decoders:": ["package.module:function"],
        "absent.module:f": ["ModuleNotFoundError", "'absent'", str(tmp_path)],
        "broken:f": ["nothing_of_the_kind"],
        "mine.decoders:absent": ["'absent'", "choose among same"],
        "mine.decoders:VALUE": ["no function 'VALUE'"],
    }.items():
        with pytest.raises(InvalidSetting) as caught:
            ForeignSubject(spec)
        for word in words:
            assert word in str(caught.value)


def test_a_function_in_a_file(tmp_path: Path) -> None:
    """Its neighbours are found, and a module of its file's name stays what it is."""
    (tmp_path / "neighbour.py").write_text("TOKEN = 9\n")
    body = (
        "import sys\nimport json as real\nfrom dataclasses import dataclass\nfrom neighbour import TOKEN\n"
        "@dataclass\nclass Held:\n    token: int = TOKEN\n"
        "def mine(prompt, max_new_tokens): return [Held().token, len(real.dumps([]))][:max_new_tokens]\n"
    )
    (tmp_path / "json.py").write_text(body)
    assert list(ForeignSubject(f"{tmp_path / 'json.py'}:mine").sample([[7]], REQUEST, 0)) == [Sample((7,), (9, 2))]
    for spec, words in {
        f"{tmp_path / 'absent.py'}:f": ["there is no file", "absent.py"],
        f"{tmp_path / 'json.py'}:absent": ["'absent'", "choose among Held, mine"],
    }.items():
        with pytest.raises(InvalidSetting) as caught:
            ForeignSubject(spec)
        for word in words:
            assert word in str(caught.value)


def test_a_function_is_given_what_it_takes() -> None:
    made = subject("short")
    assert next(made.sample([[1]], REQUEST, 0)).tokens == (4, 4)
    assert len(made.notes) == 3
    assert not made.takes(REQUEST)
    assert made.takes(Request(max_new_tokens=4))
    assert subject("strict").notes == []


def test_a_function_that_takes_gamma_is_asked_at_several() -> None:
    sized = subject("sized")
    assert next(sized.sample([[1]], REQUEST, 0)).tokens == (4, 4, 4, 4)
    said = {name: next(other.sample([[1]], REQUEST, 0)).tokens for name, other in sized.widths().items()}
    assert said == {"gamma 1": (1, 1, 1, 1), "gamma 8": (8, 8, 8, 8)}
    assert subject("counts").widths() == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys; sys.exit(0)", ["importing odd", "SystemExit: 0"]),
        ("import os; os._exit(0)", ["while odd was imported", "exit status 0"]),
        ("raise KeyboardInterrupt", ["KeyboardInterrupt"]),
        ("import os; os.kill(os.getpid(), 9)", ["SIGKILL"]),
        ("import sys; sys.modules[__name__] = None", ["importing odd"]),
        ("def broken(:", ["SyntaxError"]),
        ("while True: pass", ["while odd was imported", "within 1 seconds"]),
    ],
)
def test_a_module_that_does_not_let_itself_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: list[str]
) -> None:
    (tmp_path / "odd.py").write_text(body + "\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidSetting, match="'odd:f'") as caught:
        ForeignSubject("odd:f", 1 if "within" in words[-1] else 60)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_a_function_is_given_and_where_it_prints(capfd: pytest.CaptureFixture[str]) -> None:
    made = subject("strict")
    assert [sample.tokens for sample in made.sample([[1, 2], [0, 7]], REQUEST, 5)] == [(1, 2), (0, 7)]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "imported" in captured.err
    assert captured.err.count("aloud") == 4


def test_whatever_is_raised_is_no_exit() -> None:
    made = subject("raises")
    said = ["ValueError: bad (", "SystemExit: 0 (", "KeyboardInterrupt: no message", "GeneratorExit", "EOFError"]
    for number, words in enumerate([*said, "SystemExit: \ufffd[31mgone"]):
        assert f"raised {words}" in refusal(made, [number, 8, 9])
    assert "RecursionError: maximum recursion depth" in refusal(subject("recurses"), [1])
    line = refusal(subject("exits"), [1, 2])
    assert "SystemExit: 0 (prompt 0 of 1, 2 tokens)" in line
    assert "--traceback" in line


def test_the_traceback_is_shown_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    refusal(subject("exits"), [1])
    assert "Traceback" not in capfd.readouterr().err
    refusal(ForeignSubject("decoders:exits", traceback=True), [1])
    assert "in exits" in capfd.readouterr().err
    monkeypatch.setenv("SYBIL_TRACEBACK", "1")
    refusal(subject("exits"), [1])
    assert "in exits" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("function", "prompt", "words"),
    [
        ("exits_at_once", 0, "ended with exit status 0"),
        ("exits_at_once", 3, "ended with exit status 3"),
        ("dies", 0, "signal SIGSEGV"),
        ("rings", 0, "signal SIGALRM"),
        ("closes", 0, "or it closed the pipe that its answers go through"),
        ("floods", 0, "half an answer"),
        ("scribbles", 0, "something else than an answer"),
        ("scribbles", 1, "gave tokens [[1]]"),
        ("scribbles", 2, "something else than an answer"),
        ("scribbles", 3, "gave tokens None"),
        ("scribbles", 4, "something else than an answer"),
    ],
)
def test_a_process_that_ends_or_writes_what_it_should_not(function: str, prompt: int, words: str) -> None:
    assert words in refusal(subject(function), [prompt])


@pytest.mark.parametrize("function", ["spins", "holds_the_lock", "ignores_signals", "forks"])
def test_a_function_that_hangs_is_ended(function: str) -> None:
    made = subject(function, timeout=0.4)
    assert "no answer within 0.4 seconds" in refusal(made, [1])
    assert made._process.returncode is not None


def test_nonsense() -> None:
    made = subject("nonsense")
    for number in range(17):
        assert " gave " in refusal(made, [number])


def test_nothing_is_left_running() -> None:
    made = subject("leaves_a_thread")
    assert [sample.tokens for sample in made.sample([[1]], REQUEST, 0)] == [(1,)]
    process = made._process
    assert process.returncode is None
    del made
    gc.collect()
    assert process.returncode is not None
    refusal(subject("exits_at_once"), [0])


def test_a_process_whose_asker_is_gone_ends() -> None:
    made = subject("spins", timeout=0.4)
    process = made._process
    assert process.stdin is not None
    process.stdin.write(b'{"prompt": [1], "settings": {}}\n')
    process.stdin.close()  # as when the asker is killed
    assert process.wait(30) == 0


def test_ctrl_c_while_a_function_is_at_work_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject("spins")
    process = made._process

    def interrupted(timeout: float, work: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(foreign, "within", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(made.sample([[1]], REQUEST, 0))
    del made
    gc.collect()
    assert process.returncode is not None


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_timeout_out_of_range(timeout: float) -> None:
    with pytest.raises(SybilError, match="timeout is"):
        ForeignSubject("decoders:strict", timeout)


def test_the_session_of_the_process_is_its_own() -> None:
    made = subject("pid")
    (sample,) = made.sample([[1]], REQUEST, 0)
    assert os.getsid(sample.tokens[0]) == sample.tokens[0] != os.getsid(0)
