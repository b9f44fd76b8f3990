"""sybil chat and generate --chat: what is printed at a terminal and in a pipe, and one line for what is wrong."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from talker import talker
from tiny import gpt2, save, sybil

from sybil.cli import chat

SECONDS = 120.0
"""How long anything may take: what is waited for comes in one, on an idle machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talker(tmp_path_factory.mktemp("talker"))


def _at_a_terminal() -> None:
    """Make standard input the terminal of a new process, whose Ctrl-C is heard though tests may run in the background,
    where shells have SIGINT ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command at a terminal of its own, as somebody uses it who types when asked to."""

    def __init__(self, *arguments: object) -> None:
        self._mine, theirs = pty.openpty()
        environment = {
            **os.environ,
            "TERM": "xterm",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sybil", *map(str, arguments)],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
            preexec_fn=_at_a_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.written, self._text, self._seen = "", "", 0

    def until(self, pattern: str) -> str:
        """What is shown, without colours, from what was waited for last up to and with the pattern."""
        deadline = time.monotonic() + SECONDS
        while (found := re.search(pattern, self._text[self._seen :])) is None:
            ready, _, _ = select.select([self._mine], [], [], max(deadline - time.monotonic(), 0))
            try:
                more = os.read(self._mine, 1 << 16) if ready else b""
            except OSError:  # its other end is closed
                more = b""
            if not more:
                pytest.fail(f"{pattern!r} is not in {self._text[self._seen :]!r}")
            self.written += more.decode(errors="replace")
            self._text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.written)
        shown = self._text[self._seen : self._seen + found.end()]
        self._seen += found.end()
        return shown

    def type(self, keys: str) -> None:
        os.write(self._mine, keys.encode())

    def interrupt(self, answer: str) -> None:
        """Ctrl-C, and once more where nothing answers: a signal that comes while a key is handled, just before a line
        is waited for, is noticed by Python's readline at the next signal. Both are one KeyboardInterrupt then."""
        self.type("\x03")
        if not select.select([self._mine], [], [], 10)[0]:
            self.type("\x03")
        self.until(answer)

    def ask(self, line: str) -> str:
        """Type a line; what is shown until the next prompt."""
        self.type(line + "\n")
        return self.until(r"\n> $")

    def status(self) -> int:
        return self._process.wait(SECONDS)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._mine)


@pytest.fixture
def terminal(model: Path) -> Iterator[Terminal]:
    models = ("--target", model, "--draft", model, "--gamma", 2)
    made = Terminal("chat", *models, "--system", "be kind", "--max-new-tokens", 60000)
    yield made
    made.close()


def test_a_conversation_in_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    assert "/help lists the commands" in terminal.until("> $")
    assert "hi" in terminal.ask("once upon a")
    assert "\x1b[32mh\x1b[0m\x1b[32mi\x1b[0m" in terminal.written  # the draft's tokens
    stats = terminal.ask("/stats")
    assert "last answer: 24 new prompt tokens" in stats  # ' be kindC' 'Aonce upon aCBa'
    assert "accepted 2 of" in stats

    assert "hi" in terminal.ask("ha")
    stats = terminal.ask("/stats")
    assert "last answer: 7 new prompt tokens" in stats  # the end token of the first answer, AhaCBa
    assert "all answers: 31 new prompt tokens, 6 tokens" in stats
    assert "context: 36 of 65536 tokens used (0%)" in stats

    terminal.type("xyz\n")
    terminal.until("zzzzzzzz")
    assert "\x1b[95mz\x1b[0m" in terminal.written  # the target's own, after each two of the draft's
    terminal.type("\x03")
    terminal.until(r"\(stopped\)")
    terminal.until("> $")
    assert "hi" in terminal.ask("go on a")
    assert "last answer: 13 new prompt tokens" in terminal.ask("/stats")  # zC... Ago on aCBa

    saved = tmp_path / "saved.json"
    assert "9 messages are in" in terminal.ask(f"/save {saved}")
    messages = json.loads(saved.read_text())
    assert [each["role"] for each in messages] == ["system", *["user", "assistant"] * 4]
    assert messages[1:5:2] == [{"role": "user", "content": text} for text in ("once upon a", "ha")]
    assert messages[6]["content"].strip("z") == ""
    assert "is there already" in terminal.ask(f"/save {saved}")

    assert "there is no command /nonesuch" in terminal.ask("/nonesuch now")
    terminal.type("half a line")
    terminal.until("half a line")
    terminal.interrupt("Ctrl-C again ends")
    terminal.until("> \x07*$")
    assert "forgotten" in terminal.ask("/reset")
    assert "context: 0 of" in terminal.ask("/stats")
    assert "hi" in terminal.ask("é 漢字 a")
    terminal.ask(f"/save {saved}2")
    assert [each["content"] for each in json.loads(Path(f"{saved}2").read_text())] == ["be kind", "é 漢字 a", "hi"]
    terminal.type("/quit\n")
    assert terminal.status() == 0


