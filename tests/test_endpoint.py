"""A server of OpenAI's completions protocol under judgement: what it is asked, what is made of its answers, and that
nothing it sends takes more than its time and its memory, or learns or shows what is secret."""

from __future__ import annotations

import contextlib
import gzip
import re
import socket
import socketserver
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from serving import Good, completion, decoded, servers, subject_of
from tiny import gpt2, greedy, letters, prompts
from tokenizers import Tokenizer, decoders, models

from sybil.errors import EndpointFailed, InvalidSetting
from sybil.losslessness.answers import TEXT_ONLY
from sybil.losslessness.endpoint import EndpointSubject
from sybil.losslessness.samples import Request, Sample
from sybil.servers.transport import MOST_BYTES, Server, _address, _connection

PROMPTS = [prompt.tolist() for prompt in prompts([3, 7, 5, 9])]
GREEDY = Request(max_new_tokens=12, temperature=0.0)
SAMPLED = Request(max_new_tokens=12)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Good]]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with servers() as start:
        yield start


@pytest.mark.parametrize(
    "form",
    [
        lambda tokens: dict(token_ids=tokens, text="not looked at"),
        lambda tokens: dict(logprobs=dict(tokens=[f"token_id:{token}" for token in tokens]), text="not looked at"),
        lambda tokens: dict(token_ids=None, logprobs=dict(tokens=[letters().decode([token]) for token in tokens])),
    ],
    ids=["token_ids", "token_id: in logprobs", "texts in logprobs"],
)
def test_a_servers_tokens_are_those_it_drew(serve: Callable[..., Good], form: Callable[[list[int]], Any]) -> None:
    server = serve(lambda body: completion(**form(decoded(body))))
    subject = subject_of(server)
    assert subject.model == "tiny"
    samples = list(subject.sample(PROMPTS, GREEDY, 0))
    for sample in samples:
        assert list(sample.tokens) == greedy(gpt2(), torch.tensor(sample.prompt), 12)
        assert sample.doubt == ""
    one, same, other = (list(subject.sample(PROMPTS, SAMPLED, seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_what_a_server_is_asked(serve: Callable[..., Good], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve(lambda body: completion(token_ids=decoded(body)))
    subject = subject_of(server, "mine")
    list(subject.sample([[1, 2]], SAMPLED, 0))
    full = Request(
        max_new_tokens=3, temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, eos_token_ids=(4,), stop_strings=("x",)
    )
    list(subject.sample([[1, 2]], full, 0))
    plain, every = server.bodies[-2:]
    assert plain["model"] == "mine"
    assert plain["prompt"] == [1, 2]
    assert plain["ignore_eos"] is True
    assert plain["return_token_ids"] is True
    assert not plain.keys() & {"stop", "stop_token_ids"}
    assert (plain["top_k"], plain["min_p"], plain["repetition_penalty"]) == (-1, 0, 1)  # off, whatever the model has
    assert every["ignore_eos"] is False
    wanted = dict(max_tokens=3, temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, stop_token_ids=[4], stop=["x"])
    assert wanted.items() <= every.items()
    assert server.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("choice", "request_", "doubt"),
    [
        (dict(token_ids=[1, 2], finish_reason="length"), GREEDY, "cut an answer off .*'length'"),
        (dict(token_ids=[1, 2], finish_reason="abort"), GREEDY, "cut an answer off .*'abort'"),
        (dict(token_ids=[1, 2, 3, 4], finish_reason="stop"), replace(GREEDY, eos_token_ids=(2,)), "may not know"),
        (
            dict(token_ids=[1, 0, 3, 0], finish_reason="stop"),
            replace(GREEDY, eos_token_ids=(0,)),
            "^$",
        ),  # its own: a fault
        (dict(logprobs=[1], text="\ud83d"), GREEDY, "half a character"),
    ],
)
def test_answers_that_can_t_be_judged(
    serve: Callable[..., Good], choice: dict[str, Any], request_: Request, doubt: str
) -> None:
    subject = EndpointSubject(Server(serve(lambda body: completion(**choice)).url), None, letters(), frozenset({0}))
    (sample,) = subject.sample([[1, 2]], request_, 0)
    assert re.search(doubt, sample.doubt)


def test_text_alone_leaves_a_doubt(serve: Callable[..., Good]) -> None:
    def text(body: dict[str, Any]) -> Any:
        return completion(text=letters().decode(decoded(body)))

    (sample,) = subject_of(serve({"/v1/completions": text})).sample([[1, 2]], GREEDY, 0)
    assert list(sample.tokens) == greedy(gpt2(), torch.tensor([1, 2]), 12)
    assert sample.doubt == TEXT_ONLY

    def miscounted(body: dict[str, Any]) -> Any:
        return text(body) | {"usage": {"completion_tokens": 9}}

    (sample,) = subject_of(serve({"/v1/completions": miscounted})).sample([[1, 2]], GREEDY, 0)
    assert "12 tokens where it counts 9" in sample.doubt

    (sample,) = subject_of(serve({"/v1/completions": lambda body: completion(text="abÿ")})).sample([[1]], GREEDY, 0)
    assert "doesn't survive" in sample.doubt


def test_texts_that_several_tokens_share_are_not_taken_for_one(serve: Callable[..., Good]) -> None:
    merging = Tokenizer(models.WordLevel({"a": 0, "▁a": 1, "b": 2}, unk_token="a"))
    merging.decoder = decoders.Metaspace()
    assert merging.decode([0]) == merging.decode([1]) == "a"
    server = serve(lambda body: completion(logprobs=dict(tokens=["b", "a"]), text="b"))
    (sample,) = EndpointSubject(Server(server.url), None, merging).sample([[0]], GREEDY, 0)
    assert sample.tokens == (2,)
    assert sample.doubt == TEXT_ONLY


def test_a_server_that_ends_without_saying_at_what(serve: Callable[..., Good]) -> None:
    server = serve(lambda body: completion(token_ids=[3, 4], finish_reason="stop"))
    subject = subject_of(server)
    doubts = [
        sample.doubt
        for request in (
            Request(max_new_tokens=5, eos_token_ids=(4,)),
            Request(max_new_tokens=5, stop_strings=("d",)),
            Request(max_new_tokens=5, eos_token_ids=(9,)),
            Request(max_new_tokens=5, stop_strings=("xyz",)),
            SAMPLED,
        )
        for sample in subject.sample([[1]], request, 0)
    ]
    assert doubts[:2] == ["", ""]
    assert all("stopped" in doubt for doubt in doubts[2:])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((500, {"error": {"message": "no such thing\nat all"}}), ["500", "no such thing:"]),
        ((404, {"message": "lost"}), ["404", "lost"]),
        ((400, {"error": "plain"}), ["400", "plain"]),
        ((503, b"<html>busy"), ["503", "<html>busy"]),
        ((401, b""), ["401", "no message"]),
        (b"<html>hello", ["no JSON object", "<html>hello", "/v1"]),
        ([1, 2], ["no JSON object"]),
        ({"object": "x"}, ["without choices", "object"]),
        ({"choices": []}, ["without choices"]),
        ({"choices": [{"message": {}}]}, ["neither tokens nor text", "message"]),
    ],
)
def test_a_server_that_fails(serve: Callable[..., Good], answer: Any, words: list[str]) -> None:
    server = serve(lambda body: answer)
    with pytest.raises(EndpointFailed) as caught:
        list(subject_of(server).sample([[1]], GREEDY, 0))
    for word in [server.url, *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    another_path = isinstance(answer, dict) or (isinstance(answer, tuple) and answer[0] in (400, 404))
    assert (len(server.bodies) > 1) == another_path  # of anything else nothing is tried again


def test_no_server_no_url_and_no_single_model(serve: Callable[..., Good]) -> None:
    with pytest.raises(EndpointFailed, match="can't be reached"):
        EndpointSubject(Server("http://127.0.0.1:9/v1"), None, letters())
    with pytest.raises(EndpointFailed, match="give a URL"):
        Server("localhost:8000")
    two = serve(lambda body: {}, models={"data": [{"id": "a"}, {"id": "b"}]})
    with pytest.raises(EndpointFailed, match=r"2 models \(a, b\).*--model"):
        subject_of(two)


# --- servers that do harm


class Raw:
    """A server that says to each request whatever script writes. asked: the heads of the requests; sent: bytes that
    went out."""

    def __init__(self, script: Callable[[Raw, socket.socket], None]) -> None:
        self.asked: list[bytes] = []
        self.sent = 0
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(20)
                head = b""
                with contextlib.suppress(OSError):
                    while b"\r\n\r\n" not in head and (piece := self.request.recv(2**16)):
                        head += piece
                    outer.asked.append(head)
                    self.read_body(head)
                    script(outer, self.request)

            def read_body(self, head: bytes) -> None:
                """What is left unread when the connection closes would reset it, and the answer be lost with it."""
                said = re.search(rb"Content-Length: (\d+)", head)
                left = int(said[1]) - len(head.partition(b"\r\n\r\n")[2]) if said else 0
                while left > 0 and (piece := self.request.recv(2**16)):
                    left -= len(piece)

        self.tcp = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.tcp.daemon_threads = True
        self.port = self.tcp.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.tcp.serve_forever, args=(0.01,), daemon=True).start()

    def send(self, connection: socket.socket, content: bytes) -> None:
        connection.sendall(content)
        self.sent += len(content)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Raw]]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers: list[Raw] = []

    def start(script: Callable[[Raw, socket.socket], None] | bytes) -> Raw:
        if isinstance(script, bytes):
            content = script
            servers.append(Raw(lambda server, connection: server.send(connection, content)))
        else:
            servers.append(Raw(script))
        return servers[-1]

    yield start
    for server in servers:
        server.tcp.shutdown()
        server.tcp.server_close()


