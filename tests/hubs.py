"""A hub of this process: repositories, their revisions, and who may read them; asked by the hub's own library."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

TOKEN = "hf_planted"


class Hub:
    """The state of a hub.

    revisions: by a repository's name, the folder of each branch, tag or commit. gated: the repositories that need
    TOKEN. whole: the repositories whose files are sent whole even if a part is asked for. asked: the paths that were
    asked for. sent: how many bytes of each file were sent, by its name."""

    def __init__(
        self,
        revisions: Mapping[str, Mapping[str, Path]],
        gated: tuple[str, ...] = (),
        whole: tuple[str, ...] = (),
    ) -> None:
        self.revisions, self.gated, self.whole = revisions, gated, whole
        self.asked: list[str] = []
        self.sent: dict[str, int] = {}
        self.url = ""
        self._commits = {
            hashlib.sha1(f"{name} {revision}".encode()).hexdigest(): folder
            for name, folders in revisions.items()
            for revision, folder in folders.items()
        }

    def folder(self, name: str, revision: str) -> tuple[str, Path] | None:
        """A revision's commit and folder; None if the repository has no such revision."""
        if revision in self._commits:
            return revision, self._commits[revision]
        if revision not in self.revisions[name]:
            return None
        return hashlib.sha1(f"{name} {revision}".encode()).hexdigest(), self.revisions[name][revision]

    def answer(self, path: str, token: str | None, part: str = "") -> tuple[int, dict[str, str], bytes]:
        """The status, headers and body of an answer. part: the part of a file that the header Range asks for."""
        self.asked.append(path)
        wants_file = not path.startswith("/api/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name = "/".join(parts[:2])
        if name not in self.revisions:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        found = self.folder(name, unquote(parts[3]) if len(parts) > 3 else "main")
        if found is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit, folder = found
        if wants_file:
            if name in self.gated and token != f"Bearer {TOKEN}":
                return 401, {"X-Error-Code": "GatedRepo"}, b""
            if not (folder / parts[-1]).is_file():
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
            content = (folder / parts[-1]).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
            bounds = re.fullmatch(r"bytes=(\d+)-(\d+)", part)
            if bounds is None or name in self.whole:
                return 200, headers, content
            piece = content[int(bounds[1]) : int(bounds[2]) + 1]
            last = int(bounds[1]) + len(piece) - 1
            return 206, {**headers, "Content-Range": f"bytes {bounds[1]}-{last}/{len(content)}"}, piece
        files = [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
            for file in sorted(folder.iterdir())
        ]
        listing = files if "tree" in parts else {"id": name, "sha": commit, "siblings": [], "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve the hub at an address of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, part = urlsplit(self.path).path, self.headers.get("Range", "")
            status, headers, body = hub.answer(path, self.headers.get("Authorization"), part)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                file = path.rpartition("/")[2]
                hub.sent[file] = hub.sent.get(file, 0) + len(body)  # counted before the client has the body and goes on
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def asking(hub: Hub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """From now on huggingface_hub asks this hub, and keeps what it gets in `cache`."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        patch.delenv(name, raising=False)
    patch.setenv("NO_PROXY", "127.0.0.1")
    constants = huggingface_hub.constants
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(cache / "tokens"))
    offline(patch, False)


def offline(patch: pytest.MonkeyPatch, is_offline: bool = True) -> None:
    """Set what the variable HF_HUB_OFFLINE sets, which huggingface_hub reads when it is imported."""
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", is_offline)
