"""Reads the texts of a datastore, given as files or as strings, and encodes them in a target's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sybil.arguments import described
from sybil.drafting import Datastore
from sybil.errors import InvalidSetting, shown, told
from sybil.text import encode

MOST = 16 << 20
"""The most bytes of all texts together. Their index takes up to ten times as much memory, and some seconds."""


def datastore(sources: Sequence[str | Path], tokenizer: Tokenizer | None) -> Datastore | None:
    """The index of the sources' texts; None where there are no sources. A Path is a file of UTF-8 text; a str is a text
    itself.

    Raises InvalidSetting for a source that can't be read, isn't UTF-8 or is empty, and for more than MOST bytes
    together."""
    if isinstance(sources, str | Path) or not isinstance(sources, Sequence):
        raise InvalidSetting(f"datastore is {described(sources)}: give a list of files (pathlib.Path) and texts")
    if not sources:
        return None
    if tokenizer is None:
        raise InvalidSetting("datastore is given, but the decoder has no tokenizer: load() with tokenizer=")
    texts: list[str] = []
    room = MOST
    for source in sources:
        text, size = _read(source, room)
        if not text.strip():
            raise InvalidSetting(f"datastore has {_named(source)}, which is empty: leave it out")
        room -= size
        texts.append(text)
    return Datastore.of(encode(tokenizer, text, special=False) for text in texts)


def _read(source: Any, room: int) -> tuple[str, int]:
    """(a source's text, its size in bytes). room: the most bytes that it may have. Raises InvalidSetting."""
    if isinstance(source, str):
        if _names_a_file(source):
            raise InvalidSetting(f"datastore has {shown(source)}, a file's name as a text: give pathlib.Path of it")
        content = source.encode("utf-8", "replace")
    elif isinstance(source, Path):
        content = _content(source, room)
    else:
        raise InvalidSetting(f"datastore has {described(source)}: give files (pathlib.Path) and texts")
    if len(content) > room:
        raise InvalidSetting(
            f"datastore has more than {MOST >> 20} MiB with {_named(source)}, and all is held in memory: give less"
        )
    try:
        return content.decode(), len(content)
    except UnicodeDecodeError as error:
        raise InvalidSetting(
            f"datastore has {_named(source)}, which is no UTF-8 at byte {error.start}: convert it"
        ) from None


def _names_a_file(text: str) -> bool:
    """Whether a str is the name of an existing file, which should have been given as a Path."""
    try:
        return "\n" not in text and Path(text).is_file()
    except (OSError, ValueError):  # longer than a name may be, or with characters that names can't have
        return False


def _content(file: Path, room: int) -> bytes:
    """The file's first bytes: `room` of them and one more at most."""
    try:
        if file.exists() and not file.is_file():  # reading from a pipe would wait
            raise InvalidSetting(f"datastore has {_named(file)}, which is no file: name files")
        with file.open("rb") as opened:
            return opened.read(room + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidSetting):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or told(error)
        raise InvalidSetting(f"datastore has {_named(file)}, which can't be read ({reason}): name files") from None


def _named(source: str | Path) -> str:
    return shown(str(source)) if isinstance(source, Path) else f"the text {shown(source[:40])}"