def refusal(url: str, timeout: float = 60, within: float = 30) -> str:
    """The one line that an answer gets which is none, in time."""
    began = time.monotonic()
    with pytest.raises(EndpointFailed) as caught:
        list(EndpointSubject(Server(url, timeout), "tiny", letters()).sample([[1]], GREEDY, 0))
    assert time.monotonic() - began < within
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 700
    assert url in line
    return line


OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = b'{"choices": [{"token_ids": [1, 2], "finish_reason": "stop"}]}'


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300, 304])
def test_no_redirect_is_followed_and_no_key_goes_with_it(
    serve: Callable[..., Good], monkeypatch: pytest.MonkeyPatch, hostile: Callable[..., Raw], status: int
) -> None:
    elsewhere = hostile(OK + b"\r\n" + WHOLE)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = hostile(f"HTTP/1.1 {status} Moved\r\nLocation: {elsewhere.url}/completions\r\n\r\n".encode())
    assert f"answered {status} Moved, and no redirect is followed" in refusal(server.url)
    assert b"Authorization: Bearer sk-secret" in server.asked[0]
    with pytest.raises(EndpointFailed, match=f"/models answered {status} Moved"):
        EndpointSubject(Server(server.url), None, letters())
    assert elsewhere.asked == []


@pytest.mark.parametrize("letter", "\n\r\0\t é\x7f\u2019\udc80")
def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch: pytest.MonkeyPatch, letter: str) -> None:
    for key in (f"sk-se{letter}cret", f"sk-secret{letter}", f"{letter}sk-secret", f"sk-secret{letter}X-Evil: 1"):
        monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": key})  # some of them no environment holds
        with pytest.raises(EndpointFailed, match="OPENAI_API_KEY holds") as caught:
            Server("http://127.0.0.1:9/v1")
        assert "secret" not in str(caught.value)
        assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@127.0.0.1:9/v1",
        "https://hunter2@127.0.0.1:9/v1",
        "http://user:hun?ter2@127.0.0.1:9/v1",
        "http://user:hun#ter2@127.0.0.1:9/v1",
        "http://us@er:hunter2@127.0.0.1:9/v1",
        "user:hunter2@127.0.0.1:9/v1",
        "http:/user:hunter2@127.0.0.1:9",
        "http://127.0.0.1:9/v1?api_key=hunter2",
        "http://127.0.0.1:9/v1#hunter2",
        "http://user:hunter2@[::1/v1",
        "\nhttp://user:hunter2@127.0.0.1\n",
    ],
)
def test_a_url_with_something_secret_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(EndpointFailed, match="endpoint holds one of") as caught:
        Server(url)
    assert "hun" not in str(caught.value)
    assert "user" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "", "http://", "http:///v1", "ftp://127.0.0.1/v1", "file:///etc/passwd", "http://127.0.0.1:port/v1",
        "http://127.0.0.1:99999/v1", "http://[::1/v1", "http://127.0.0.1/v 1", "http://127.0.0.1/v1\r\nX: y",
        "http://127.0.0.1/\x1b[2J", "http://münchen.example/v1", "javascript:alert(1)", "//127.0.0.1/v1",
    ],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(EndpointFailed, match="give a URL such as") as caught:
        Server(url)
    assert str(caught.value).isprintable()


