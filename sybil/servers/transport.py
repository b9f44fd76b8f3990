"""Gets JSON answers from a server, bounded in time and size. Secrets go to no other host and aren't shown."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, NoReturn
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from sybil.errors import EndpointFailed, EndpointLost, EndpointRefused, one_line
from sybil.servers import headers as own
from sybil.servers.deadline import TIMEOUT, checked, started


@dataclass(frozen=True, slots=True)
class ServerKind:
    """The words for a kind of server in messages. named: what gave its URL. option: the option for the URL. example:
    such a URL. what: what has to answer there. key: the environment variable of its key, None if no key is sent.
    slow: what helps if the server is slow."""

    named: str
    option: str
    example: str
    what: str
    key: str | None
    slow: str


KEY = "OPENAI_API_KEY"
OPENAI = ServerKind(
    "endpoint",
    "--endpoint",
    "http://127.0.0.1:8000/v1",
    "an OpenAI-compatible server, up to /v1",
    KEY,
    "raise --timeout",
)
MOST_BYTES = 2**22  # of one answer; a token with its logprobs takes one or two hundred bytes
BUSY = {429, 502, 503, 504}  # statuses of a server, or of a proxy before it, that may answer later

Said = tuple[int, str, bytes]
"""An answer's HTTP status, its reason phrase, and its content."""


class Server:
    """A server that answers in JSON. url: of the kind's form, without a user name or password.

    The kind's key, if it is set, is sent to that host and to no other: redirects aren't followed. Of the environment's
    proxies only https_proxy is used, as a tunnel through which the key goes encrypted. Plain http goes to the host
    itself.

    timeout: seconds for a whole answer, from looking up the host to the last byte. headers: lines such as "Name:
    value", which are sent like the key; an Authorization header replaces the key. Raises EndpointFailed."""

    def __init__(
        self, url: str, timeout: float = TIMEOUT, headers: Iterable[str] = (), kind: ServerKind = OPENAI
    ) -> None:
        self.kind, self.address = kind, _address(url, kind)
        self.url = self.address.geturl()
        self.root = self.url.removesuffix("/v1")  # where a server has its own protocol besides OpenAI's
        self.timeout, given = checked(timeout), own.parsed(headers)
        secret = _key(kind.key) if kind.key else ""
        self._hidden = {**({secret: str(kind.key)} if secret else {}), **own.secrets(given)}
        key = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.headers = given if "authorization" in map(str.lower, given) else {**key, **given}

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object of the server's answer. Without a body the request is a GET. path: appended to url."""
        return self.begin(self.url + path, body).answer()

    def begin(self, url: str, body: Mapping[str, Any] | None = None, timeout: float | None = None) -> Asking:
        """Send a request without waiting for its answer. url: one that begins with the server's url or root."""
        return Asking(self, url, body, timeout or self.timeout)

    def shown(self, text: str, most: int = 200) -> str:
        """A server's text, made fit for a message."""
        for secret, name in self._hidden.items():
            text = text.replace(secret, f"[{name}]")
        return one_line(text, most)


class Asking:
    """A request that is under way, with its deadline."""

    def __init__(self, server: Server, url: str, body: Mapping[str, Any] | None, timeout: float) -> None:
        self.server, self.url, self._timeout = server, url, timeout
        self._ends = time.monotonic() + timeout
        self._exchange = _Exchange(server.address, self._ends, timeout)
        path, exchange, headers = urlsplit(url).path, self._exchange, server.headers
        self._outcome: Future[Said] = started(lambda: exchange.run(path, body, headers))

    def answer(self) -> dict[str, Any]:
        """The JSON object of the server's answer. Raises EndpointFailed, as content() does."""
        content = self.content()
        try:
            answer = json.loads(content, parse_constant=_no_json)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise EndpointFailed(
                f"{self.url} answered no JSON object "
                f"({self.server.shown(content[:4096].decode(errors='replace'), 60)!r}): "
                f"check that the URL is that of {self.server.kind.what}"
            )
        return answer

    def content(self) -> bytes:
        """The content of the server's answer. Raises EndpointFailed, or EndpointLost if the server may answer later."""
        url, shown = self.url, self.server.shown
        try:
            status, reason, content = self._outcome.result(max(0.0, self._ends - time.monotonic()))
        except TimeoutError:
            self.end()
            raise EndpointFailed(
                f"{url} gave no whole answer within {self._timeout:g} seconds: see the server's log, or "
                f"{self.server.kind.slow}"
            ) from None
        except (OSError, ValueError) as error:  # ValueError: an invalid host name
            said, option = shown(str(error) or type(error).__name__), self.server.kind.option
            raise EndpointLost(f"{url} can't be reached ({said}): start the server, or check {option}") from None
        except HTTPException as error:
            said = shown(f"{type(error).__name__.lstrip('_')}: {error}")
            kind = EndpointFailed if isinstance(error, _TooLarge) else EndpointLost
            raise kind(f"{url} gave no whole answer ({said}): see the server's log") from None
        if not 200 <= status < 300:
            self._refused(status, reason, content)
        return content

    def end(self) -> None:
        """Cut the request off, because its answer isn't needed any more."""
        self._exchange.end()

    def _refused(self, status: int, reason: str, content: bytes) -> NoReturn:
        shown = self.server.shown
        what = f"{self.url} answered {status} {shown(reason)}"
        if 300 <= status < 400:
            raise EndpointFailed(f"{what}, and no redirect is followed: give the URL of the server that answers")
        line = f"{what}: {shown(_message(content))}: see the server's log"
        if status in BUSY:
            raise EndpointLost(line)
        raise EndpointRefused(line, status, content[: 2**16].decode(errors="replace"))


