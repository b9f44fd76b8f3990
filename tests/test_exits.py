"""0, 1 and 3 are verdicts: whatever else ends a command is one line on standard error and exit 2, and leaves nothing
half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tiny import gpt2, greedy, perturbed, save, sybil

from sybil.measuring import files


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(gpt2(), root / "target")
    save(perturbed(gpt2(), 0.05), root / "draft")
    (root / "prompts.jsonl").write_text("".join(json.dumps({"text": text * 3}) + "\n" for text in ("abc", "hello")))
    return root


def command(folders: Path, name: str, out: Path, *arguments: object) -> tuple[object, ...]:
    """A run of each command over the tiny pair, in a second."""
    models = ("--target", folders / "target", "--draft", folders / "draft", "--device", "cpu")
    few = ("--max-new-tokens", 8)
    many = ("--prompts", folders / "prompts.jsonl", "--out", out)
    own = {
        "generate": ("generate", "abc", *models, *few),
        "compare": ("compare", *models, *few, *many),
        "profile": ("profile", *models, "--passes", 1, "--out", out),
        "verify": ("verify", *models, *few, *many, "--repeats", 0, "--greedy", 2, "--stopping", 0),
    }
    return (*own[name], *arguments)


every = pytest.mark.parametrize("name", ["generate", "compare", "profile", "verify"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a run without a verdict."""
    assert sybil(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert captured.err.startswith("sybil: ")
    assert captured.err.count("\n") == 1
    assert captured.err[:-1].isprintable()
    assert "PASS" not in captured.out
    return captured.err


# --- what is judged


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        ("exits", "raised SystemExit: 0"),
        ("passes", "ended with exit status 0"),
        ("dies", "signal SIGSEGV"),
        ("raises", "mend it"),
        ("nonsense", "list of token ids"),
        ("beyond", "token id 2147483647, outside the target's vocabulary of 31"),
        ("echoing", "new tokens only"),
        ("recurses", "RecursionError"),
        ("spins", "no answer within 2 seconds"),
    ],
)
def test_a_decoder_that_gives_no_answer_gets_no_verdict(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], decoder: str, words: str
) -> None:
    out = tmp_path / "out"
    chosen = ("--decoder", f"decoders:{decoder}", "--timeout", 2, "--json")
    assert words in refused(capsys, *command(folders, "verify", out, *chosen))
    assert not out.exists()