def piped(monkeypatch: pytest.MonkeyPatch, text: str, *arguments: object) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return sybil("chat", *arguments)


def test_lines_of_a_pipe(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert piped(monkeypatch, "a\n\n /a\n/quit\na", "--target", model) == 0
    assert capsys.readouterr().out == "hi\nhi\n"
    assert piped(monkeypatch, "/help", "--target", model) == 0
    assert capsys.readouterr().out == chat.HELP + "\n"
    assert piped(monkeypatch, "z", "--target", model, "--max-new-tokens", 5) == 0
    assert capsys.readouterr().out == "zzzzz\n(cut after 5 tokens: --max-new-tokens)\n"
    assert piped(monkeypatch, "", "--target", model) == 0


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, *typed: str | BaseException) -> None:
    """What input() gives or raises, in turn."""
    coming = iter(typed)

    def answered(prompt: str) -> str:
        line = next(coming)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(chat, "_is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", answered)


UNREADABLE = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([EOFError()], ""),
        ([KeyboardInterrupt(), KeyboardInterrupt()], ""),
        ([KeyboardInterrupt(), "a", KeyboardInterrupt(), EOFError()], ""),
        ([UNREADABLE, EOFError()], "type it again"),
        (["/save", EOFError()], "needs a file's name"),
        (["/save /nonesuch/folder/file", EOFError()], "can't be written"),
        (["/save /", EOFError()], "is there already"),
    ],
)
def test_what_ends_it_and_what_does_not(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: list[Any],
    said: str,
) -> None:
    at_a_terminal(monkeypatch, *typed)
    assert sybil("chat", "--target", model) == 0
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == bool(said)


def test_ctrl_c_twice_breaks_off_in_the_middle(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaking(stream: Iterator[Any], tokenizer: Any) -> Iterator[Any]:
        for step in shown(stream, tokenizer):
            yield step
            monkeypatch.setattr(chat, "shown", shown)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    shown = chat.shown
    monkeypatch.setattr(chat, "shown", breaking)
    at_a_terminal(monkeypatch, "z", "a", "/quit")
    before = signal.getsignal(signal.SIGINT)
    assert sybil("chat", "--target", model) == 0
    assert capsys.readouterr().out.split("\n")[1:] == ["z", "(stopped)", "hi", ""]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_full_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = talker(tmp_path, 32)
    at_a_terminal(monkeypatch, "z", "z", "/reset", "a", "/quit")
    assert sybil("chat", "--target", small) == 0
    captured = capsys.readouterr()
    assert "(the model's context of 32 tokens is full: /reset begins anew)" in captured.out
    assert captured.out.endswith("(all messages are forgotten)\nhi\n")
    assert "shorten it to at most 31; /reset begins the conversation anew" in captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert sybil(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_bad_requests(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, refusing = save(gpt2(), tmp_path / "base"), talker(tmp_path / "refusing")
    capsys.readouterr()  # of transformers, while it saves
    assert "no chat template, so it can't chat" in refused(capsys, "chat", "--target", base)
    assert "no chat template, which --chat needs" in refused(capsys, "generate", "abc", "--chat", "--target", base)
    assert "add --chat" in refused(capsys, "generate", "abc", "--system", "b", "--target", base)
    assert "gamma is 0" in refused(capsys, "chat", "--target", model, "--gamma", 0)
    assert "max_new_tokens is 0" in refused(capsys, "chat", "--target", model, "--max-new-tokens", 0)
    assert "add --temperature" in refused(capsys, "chat", "--target", model, "--top-k", 3)
    (refusing / "chat_template.jinja").write_text("{{ raise_exception('no ' ~ messages[0].role) }}")
    assert "refuses these messages: no system" in refused(capsys, "chat", "--target", refusing, "--system", "b")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8"))
    assert "is no UTF-8 text" in refused(capsys, "chat", "--target", model)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/nonesuch\n"))
    assert "no command /nonesuch" in refused(capsys, "chat", "--target", model)


def test_one_turn(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("generate", "--chat", "a", "--system", "b", "--target", model) == 0
    out = capsys.readouterr().out
    assert out.startswith("a\nhi\n3 tokens")
    assert "ended by eos" in out
    assert sybil("generate", "--chat", "a", "--target", model, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["text"], record["prompt"], record["chat"], record["system"]) == ("hi", "a", True, None)
