"""Reads and checks the data that a draft is trained on: text files, JSONL files, and folders of both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sybil.arguments import described
from sybil.errors import InvalidSetting, shown, told
from sybil.measuring.prompts import messages_of

MOST_BYTES = 256 << 20
"""The most bytes of all files together, because they are held in memory and encoded."""
MOST_FILES = 20_000
LINES = (".jsonl", ".ndjson")
LONGEST_KIND = 40
REMEDY = (
    'give JSON lines such as {"text": "..."}, {"prompt": "..."}, {"messages": [{"role": "user", "content": "..."}]}'
)
HELD_OUT = 20
"""One document in HELD_OUT is held out. A hash of its content decides which."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a conversation of (role, content) messages. kind: the group that a table counts it in."""

    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    kind: str = "text"

    @property
    def key(self) -> bytes:
        """The SHA-256 of its content."""
        return hashlib.sha256(json.dumps([self.text, self.messages]).encode()).digest()


@dataclass(frozen=True, slots=True)
class Documents:
    """All documents, without duplicates. skipped: how many files in folders were no UTF-8 text."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]
    skipped: int

    @property
    def digest(self) -> str:
        """The SHA-256 of all contents, in hex. Another run compares it to know whether it reads the same data."""
        whole = hashlib.sha256()
        for each in (*self.training, *self.held_out):
            whole.update(each.key)
        return whole.hexdigest()


def read(sources: Sequence[Path]) -> Documents:
    """The documents of files and folders. In a folder, files that are no UTF-8 text are skipped, and so are hidden
    files and links. Raises InvalidSetting for a file that can't be read, for a named file that is no UTF-8, for a line
    of a JSONL file that is no document, and for data that is empty, too large or a single conversation."""
    if not sources:
        raise InvalidSetting("data names no file: give --data text files, JSONL files or folders")
    found: dict[bytes, Document] = {}
    room, skipped = MOST_BYTES, 0
    for source in sources:
        files, inside = _files(source)
        for file in files:
            text = _text(file, room, may_skip=inside)
            if text is None:
                skipped += 1
                continue
            room -= len(text.encode())
            for each in _documents(file, text):
                found.setdefault(each.key, each)
    if not found:
        raise InvalidSetting(f"data is {shown(str(sources[0]))}, which holds no text: name files with text in them")
    return _parted(list(found.values()), skipped)


def _files(source: Path) -> tuple[list[Path], bool]:
    """The files of a source, and whether it is a folder."""
    try:
        if source.is_dir():
            return _within(source), True
        if source.exists() and not source.is_file():  # reading a pipe would block
            raise InvalidSetting(f"data is {shown(str(source))}, which is no file and no folder: name one")
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidSetting):
            raise
        raise _unreadable("is", source, error) from None
    return [source], False


def _within(folder: Path) -> list[Path]:
    """The regular files of a folder and its subfolders, by name. Links are left out because they may form a cycle."""
    files: list[Path] = []
    for place, names, found in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        paths = (Path(place) / name for name in sorted(found) if not name.startswith("."))
        files += [path for path in paths if path.is_file() and not path.is_symlink()]
        if len(files) > MOST_FILES:
            raise InvalidSetting(f"data is {shown(str(folder))}, which has more than {MOST_FILES} files: name fewer")
    return files


def _unreadable(verb: str, path: Path, error: OSError | ValueError) -> InvalidSetting:
    reason = (isinstance(error, OSError) and error.strerror) or told(error)
    return InvalidSetting(f"data {verb} {shown(str(path))}, which can't be read ({reason}): name files or folders")


def _text(file: Path, room: int, *, may_skip: bool) -> str | None:
    """A file's text; None for a file that may be skipped and is no UTF-8 text."""
    try:
        with file.open("rb") as opened:
            content = opened.read(room + 1)
    except (OSError, ValueError) as error:
        raise _unreadable("has", file, error) from None
    if len(content) > room:
        raise InvalidSetting(f"data has more than {MOST_BYTES >> 20} MiB, and all is held in memory: give less")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if may_skip:
            return None
        name = shown(str(file))
        raise InvalidSetting(f"data has {name}, which is no UTF-8 at byte {error.start}: convert it") from None
    return None if may_skip and "\0" in text else text


def _documents(file: Path, text: str) -> Iterator[Document]:
    if file.suffix not in LINES:
        if text.strip():
            yield Document(text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _row(line, f"{file}, line {number}")


def _row(line: str, where: str) -> Document:
    """The document of a JSON line. Raises InvalidSetting for a line that holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidSetting(f"{where} is no JSON ({told(error)}): {REMEDY}") from None
    fields = row if isinstance(row, dict) else {}
    messages = messages_of(fields.get("messages"), where)
    kind = fields.get("domain", "text" if "text" in fields and not messages and "prompt" not in fields else "prompt")
    if not isinstance(kind, str) or not kind.isprintable() or len(kind) > LONGEST_KIND:
        raise InvalidSetting(f"{where}: domain is {described(kind)}: use a word")
    if messages:
        document = Document(messages=messages, kind=kind)
    else:
        name = "prompt" if "prompt" in fields else "text"
        said = fields.get(name)
        if not isinstance(said, str) or not said.strip():
            raise InvalidSetting(f"{where}: {name} is {described(said)}: {REMEDY}")
        asked = (("user", said),) if name == "prompt" else ()
        document = Document("" if asked else said, asked, kind)
    if any("\ud800" <= letter <= "\udfff" for part in (document.text, *sum(messages, ())) for letter in part):
        raise InvalidSetting(f"{where} holds half a character: give whole ones")
    return document


def _parted(documents: list[Document], skipped: int) -> Documents:
    """Splits the documents into training and held-out ones: one in HELD_OUT is held out, at least one. The end of a
    single text is held out. Raises InvalidSetting for a single document that can't be split so."""
    if len(documents) == 1 and documents[0].text:
        text = documents[0].text
        cut = len(text) - len(text) // HELD_OUT
        parts = [Document(part) for part in (text[:cut], text[cut:]) if part.strip()]
        if len(parts) == 2:
            return Documents((parts[0],), (parts[1],), skipped)
    if len(documents) < 2:
        raise InvalidSetting("data holds a single document, and one is held out to measure by: give two or more")
    held = {each.key for each in documents if int.from_bytes(each.key[:8], "big") % HELD_OUT == 0}
    if not held or len(held) == len(documents):
        held = {documents[-1].key}
    training, held_out = (tuple(each for each in documents if (each.key in held) is wanted) for wanted in (False, True))
    return Documents(training, held_out, skipped)