def test_urls_that_are_one() -> None:
    for url, wanted in {
        "http://[::1]:8000/v1": ("::1", 8000, "http://[::1]:8000/v1"),
        "HTTP://Host:80/a/v1//": ("Host", 80, "http://Host:80/a/v1"),
        "https://host": ("host", 443, "https://host"),
        "https://[::1]/v1": ("::1", 443, "https://[::1]/v1"),
    }.items():
        connection = _connection(_address(url), 1)
        assert (connection.host, connection.port, Server(url).url) == wanted


def test_a_key_that_a_server_gives_back_is_not_shown(
    serve: Callable[..., Good], hostile: Callable[..., Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    said = "wrong key sk-secret, sk-secret"
    for answer in ((401, {"error": {"message": said}}), (401, said.encode()), {said: 1}, said.encode(),
                   {"choices": [{said: 1}]}):  # fmt: skip
        assert "secret" not in refusal(serve(lambda body, answer=answer: answer).url)
    assert "secret" not in refusal(hostile(f"HTTP/1.1 500 {said}\r\n\r\n".encode()).url)
    assert "secret" not in refusal(hostile(f"{said}\r\n\r\n".encode()).url)
    padded = b"x" * 55 + b"sk-secret"  # of which only a part would be shown
    assert "sk-" not in refusal(hostile(OK + b"\r\n" + padded).url)
    models = serve(lambda body: completion(token_ids=[1], finish_reason=said), models={"data": [{"id": said}]})
    subject = subject_of(models)
    assert "secret" not in subject.name
    (sample,) = subject.sample([[1]], GREEDY, 0)
    assert "cut an answer off" in sample.doubt
    assert "secret" not in sample.doubt


def test_what_a_server_says_is_shown_bounded_and_harmless(
    serve: Callable[..., Good], hostile: Callable[..., Raw]
) -> None:
    said = "\x1b[2J\x1b]0;owned\x07 no\u202ething\u2028 \ud800" + "x" * 100_000
    for answer in ((500, {"error": {"message": said}}), (500, {"error": said}), (500, said.encode("utf-8", "replace")),
                   (500, b"[" * 100_000), (500, {"error": {"message": {"a": 1}}}), (500, {"error": [said]}),
                   (500, "\x1b"), {said: 1}, said.encode("utf-8", "replace"), {"choices": [{said: 1}]}):  # fmt: skip
        refusal(serve(lambda body, answer=answer: answer).url)
    for head in (b"HTTP/1.1 500 \x1b[2J\x9b1m" + b"x" * 60_000, b"\x1b[2J" + b"x" * 60_000, b"HTTP/1.1 \x1b[2J OK"):
        refusal(hostile(head + b"\r\n\r\n").url)
    subject = subject_of(serve(lambda body: completion(token_ids=[1], finish_reason=said),
                               models={"data": [{"id": said}]}))  # fmt: skip
    (sample,) = subject.sample([[1]], GREEDY, 0)
    for text in (subject.name, sample.doubt):
        assert text.isprintable()
        assert len(text) < 400
    for served in ([said, said], [1, None], [], [""], ["a", said]):
        with pytest.raises(EndpointFailed, match=r"/models names \d models") as caught:
            subject_of(serve(lambda body: {}, models={"data": [{"id": each} for each in served]}))
        assert str(caught.value).isprintable()


def drip(*pieces: bytes) -> Callable[[Raw, socket.socket], None]:
    """The pieces one after the other, the last again and again, with far less than a deadline between them."""

    def script(server: Raw, connection: socket.socket) -> None:
        for piece in pieces[:-1]:
            server.send(connection, piece)
        for _ in range(2000):
            server.send(connection, pieces[-1])
            time.sleep(0.02)

    return script


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",),
        (b"H",),
        (OK, b"x"),
        (OK, b"X-Header: y\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n",),
        (OK, b"Content-Length: 1000000\r\n\r\n", b" "),
        (OK, b"\r\n", b" "),
        (OK, b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (OK, b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (OK, b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 100 + b"\r\n"),
        (OK, b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Trailer: y\r\n"),
        (b"HTTP/1.1 500 Slow\r\n\r\n", b"x"),
    ],
)
def test_a_server_that_drips_is_cut_off_at_one_deadline(hostile: Callable[..., Raw], pieces: tuple[bytes, ...]) -> None:
    before = threading.active_count()
    server = hostile(drip(*pieces))
    line = refusal(server.url, timeout=0.3, within=10)
    assert "within 0.3 seconds" in line or "gave no whole answer" in line
    ends = time.monotonic() + 10
    while threading.active_count() > before + 2 and time.monotonic() < ends:  # the server's own two
        time.sleep(0.01)
    assert threading.active_count() <= before + 2


def test_a_server_that_takes_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        assert "no whole answer within 0.3 seconds" in refusal(url, timeout=0.3, within=10)


@pytest.mark.parametrize(
    "head", [b"Content-Length: 100000000\r\n", b"", b"Transfer-Encoding: chunked\r\n"], ids=["length", "none", "chunks"]
)
@pytest.mark.parametrize("status", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 No\r\n"])
def test_a_hundred_megabytes_are_not_taken(hostile: Callable[..., Raw], head: bytes, status: bytes) -> None:
    def script(server: Raw, connection: socket.socket) -> None:
        server.send(connection, status + head + b"\r\n")
        piece = b" " * 2**20
        for _ in range(100):
            server.send(connection, b"100000\r\n" + piece + b"\r\n" if b"chunked" in head else piece)

    tracemalloc.start()
    try:
        server = hostile(script)
        assert str(MOST_BYTES) in refusal(server.url)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()
    assert server.sent < 50e6


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 1000\r\n\r\n" + WHOLE,
        OK + b"Content-Length: 20\r\n\r\n" + WHOLE,
        OK + b"Content-Length: 0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n" + WHOLE,
        OK + b"Transfer-Encoding: chunked\r\n\r\n3d\r\n" + WHOLE + b"\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + WHOLE,
        OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + WHOLE,
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 300 + b"\r\n" + WHOLE,
        OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(WHOLE),
        OK,
        b"",
        b"HTTP/1.1",
        b"HTTP/9.9 200 OK\r\n\r\n" + WHOLE,
        b"HTTP/1.1 2000 OK\r\n\r\n" + WHOLE,
        b"HTTP/1.1 OK\r\n\r\n" + WHOLE,
        b"HTTP/1.1 204 None\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        OK + b"X: y\r\n" * 200 + b"\r\n" + WHOLE,
        OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n" + WHOLE,
        OK + b"\r\n" + WHOLE[:-3],
        OK + b"\r\n" + WHOLE + b"]",
        OK + b"\r\n" + WHOLE.replace(b"1, 2", b"NaN"),
        OK + b"\r\n" + WHOLE.replace(b"}]", b', "x": -Infinity}]'),
        OK + b"\r\n" + WHOLE.replace(b"1, 2", b"1" * 5000),
        OK + b"\r\n" + WHOLE.replace(b"1, 2", b"1" * 4000),
        OK + b"\r\n" + WHOLE.replace(b"1, 2", b"[" * 1000 + b"]" * 1000),
        OK + b"\r\n" + b"[" * 1_000_000,
        OK + b"\r\n" + b'{"a":' * 1_000_000,
        OK + b"\r\n" + WHOLE.replace(b"1, 2", b"[" * 100_000 + b"]" * 100_000),
        OK + b"\r\n\xff\xfe" + WHOLE,
        OK + b"\r\n\0" + WHOLE,
    ],
)
def test_answers_that_are_cut_off_broken_or_nested(hostile: Callable[..., Raw], answer: bytes) -> None:
    refusal(hostile(answer).url)


@pytest.mark.parametrize(
    "ids",
    [
        [-1], [2**31], [2**63], [2**70], [10**4000], [1.0], [True], ["1"], [[1]], [None], {"1": 1}, "12", 1, True,
        [1] * 100_001,
    ],
)  # fmt: skip
def test_token_ids_that_are_none(serve: Callable[..., Good], ids: Any) -> None:
    line = refusal(serve(lambda body: completion(token_ids=ids)).url)
    assert "token_ids that are no list" in line or "more than 100000 tokens" in line


@pytest.mark.parametrize(
    "piece", ["token_id:" + "9" * 5000, "token_id:-1", "token_id:٣", "token_id:4294967296", "x" * 9]
)
def test_tokens_of_logprobs_that_are_none_are_not_taken(serve: Callable[..., Good], piece: str) -> None:
    server = serve(lambda body: completion(logprobs=dict(tokens=[piece]), text="ab"))
    (sample,) = subject_of(server).sample([[1]], GREEDY, 0)
    assert sample.tokens == (1, 2)
    assert sample.doubt == TEXT_ONLY


ODD = [None, True, 0, -1, 2**70, 10**4000, 1.5, 1e308, "", "x", "\ud800", [], [[]], [None], [1, "a"], {}, {"a": 1}]


def test_wrong_types_everywhere_are_an_answer_or_one_error(serve: Callable[..., Good]) -> None:
    whole = completion(token_ids=[1], logprobs={"tokens": ["a"]}, text="a") | {"usage": {"completion_tokens": 1}}
    answers: list[Any] = []
    for odd in ODD:
        answers += [whole | {name: odd} for name in whole]
        answers += [whole | {"choices": [odd]}, whole | {"usage": {"completion_tokens": odd}}]
        for forms in ({}, {"token_ids": None}, {"token_ids": None, "logprobs": None}):
            for name in ("token_ids", "logprobs", "text", "finish_reason"):
                answers.append(completion(**{"text": "a", "logprobs": {"tokens": ["a"]}, **forms, name: odd}))
        answers.append(completion(logprobs={"tokens": odd}, text="a"))
        answers.append(completion(logprobs={"tokens": [odd]}, text="a"))
    left = iter(answers)
    server = serve(lambda body: whole)
    subject = subject_of(server)
    server.answers = lambda body: next(left)
    samples, refusals = list[Sample](), list[str]()
    for _ in answers:
        try:
            samples += subject.sample([[1]], GREEDY, 0)
        except EndpointFailed as error:
            refusals.append(str(error))
    assert samples
    assert refusals
    assert all(type(token) is int and 0 <= token < 2**31 for sample in samples for token in sample.tokens)
    assert all(text.isprintable() for text in [*refusals, *(sample.doubt for sample in samples)])


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_timeout_out_of_range(timeout: float) -> None:
    with pytest.raises(InvalidSetting, match="timeout is"):
        Server("http://127.0.0.1:9/v1", timeout)


def test_a_proxy_learns_neither_key_nor_prompt(
    serve: Callable[..., Good], hostile: Callable[..., Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    proxy = hostile(b"HTTP/1.1 403 No \x1b[2J\r\n\r\n")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://user:hunter2@127.0.0.1:{proxy.port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = serve(lambda body: completion(token_ids=[1]))
    monkeypatch.delenv("no_proxy", raising=False)
    list(subject_of(server).sample([[1]], GREEDY, 0))
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert proxy.asked == []
    line = refusal("https://model.example/v1")
    assert "can't be reached (Tunnel connection failed: 403 No" in line
    assert "hunter2" not in line
    (head,) = proxy.asked
    assert head.startswith(b"CONNECT model.example:443 HTTP/1.")
    assert b"Proxy-Authorization: Basic dXNlcjpodW50ZXIy" in head
    assert b"secret" not in head
    monkeypatch.setenv("no_proxy", "*")
    assert "can't be reached" in refusal("https://127.0.0.1:9/v1")
    assert len(proxy.asked) == 1
    monkeypatch.delenv("no_proxy")
    for odd in ("http://user:hunter2@", "http://user:hunter2@proxy:port", "http://[::1", "http://user:hunter2@:80"):
        monkeypatch.setenv("https_proxy", odd)
        with pytest.raises(EndpointFailed) as caught:
            Server("https://model.example/v1", 1).ask("/models")
        assert "hunter2" not in str(caught.value)
