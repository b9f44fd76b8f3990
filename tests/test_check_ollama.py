"""`sybil check --ollama` against a small server that speaks Ollama's API, and against hostile ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tiny import sybil

from sybil.checking import ollama
from sybil.errors import SybilError

TAGS: dict[str, Any] = {
    "models": [
        {
            "name": "llama3:8b", "model": "llama3:8b", "size": 4_661_224_676, "digest": "a" * 64,
            "details": {"format": "gguf", "family": "llama", "parameter_size": "8.0B", "quantization_level": "Q4_0"},
        },
        {
            "name": "embedder:latest", "size": 45_000_000,
            "details": {"family": "bert", "parameter_size": "23M", "quantization_level": "F16"},
        },
        {"name": "tiny:latest", "size": 98_000_000, "details": {"family": "llama", "quantization_level": "Q4_1"}},
    ]
}  # fmt: skip
SHOWN: dict[str, Any] = {
    "llama3:8b": {
        "model_info": {"general.architecture": "llama", "llama.context_length": 8192}, "capabilities": ["completion"],
    },
    "embedder:latest": {"model_info": {"general.architecture": "bert"}, "capabilities": ["embedding"]},
    "tiny:latest": {"model_info": {"general.architecture": "llama", "general.parameter_count": 134_515_008}},
}  # fmt: skip
Reply = Callable[[str, dict[str, Any]], Any]


def replied(path: str, body: dict[str, Any]) -> Any:
    """What Ollama answers."""
    if path == "/api/tags":
        return TAGS
    if path == "/api/show":
        return SHOWN.get(body.get("model", ""), (404, {"error": "model not found"}))
    if path == "/api/generate":
        return {"model": body["model"], "response": " jumps over", "done": True, "eval_count": 3}
    return 404, {}


class Speaking:
    """A server with such replies; an exchange is (path, body)."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.heard, self.headers = reply, [], []  # type: ignore[var-annotated]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer({})

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body: dict[str, Any]) -> None:
                outer.heard.append((self.path, body))
                outer.headers.append(dict(self.headers))
                reply = outer.reply(self.path, body)
                status, content = reply if isinstance(reply, tuple) else (200, reply)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def speaking() -> Iterator[Callable[[Reply], Speaking]]:
    started: list[Speaking] = []

    def start(reply: Reply) -> Speaking:
        started.append(Speaking(reply))
        return started[-1]

    yield start
    for each in started:
        each.http.shutdown()
        each.http.server_close()