class _Exchange:
    """One request and its answer. end() may cut it off from another thread."""

    def __init__(self, address: SplitResult, ends: float, timeout: float) -> None:
        self.address, self.ends = address, ends
        self.connection = _connection(address, timeout)
        self.socket: socket.socket | None = None

    def run(self, path: str, body: Mapping[str, Any] | None, given: Mapping[str, str]) -> Said:
        headers = {"Content-Type": "application/json", "Accept": "*/*", "Connection": "close", **given}
        data = None if body is None else json.dumps(body).encode()
        with contextlib.closing(self.connection):
            self.connection.connect()
            self.socket = self.connection.sock
            self.connection.request("GET" if data is None else "POST", path, data, headers)
            response = self.connection.getresponse()
            with response:
                if (response.length or 0) > MOST_BYTES:
                    raise _too_large(response.length)
                content = bytearray()
                while piece := response.read1(2**16):
                    content += piece
                    if len(content) > MOST_BYTES:
                        raise _too_large(len(content))
                    if time.monotonic() > self.ends:
                        raise TimeoutError
                if response.length:
                    raise HTTPException(f"its answer was cut off {response.length} bytes before its end")
                return response.status, response.reason, bytes(content)

    def end(self) -> None:
        """Close the connection, so that the thread that waits for the server wakes up."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)


class _TooLarge(HTTPException):
    """The answer is too large, so asking again doesn't help."""


def _too_large(count: int | None) -> _TooLarge:
    return _TooLarge(f"its answer has {count} bytes or more, and {MOST_BYTES} are the most that are taken")


def _address(url: str, kind: ServerKind = OPENAI) -> SplitResult:
    """The parts of a URL, without a slash at its end. Raises for an unfit URL, and shows nothing secret of it."""
    example = f"give a URL such as {kind.example}"
    if any(letter in url for letter in "@?#"):
        apart = f", and the server's key in {kind.key}" if kind.key else ""
        raise EndpointFailed(f"{kind.named} holds one of @, ? and # (and so, perhaps, a password): {example}{apart}")
    shown = f"{kind.named} is {one_line(url)!r}"
    if not all("!" <= letter <= "~" for letter in url):
        raise EndpointFailed(f"{shown}, with a blank, a control character or a letter outside ASCII: {example}")
    try:
        parts = urlsplit(url.rstrip("/"))
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise EndpointFailed(f"{shown} ({one_line(str(error))}): {example}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise EndpointFailed(f"{shown}: {example}")
    return parts


def _key(variable: str) -> str:
    """The key in a variable, or "". A key that no header can hold is refused here: http.client would show it."""
    key = os.environ.get(variable, "")
    if not all("!" <= letter <= "~" for letter in key):
        raise EndpointFailed(
            f"{variable} holds a blank, a line end or a letter outside ASCII, which no header may hold: set it anew"
        )
    return key


def _connection(address: SplitResult, timeout: float) -> HTTPConnection:
    """A connection, not yet opened. The environment's https_proxy is its tunnel, unless no_proxy excludes the host."""
    if address.scheme == "http":
        return HTTPConnection(address.netloc, timeout=timeout)
    proxy = getproxies().get("https")
    if not proxy or proxy_bypass(str(address.hostname)):
        return HTTPSConnection(address.netloc, timeout=timeout)
    try:
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host = parts.netloc.rpartition("@")[2]
        connection = HTTPSConnection(host if parts.port else f"{host}:80", timeout=timeout)
    except (ValueError, HTTPException):
        raise EndpointFailed("https_proxy is no address: set one such as http://host:3128") from None
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    allowed = {"Proxy-Authorization": f"Basic {base64.b64encode(user).decode()}"} if parts.username else {}
    connection.set_tunnel(address.netloc, headers=allowed)
    return connection


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _message(content: bytes) -> str:
    """The first line of a server's reason for a refusal."""
    try:
        answer = json.loads(content)
        error = answer.get("error", answer)
        text = error.get("message") or error.get("detail", "") if isinstance(error, dict) else error
        text = text if isinstance(text, str) else json.dumps(text) if text else ""
    except (ValueError, AttributeError, RecursionError):
        text = content.decode(errors="replace")
    text = text.strip() if isinstance(text, str) else ""
    return text.splitlines()[0] if text else "no message"
