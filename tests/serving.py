"""Completions servers of this process, in which a tiny model speaks the protocols that real servers do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tiny import gpt2, letters

from sybil.losslessness.endpoint import EndpointSubject
from sybil.losslessness.samples import Request
from sybil.losslessness.subjects import TransformersSubject
from sybil.servers.transport import Server

ONE = threading.Lock()
"""transformers draws from torch's single generator, so answers at the same time would take each other's numbers."""
Answer = Callable[[dict[str, Any]], Any]
"""The reply to a body. Bytes are sent as they are; (status, reply) sets another status."""


class Good:
    """A server. answers: one for every path, or answers by path, any other path being 404. metrics: the text at
    /metrics. bodies, paths, headers: what was sent to the server."""

    def __init__(self, answers: Answer | Mapping[str, Answer], models: Any = None, metrics: Any = None) -> None:
        self.answers, self.metrics = answers, metrics
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        served = models or {"data": [{"id": "tiny"}]}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                metrics = outer.metrics() if callable(outer.metrics) else outer.metrics
                self.reply(served if self.path != "/metrics" else (404, {}) if metrics is None else metrics)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                outer.paths.append(self.path)
                outer.headers.append(dict(self.headers))
                answers = outer.answers
                answer = answers if callable(answers) else answers.get(self.path, lambda body: (404, {}))
                self.reply(answer(body))

            def reply(self, reply: Any) -> None:
                if reply is None:  # the connection is broken off
                    self.close_connection = True
                    return
                status, content = reply if isinstance(reply, tuple) else (200, reply)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@contextmanager
def servers() -> Iterator[Callable[..., Good]]:
    """What starts servers. All of them end together."""
    started: list[Good] = []

    def start(*arguments: Any, **named: Any) -> Good:
        started.append(Good(*arguments, **named))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            server.http.shutdown()
            server.http.server_close()


def subject_of(server: Good, model: str | None = None, timeout: float = 60, **settings: Any) -> EndpointSubject:
    return EndpointSubject(Server(server.url + "/", timeout), model, letters(), **settings)


def said(prompt: list[int], request: Request, seed: int = 0) -> list[int]:
    """The tokens that the tiny target generates."""
    with ONE:
        return list(_said(tuple(prompt), request, seed))


@lru_cache(None)
def _said(prompt: tuple[int, ...], request: Request, seed: int) -> tuple[int, ...]:
    (sample,) = TransformersSubject(gpt2(), letters()).sample([prompt], request, seed)
    return sample.tokens


def decoded(body: dict[str, Any]) -> list[int]:
    """The tokens that the tiny target generates for a request of OpenAI's protocol, with vLLM's end tokens."""
    eos = () if body.get("ignore_eos") else tuple(body.get("stop_token_ids", ()))
    stops = tuple(body.get("stop", ()))
    request = Request(
        max_new_tokens=body["max_tokens"], temperature=body["temperature"], eos_token_ids=eos, stop_strings=stops
    )
    return said(body["prompt"], request, body.get("seed", 0))


def completion(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": "length", **choice}]}
