"""A hub in this process: files of repositories by range, as huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED, MISSING, WHOLE, BROKEN = "gated/model", "missing/model", "whole/model", "broken/model"
"""Repositories that are asked for first; that aren't there; whose files come whole whatever is asked; that fail."""


class Hub:
    """folders: what lies under each repository's name. paths: what was asked for; sent: bytes of files that were sent,
    by their names."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders, self.paths = folders, []
        self.sent: dict[str, int] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                outer.paths.append(path)
                status, headers, content = outer.reply(path, self.headers.get("range"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)
                    outer.sent[path.rsplit("/", 1)[-1]] = outer.sent.get(path.rsplit("/", 1)[-1], 0) + len(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def reply(self, path: str, ranged: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content."""
        named = re.fullmatch(r"(/api/models)?/([^/]+/[^/]+)(?:/(revision|resolve|tree)/([^/]+)(?:/(.*))?)?", path)
        if named is None:
            return 404, {}, b""
        api, repository, _, revision, file = named.groups()
        headers = {"X-Repo-Commit": COMMIT}
        if repository == GATED:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}, b"{}"
        if repository == BROKEN:
            return 500, {}, b"{}"
        if repository not in self.folders:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"}, b"{}"
        if revision not in (None, "main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Revision Not Found"}, b"{}"
        folder = self.folders[repository]
        if api:
            names = sorted(path.name for path in folder.iterdir())
            if "/tree/" in path:
                sizes = {name: (folder / name).stat().st_size for name in names}
                tree = [{"type": "file", "path": name, "size": size, "oid": COMMIT} for name, size in sizes.items()]
                return 200, headers, json.dumps(tree).encode()
            info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return 200, {**headers, "Content-Type": "application/json"}, json.dumps(info).encode()
        if not (folder / file).is_file():
            return 404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        content = (folder / file).read_bytes()
        headers |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", ranged or "")
        if asked is None or repository == WHOLE:
            return 200, headers, content
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]


@contextmanager
def hub(folders: Mapping[str, Path], patch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """huggingface_hub asks this one, with an empty cache of its own."""
    server: Any = Hub(folders)
    constants = huggingface_hub.constants
    for name, value in {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(cache)}.items():
        patch.setattr(constants, name, value)
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
