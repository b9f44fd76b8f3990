"""Reads files of a bounded size and the rows of earlier runs. Writes results to the disk: a file is written completely
or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sybil.errors import InvalidSetting, ResultsMismatch

LARGEST_RUN = 1 << 30
"""The most bytes of a file that a run is resumed from."""
Found = TypeVar("Found")


def bounded_text(path: Path, most: int, *, unread: str, too_large: str, no_text: str) -> str:
    """The text of a UTF-8 file of at most `most` bytes. Raises InvalidSetting. The other arguments are the remedies in
    its message: for a file that can't be read, is too large, or is no text."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InvalidSetting(f"{path} can't be read ({error.strerror}): {unread}") from None
    if len(content) > most:
        size = f"{most >> 20} MiB" if most >> 20 else f"{most >> 10} KiB"
        raise InvalidSetting(f"{path} is larger than {size}: {too_large}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidSetting(f"{path} is no UTF-8 text: {no_text}") from None


def folder(path: Path) -> Path:
    """The folder, which is made if it doesn't exist. Raises InvalidSetting where it can't be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"out is {path}, which can't be a folder ({error.strerror}): name another") from None
    return path


def check_folder(path: Path) -> None:
    """Raises InvalidSetting for a path that folder() would refuse. It is called before anything runs."""
    nearest = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise InvalidSetting(f"out is {path}, and {nearest} is a file: name a folder")
    if not os.access(nearest, os.W_OK):
        raise InvalidSetting(f"out is {path}, and {nearest} can't be written to: name another folder")


def check_file(path: Path, name: str) -> None:
    """Raises InvalidSetting for a path that replace_named() would refuse. It is called before anything runs. name: the
    setting that chose the path."""
    said = f"{name} is {path}"
    if path.is_dir():
        raise InvalidSetting(f"{said}, which is a folder: name a file")
    if path.exists() and not path.is_file():
        raise InvalidSetting(f"{said}, which is no plain file: name another")
    if not path.parent.is_dir():
        raise InvalidSetting(f"{said}, and {path.parent} is no folder: make it, or name another file")
    if not os.access(path.parent, os.W_OK):
        raise InvalidSetting(f"{said}, and {path.parent} can't be written to: name a file in another folder")


def replace_named(path: Path, name: str, content: bytes) -> None:
    """The same as replace(), but raises InvalidSetting, whose message names the setting that chose the path."""
    try:
        replace(path, content)
    except OSError as error:
        reason = error.strerror
        raise InvalidSetting(f"{name} is {path}, which can't be written ({reason}): name another") from None


def unused(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that doesn't exist."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())


def append(path: Path, row: dict[str, Any], sync: bool = True) -> None:
    """Append one JSON line. With sync it is on the disk before this returns; without sync the system writes it later. A
    line that can't be written completely is removed again."""
    line = json.dumps(row).encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if sync:
                os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):  # a device has no length
                file.truncate(start)
            raise


def resumed(
    path: Path,
    what: str,
    settings: Mapping[str, object],
    row_of: Callable[[str], tuple[Found, Mapping[str, object]] | None],
) -> list[Found]:
    """The rows of an earlier run's JSONL file. Every row must have these settings. what: a word for the run, for
    messages. row_of: gives a line's row and its settings, and None for a line that is no row.

    An incomplete last line is removed from the file, once the other rows are known to be of this run. Raises
    ResultsMismatch for a file of another run or of another kind, which is left unchanged."""
    remedy = "name the JSONL file of an earlier run"
    try:
        if path.stat().st_size > LARGEST_RUN:
            raise ResultsMismatch(f"{path} is larger than {LARGEST_RUN >> 20} MiB: {remedy}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultsMismatch(f"{path} can't be resumed ({error.strerror}): {remedy}") from None
    except UnicodeDecodeError:
        raise ResultsMismatch(f"{path} is no text file: {remedy}") from None
    *lines, rest = text.split("\n")
    rows: list[Found] = []
    for number, line in enumerate(lines, start=1):
        found = row_of(line)
        if found is None:
            raise ResultsMismatch(f"{path}, line {number}, is no row of a {what}: name another file")
        row, theirs = found
        if theirs != settings:
            raise ResultsMismatch(f"{path} was measured with {_at_odds(theirs, settings)}: use the same settings")
        rows.append(row)
    if not rows:
        raise ResultsMismatch(f"{path} holds no whole row of a {what}: name another file, or start anew")
    if rest:
        replace(path, text.removesuffix(rest).encode())
    return rows


def _at_odds(theirs: Mapping[str, object], settings: Mapping[str, object]) -> str:
    """The settings that differ, with both values."""
    names = [name for name in theirs if theirs[name] != settings[name]]
    had, wanted = (", ".join(f"{name}={each[name]!r}" for name in names) for each in (theirs, settings))
    return f"{had}, this run asks for {wanted}"


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically, by way of a temporary file beside it. A reader sees the old or the new content. Where
    the file can't be written, the temporary file is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def all_or_none(*paths: Path) -> Iterator[None]:
    """A context manager around writing new files that belong together. If one can't be written, all are removed."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