@pytest.mark.parametrize(
    "body", ["import sys; sys.exit(0)", "import os; os._exit(0)", "while True: pass", "raise EOFError"]
)
def test_a_module_that_ends_the_import_gets_no_verdict(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    (tmp_path / "ending.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    chosen = ("--decoder", "ending:f", "--timeout", 1)
    assert "ending" in refused(capsys, *command(folders, "verify", tmp_path / "out", *chosen))


def test_what_a_decoder_prints_is_not_in_the_json(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sybil(*command(folders, "verify", tmp_path, "--decoder", "decoders:stubborn", "--json")) == 3
    captured = capfd.readouterr()
    assert json.loads(captured.out)["verdict"] == "INCONCLUSIVE"
    assert "imported" in captured.err


ANSWERS: dict[str, Callable[[Any], None]] = {}


def answer(function: Callable[[Any], None]) -> Callable[[Any], None]:
    ANSWERS[function.__name__] = function
    return function


@answer
def redirects(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(307)
    handler.send_header("Location", "http://127.0.0.1:9/v1/completions")
    handler.end_headers()


@answer
def drips(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        time.sleep(0.02)


@answer
def cuts(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"token_ids": [1]}]}')


@answer
def nests(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'{"choices": ' + b"[" * 200_000)


@answer
def floods(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" " * 2**20)


@answer
def misnumbers(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"token_ids": [' + b"9" * 4000 + b"]}]}")


@answer
def goes_beyond(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"token_ids": [31], "finish_reason": "length"}]}')


@answer
def says_nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@answer
def decodes(handler: Any) -> None:
    body = json.loads(handler.asked)
    tokens = greedy(gpt2(), torch.tensor(body["prompt"]), body["max_tokens"])
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(json.dumps({"choices": [{"token_ids": tokens, "finish_reason": "length"}]}).encode())


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """The URL of a server that answers in a way of that name."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    servers: list[ThreadingHTTPServer] = []

    def start(name: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                # a request left unread when the connection closes would reset it, and the answer be lost with it
                self.asked = self.rfile.read(int(self.headers["Content-Length"]))
                with contextlib.suppress(OSError):
                    ANSWERS[name](self)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("redirects", "no redirect is followed"),
        ("drips", "no whole answer within 1 seconds"),
        ("cuts", "cut off 67 bytes before its end"),
        ("nests", "no JSON object"),
        ("floods", "are the most that are taken"),
        ("misnumbers", "token_ids that are no list"),
        ("goes_beyond", "token id 31, outside the target's vocabulary of 31"),
        ("says_nothing", "can't be reached"),
    ],
)
def test_a_server_that_gives_no_answer_gets_no_verdict(
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    serve: Callable[[str], str],
    name: str,
    words: str,
) -> None:
    out = tmp_path / "out"
    chosen = ("--endpoint", serve(name), "--model", "tiny", "--timeout", 1 if name == "drips" else 60)
    line = refused(capsys, *command(folders, "verify", out, *chosen))
    assert words in line
    assert "secret" not in line
    assert not out.exists()


def test_names_of_others_are_no_markup_no_formula_and_no_escape(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], serve: Callable[[str], str]
) -> None:
    for name in ("[/bold] $\\frac{ :smile:", "$x^$ [red]", "a\x1b[2J"):
        chosen = ("--endpoint", serve("decodes"), "--model", name)
        assert sybil(*command(folders, "verify", tmp_path / "[/x]", *chosen)) == 0
        captured = capsys.readouterr()
        assert f"PASS: {name.replace(chr(27), chr(0xFFFD))} at http" in captured.out
        assert f"report: {tmp_path}/[/x]/" in captured.out
        assert captured.err == ""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"text": "abc", "id": "[/x]", "domain": "$_$ [/y]"}) + "\n")
    assert sybil(*command(folders, "compare", tmp_path / "[/x]", "--prompts", prompts)) == 0
    assert "[/x]" in capsys.readouterr().out


# --- what nobody foresaw


UNFORESEEN: list[BaseException] = [
    OSError(errno.ENOSPC, "No space left on device"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    UnicodeEncodeError("latin-1", "\u65e5", 0, 1, "ordinal not in range"),
    EOFError(),
    GeneratorExit(),
    SystemExit(0),
    SystemExit(1),
    SystemExit("PASS"),
    typer.Abort(),
    ZeroDivisionError("two\nlines \x1b[2J"),
    AssertionError("x" * 5000),
    BaseException(),
]


@every
def test_an_exception_that_nobody_foresaw_is_no_verdict(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("SYBIL_TRACEBACK", raising=False)
    places = {"compare": "sybil.measuring.compare.Comparison", "verify": "sybil.judging.decoders.load"}
    for error in UNFORESEEN:

        def raises(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(places.get(name, f"sybil.cli.{name}.load"), raises)
        line = refused(capsys, *command(folders, name, tmp_path / "out"))
        assert type(error).__name__ in line
        assert "SYBIL_TRACEBACK=1" in line
        assert len(line) < 700
    assert not (tmp_path / "out").exists()


def test_the_traceback_is_shown_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYBIL_TRACEBACK", "1")
    assert sybil("generate", "abc", "--pair", "nonesuch") == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("sybil: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("verify", "--quik"), "--quik"),
        (("verfy",), "verfy"),
        (("generate", "--gamma", "x"), "gamma is 'x'"),
        (("compare", "--out"), "--out"),
        (("generate", "a", "b"), "b"),
    ],
)
def test_a_usage_error_is_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(capsys, *arguments)


def test_no_command_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil() == 2
    captured = capsys.readouterr()
    assert "verify" in captured.out
    assert captured.err == "sybil: name a command (sybil --help)\n"


@pytest.mark.parametrize("name", ["compare", "verify"])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"text": ' + "[" * 100_000, "line 1 is no JSON"),
        ('{"text": "\\ud83d"}', "half a character"),
        ('{"text": "abc", "id": "a\\u001b[2J"}', "control character"),
        ('{"text": "abc", "id": ' + "9" * 5000 + "}", "line 1 is no JSON"),
    ],
)
def test_prompts_that_are_none(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, row: str, words: str
) -> None:
    (tmp_path / "odd.jsonl").write_text(row + "\n")
    line = refused(capsys, *command(folders, name, tmp_path / "out", "--prompts", tmp_path / "odd.jsonl"))
    assert words in line
    assert "odd.jsonl" in line


def test_rows_to_resume_that_are_nested(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": ' * 100_000 + "\n")
    line = refused(capsys, *command(folders, "compare", tmp_path / "out", "--resume", tmp_path / "rows.jsonl"))
    assert "no row of a comparison" in line


# --- what is written


@pytest.mark.parametrize(
    ("name", "failing", "left"),
    [("profile", 1, []), ("profile", 2, []), ("verify", 1, []), ("verify", 2, [".jsonl"]), ("verify", 3, [".jsonl"])],
)
def test_a_full_disk_leaves_no_half_report(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str,
    failing: int, left: list[str],
) -> None:  # fmt: skip
    """The report goes first, then the chart: with either goes the other. Answers that were kept before stay."""
    monkeypatch.setattr("sybil.losslessness.kept.EVERY", float("inf"))
    calls = []

    def full(_: int) -> None:
        calls.append(1)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device" in refused(capsys, *command(folders, name, tmp_path))
    assert len(calls) == failing
    assert [path.suffix for path in tmp_path.iterdir()] == left


@contextlib.contextmanager
def room(count: int) -> Iterator[None]:
    """No file may grow beyond count bytes: a write that would is cut short, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    files.replace(path, b"old")
    with room(100), pytest.raises(OSError, match="File too large"):
        files.replace(path, b"x" * 1000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_row_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    files.append(path, {"a": 1})
    with room(100), pytest.raises(OSError, match="No space left"):
        files.append(path, {"b": "x" * 1000})
    files.append(path, {"c": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"c": 3}]


def test_files_that_belong_together(tmp_path: Path) -> None:
    one, other = tmp_path / "a.json", tmp_path / "a.png"

    def write() -> None:
        with files.all_or_none(one, other):
            files.replace(one, b"{}")
            files.replace(other, b"x" * 1000)

    with room(100), pytest.raises(OSError, match="too large"):
        write()
    assert list(tmp_path.iterdir()) == []
    write()
    assert one.exists()
    assert other.exists()


# --- where it is said


FORKING = """
import gc, io, json, os, sys
import matplotlib.pyplot, scipy.stats, transformers.models.gpt2.modeling_gpt2
from sybil.cli.main import run
from sybil.losslessness import judge

def stream(number, mode, encoding, errors, unbuffered=False):
    try:
        os.fstat(number)
    except OSError:
        return None  # as Python has it where a descriptor is closed
    file = open(number, mode, closefd=False, buffering=0 if unbuffered else -1)
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, write_through=unbuffered)

gc.freeze()
for line in iter(sys.stdin.readline, ""):
    case = json.loads(line)
    child = os.fork()
    if not child:
        for number, where in enumerate(case["streams"]):
            if where == "closed":
                continue
            if where == "unread":
                out, descriptor = os.pipe()
                os.close(out)
            else:
                descriptor = os.open(where, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_TRUNC)
            os.dup2(descriptor, number)
            os.close(descriptor)
        for number, where in enumerate(case["streams"]):
            if where == "closed":
                os.close(number)
        sys.stdin = sys.__stdin__ = stream(0, "rb", case["encoding"], case["errors"])
        sys.stdout = sys.__stdout__ = stream(1, "wb", case["encoding"], case["errors"], case["unbuffered"])
        sys.stderr = sys.__stderr__ = stream(2, "wb", case["encoding"], "backslashreplace")
        sys.argv = ["sybil", *case["arguments"]]
        try:
            run()
        except SystemExit as end:  # what follows is Python's own end, without a second of tearing down
            status = end.code
        except BaseException:
            status = 1
        for each in (sys.stdout, sys.stderr):
            try:
                each and each.flush()
            except BaseException:
                status = 120
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Terminal:
    """Runs the command in a process of its own with whatever streams; the imports are made once for all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(
        self, *arguments: object, stdin: bytes = b"", stdout: str = "", stderr: str = "", encoding: str = "utf-8",
        errors: str = "strict", unbuffered: bool = False,
    ) -> tuple[int, bytes, str]:  # fmt: skip
        """The exit status, and what came out where the stream is a file. unbuffered: as `python -u` has it."""
        given, out, err = (self.folder / name for name in ("stdin", "stdout", "stderr"))
        given.write_bytes(stdin)
        for path in (out, err):
            path.write_bytes(b"")
        streams = [str(given), stdout or str(out), stderr or str(err)]
        case = {"arguments": [*map(str, arguments)], "streams": streams, "encoding": encoding, "errors": errors,
                "unbuffered": unbuffered}  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        return status, out.read_bytes(), err.read_text(errors="replace")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    started = Terminal(tmp_path_factory.mktemp("streams"))
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    assert started.process.wait(60) == 0


FULL, CLOSED, UNREAD = "/dev/full", "closed", "unread"


@pytest.mark.parametrize("stdout", [FULL, CLOSED, UNREAD])
def test_an_output_that_takes_nothing_gets_no_verdict(
    terminal: Terminal, folders: Path, tmp_path: Path, stdout: str
) -> None:
    for name, more in (("generate", ("--json",)), ("generate", ()), ("verify", ("--json",)), ("verify", ()),
                       ("compare", ())):  # fmt: skip
        status, _, err = terminal.run(*command(folders, name, tmp_path / "out", *more), stdout=stdout)
        assert status == 2
        assert err.startswith("sybil: standard output ")
        assert err.count("\n") == 1
    for path in tmp_path.glob("out/*"):  # whole ones only
        assert path.suffix in (".json", ".jsonl", ".png")


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("stdout", [FULL, CLOSED, UNREAD])
def test_an_output_that_takes_nothing_is_said_in_one_line(
    terminal: Terminal, folders: Path, tmp_path: Path, stdout: str, unbuffered: bool
) -> None:
    talk = ("--version",), ("--help",), ("verify", "--help"), (), command(folders, "generate", tmp_path)
    for arguments in talk:
        status, _, err = terminal.run(*arguments, stdout=stdout, unbuffered=unbuffered)
        assert status == 2
        assert err.startswith("sybil: standard output ")
        assert err.count("\n") == 1


@pytest.mark.parametrize("stderr", [FULL, CLOSED, UNREAD])
def test_an_error_output_that_takes_nothing_changes_no_exit(
    terminal: Terminal, folders: Path, tmp_path: Path, stderr: str
) -> None:
    assert terminal.run("generate", "abc", "--pair", "nonesuch", stderr=stderr)[0] == 2
    status, out, _ = terminal.run(*command(folders, "generate", tmp_path, "--json"), stderr=stderr)
    assert status == 0
    assert json.loads(out)["prompt"] == "abc"
    chosen = ("--decoder", "decoders:exits")
    assert terminal.run(*command(folders, "verify", tmp_path / "out", *chosen), stderr=stderr)[0] == 2


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_letters_that_the_terminal_can_not_print(
    terminal: Terminal, folders: Path, tmp_path: Path, encoding: str
) -> None:
    prompt = "abc \u65e5\u672c \u201cquoted\u201d \U0001f52e"
    arguments = command(folders, "generate", tmp_path)
    for more in ((), ("--json",)):
        status, out, err = terminal.run("generate", prompt, *arguments[2:], *more, encoding=encoding)
        assert (status, err) == (0, "")
        assert b"abc " in out
        if encoding == "utf-8" and not more:
            assert prompt in out.decode()
    out = tmp_path / "\u65e5\u672c"
    status, said, err = terminal.run(*command(folders, "verify", out), encoding=encoding)
    assert (status, err) == (0, "")
    assert b"PASS" in said
    assert len(list(out.iterdir())) == 3  # answers, report and chart
    status, _, err = terminal.run("generate", "abc", "--pair", prompt, encoding=encoding)
    assert status == 2
    assert err.count("\n") == 1
    assert terminal.run("--help", encoding=encoding)[0] == 0


@pytest.mark.parametrize(
    ("stdin", "encoding", "errors", "words"),
    [
        (b"ab\xff", "utf-8", "strict", "no UTF-8 text"),
        (b"ab\xff", "utf-8", "surrogateescape", "no UTF-8 text"),
        (b"\xff\xfea\x00b\x00", "utf-8", "strict", "no UTF-8 text"),
        (b"ab\xe9", "ascii", "strict", "no ASCII text"),
        (b"ab\xe9", "ascii", "surrogateescape", "no UTF-8 text"),
        (b"ab\xe9", "latin-1", "strict", ""),
        (b"ab\0\x1b", "utf-8", "strict", ""),
        (b"", "utf-8", "strict", "empty"),
    ],
)
def test_prompts_on_standard_input(
    terminal: Terminal, folders: Path, tmp_path: Path, stdin: bytes, encoding: str, errors: str, words: str
) -> None:
    arguments = command(folders, "generate", tmp_path)
    status, _, err = terminal.run("generate", *arguments[2:], stdin=stdin, encoding=encoding, errors=errors)
    assert status == (2 if words else 0)
    assert words in err
    assert err.count("\n") == (1 if words else 0)