def test_models_are_listed_and_one_is_asked(
    speaking: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-key")
    served = speaking(replied)
    assert sybil("check", "--ollama", served.url) == 0
    out = capsys.readouterr().out
    lines = {line.split("|")[1].strip(): line for line in out.splitlines() if line.startswith("| ")}
    assert [name for name in lines if "http" not in name] == ["embedder:latest", "tiny:latest", "llama3:8b"]
    for said in ("8.0B", "Q4_0", "4.66", "llama", "knows it"):
        assert said in lines["llama3:8b"]
    assert "135M" in lines["tiny:latest"]
    assert "doesn't" in lines["embedder:latest"]
    assert "tiny:latest: 3 tokens in" in out
    assert "' jumps over'" in out
    assert "no distributions" in out
    assert [path for path, _ in served.heard][-1] == "/api/generate"
    assert served.heard[-1][1]["model"] == "tiny:latest"
    assert served.heard[-1][1]["options"]["num_predict"] == ollama.NEW_TOKENS
    assert not any("Authorization" in headers for headers in served.headers)


def test_a_model_is_named_or_none_is_asked(speaking: Any, capsys: pytest.CaptureFixture[str]) -> None:
    served = speaking(replied)
    assert sybil("check", "--ollama", served.url, "--model", "llama3:8b") == 0
    assert "llama3:8b: 3 tokens" in capsys.readouterr().out
    assert sybil("check", "--ollama", served.url, "--model", "tiny") == 0
    assert "tiny:latest: 3 tokens" in capsys.readouterr().out
    served.heard.clear()
    assert sybil("check", "--ollama", served.url, "--no-run", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert not any(path == "/api/generate" for path, _ in served.heard)
    assert record["answer"] is None
    assert record["distributions"] is False
    assert [(each["name"], each["known"], each["completes"]) for each in record["models"]] == [
        ("embedder:latest", False, False), ("tiny:latest", True, True), ("llama3:8b", True, True),
    ]  # fmt: skip
    assert record["models"][2]["context"] == 8192


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert sybil("check", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("sybil: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_each_error_is_one_line(speaking: Any, capsys: pytest.CaptureFixture[str]) -> None:
    served = speaking(replied)
    assert "model is 'nonesuch', and Ollama has embedder:latest" in refused(
        capsys, "--ollama", served.url, "--model", "nonesuch"
    )
    served.http.shutdown()
    served.http.server_close()
    line = refused(capsys, "--ollama", served.url)
    assert "can't be reached" in line
    assert "ollama serve" in line
    assert "ollama is 'http://a b:11434', with a blank" in refused(capsys, "--ollama", "http://a b")
    assert "ollama holds one of @" in refused(capsys, "--ollama", "http://me:secret@host")
    assert "secret" not in refused(capsys, "--ollama", "http://me:secret@host")
    assert "model is given without --ollama" in refused(capsys, "stdlib", "--model", "tiny")
    assert "no target is given" in refused(capsys)


def test_a_server_without_models(speaking: Any, capsys: pytest.CaptureFixture[str]) -> None:
    served = speaking(lambda path, body: {"models": []})
    assert sybil("check", "--ollama", served.url) == 0
    assert "has no models: `ollama pull` one" in capsys.readouterr().out


def test_a_model_that_is_gone_or_an_older_server_is_listed(speaking: Any) -> None:
    served = speaking(lambda path, body: TAGS if path == "/api/tags" else (404, {"error": "not found"}))
    found = ollama.models(ollama.server(served.url))
    assert [(each.name, each.architecture) for each in found][-1] == ("llama3:8b", "llama")
    assert all(each.completes for each in found)


ODD: tuple[Any, ...] = (
    None, [], {}, True, float("nan"), 10**400, "\x1b[2J\n" * 99, ["x"] * 3,
)  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:12])
def test_hostile_answers_are_read_or_refused_in_one_line(odd: Any, speaking: Any, capsys: Any) -> None:
    def at(*path: str) -> Reply:
        """Ollama's answers with something odd in one place."""

        def reply(asked: str, body: dict[str, Any]) -> Any:
            answer = replied(asked, body)
            if asked != path[0]:
                return answer
            if len(path) == 1:
                return json.dumps(odd).encode()
            answer = json.loads(json.dumps(answer))
            inner = answer
            for key in path[1:-1]:
                inner = inner[0].setdefault(key, {}) if isinstance(inner, list) else inner[key]
            (inner[0] if isinstance(inner, list) else inner)[path[-1]] = odd
            return answer

        return reply

    for place in (
        ("/api/tags",), ("/api/tags", "models"), ("/api/tags", "models", "name"), ("/api/tags", "models", "size"),
        ("/api/tags", "models", "details"), ("/api/show",), ("/api/show", "model_info"), ("/api/generate",),
        ("/api/generate", "response"), ("/api/generate", "eval_count"), ("/api/generate", "error"),
    ):  # fmt: skip
        served = speaking(at(*place))
        status = sybil("check", "--ollama", served.url)
        captured = capsys.readouterr()
        assert status in (0, 2), place
        assert "\x1b" not in captured.out + captured.err
        assert captured.err.count("\n") == (status == 2)
        assert "unforeseen" not in captured.err, (place, captured.err)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>not Ollama</html>", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b'{"models": ' + b" " * 5_000_000 + b"[]}", "are the most that are taken"),
        (json.dumps({"models": [{"name": "a"}] * 300}).encode(), "at most 200"),
        ((500, b"{}"), "answered 500"),
        ((302, b""), "no redirect is followed"),
        ((503, b'{"error": "busy"}'), "busy"),
    ],
    ids=str,
)
def test_what_is_no_ollama_is_refused(content: Any, said: str, speaking: Any) -> None:
    served = speaking(lambda path, body: content)
    with pytest.raises(SybilError, match=said) as raised:
        ollama.models(ollama.server(served.url))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "variable", "url"),
    [
        (None, "", "http://127.0.0.1:11434"),
        (None, "0.0.0.0", "http://127.0.0.1:11434"),
        (None, "box:80", "http://box:80"),
        (None, ":5000", "http://127.0.0.1:5000"),
        (None, "https://far.example", "https://far.example"),
        ("box", "other", "http://box:11434"),
        ("http://[::1]", "", "http://[::1]:11434"),
        ("http://box/under/path/", "", "http://box/under/path"),
    ],
)
def test_where_a_server_is_looked_for(
    given: str | None, variable: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ollama.HOST, variable)
    assert ollama.server(given).url == url
