"""A sweep's file, with one row for each cell, and the journal beside it, with the passes of unfinished cells."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sybil.errors import ResultsMismatch, ResultsUnwritable
from sybil.measuring import files
from sybil.sweeping.passes import Pass
from sybil.sweeping.run import VERSION, RunResult

LONGEST = 1 << 26
"""The most bytes of a line."""
JOURNAL = ".passes"
"""The journal's name is the file's name followed by this."""
ROW, KEPT = b'{"version": ', b'{"hash": '
"""How each line of the file, and of the journal, begins."""

Line = TypeVar("Line", bound=BaseModel)


class KeptPass(BaseModel):
    """A line of the journal: a pass of the cell of that hash, and the environment in which it was measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hash: str
    repeat: Annotated[int, Field(ge=0)]
    environment: dict[str, str | int]
    measured: Pass


class _Versioned(BaseModel):
    """What a row of any version says of itself."""

    version: Annotated[int, Field(ge=1)]
    hash: str


def read(path: Path) -> list[RunResult]:
    """The rows of a sweep's file, in order, without an incomplete last line. Raises ResultsMismatch for a file that
    isn't a sweep's, for an incomplete row and for a row of a later version."""
    return _read(path, _row, ROW)[0]


class SweepFile:
    """A sweep's file, to which this process alone adds rows. As a context, it is locked and made where it isn't there.

    dropped: whether a last line that was cut short was taken off. Raises ResultsMismatch for a file that is no sweep's,
    which is left as it is, and ResultsUnwritable where it can't be written or another sweep is writing to it."""

    def __init__(self, path: Path) -> None:
        self.path, self._journal = path, path.with_name(path.name + JOURNAL)
        self.rows: dict[str, RunResult] = {}
        self.passes: dict[str, list[KeptPass]] = {}
        self.dropped = False

    def __enter__(self) -> SweepFile:
        with _telling(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise ResultsUnwritable(f"{self.path} is no file that a sweep could write: name another")
            self._lock = _locked(self.path)
        try:
            found, whole = _read(self.path, _row, ROW)
            kept, journaled = _read(self._journal, _kept, KEPT) if self._journal.exists() else ([], 0)
            self.dropped = _cut(self.path, whole)
            _cut(self._journal, journaled)
        except BaseException:
            self._lock.close()
            raise
        self.rows = {row.hash: row for row in found}
        for each in kept:
            self.passes.setdefault(each.hash, []).append(each)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def add(self, row: RunResult) -> None:
        """Add the row of a finished cell. It is on the disk before this returns."""
        self._append(self.path, row)
        self.rows[row.hash] = row
        self.passes.pop(row.hash, None)

    def keep(self, kept: KeptPass) -> None:
        """Keep a finished pass of an unfinished cell in the journal."""
        self._append(self._journal, kept)
        self.passes.setdefault(kept.hash, []).append(kept)

    def forget(self, hashes: Collection[str]) -> None:
        """Remove rows from the file, so that their cells are measured again."""
        if not hashes:
            return
        left = {each: row for each, row in self.rows.items() if each not in hashes}
        with _telling(self.path):
            files.replace(self.path, b"".join(_line(row) for row in left.values()))
            before, self._lock = self._lock, _locked(self.path)  # the new file is locked while the old lock is held
            before.close()
        self.rows = left

    def tidy(self) -> None:
        """Remove from the journal the passes of cells that have a row. An empty journal is deleted."""
        left = [each for kept in self.passes.values() for each in kept if each.hash not in self.rows]
        with _telling(self._journal):
            if left:
                files.replace(self._journal, b"".join(map(_line, left)))
            else:
                self._journal.unlink(missing_ok=True)

    def _append(self, path: Path, line: BaseModel) -> None:
        with _telling(path):
            files.append(path, line.model_dump(mode="json"))


def _line(model: BaseModel) -> bytes:
    """A model's line as files.append() writes it."""
    return json.dumps(model.model_dump(mode="json")).encode() + b"\n"


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """A context manager that turns the system's errors about a file into ResultsUnwritable."""
    try:
        yield
    except ResultsUnwritable:
        raise
    except OSError as error:
        raise ResultsUnwritable(
            f"{path} can't be written to ({error.strerror or error}): make room or name another file; its rows are "
            "whole, and the same command goes on from them"
        ) from None


def _locked(path: Path) -> IO[bytes]:
    """Open the file and lock it for as long as it stays open. Raises ResultsUnwritable where another process has locked
    it."""
    file = path.open("ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.fstat(file.fileno()).st_ino == path.stat().st_ino  # False where the file was replaced meanwhile
    except ImportError:  # Windows has other locks, and sweeps go unlocked there
        held = True
    except BlockingIOError:
        held = False
    if not held:
        file.close()
        raise ResultsUnwritable(f"{path} is being written to by another sweep: wait for it, or name another file")
    return file


def _cut(path: Path, whole: int) -> bool:
    """Cut the file after `whole` bytes. Returns whether anything was cut off."""
    if not path.exists() or path.stat().st_size == whole:
        return False
    with _telling(path):
        os.truncate(path, whole)
    return True


def _read(path: Path, line_of: Callable[[Path, int, bytes], Line], begun: bytes) -> tuple[list[Line], int]:
    """(the lines of a file, the bytes that its complete lines take). An incomplete last line must begin as all lines
    do; otherwise the file isn't a sweep's."""
    found, whole = list[Line](), 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), start=1):
                if not line.endswith(b"\n") and line[: len(begun)] == begun[: len(line)] and len(line) < LONGEST:
                    break
                found.append(line_of(path, number, line))
                whole += len(line)
    except OSError as error:
        raise ResultsMismatch(f"{path} can't be read ({error.strerror}): name the file of a sweep") from None
    return found, whole


def _row(path: Path, number: int, line: bytes) -> RunResult:
    try:
        told = _Versioned.model_validate_json(line)
        if told.version > VERSION:
            raise ResultsMismatch(
                f"{path}, line {number}, is of version {told.version}, and this Sybil reads up to {VERSION}: take a "
                "later one, or name another file"
            )
        row = RunResult.model_validate_json(line)
    except (ValidationError, RecursionError):
        row = None
    if row is None or row.hash != row.config.hash or (row.measured is None) == (row.error is None):
        raise ResultsMismatch(f"{path}, line {number}, is no row of a sweep: name another file") from None
    return row


def _kept(path: Path, number: int, line: bytes) -> KeptPass:
    try:
        return KeptPass.model_validate_json(line)
    except (ValidationError, RecursionError):
        raise ResultsMismatch(f"{path}, line {number}, is no pass of a sweep: take the file away") from None
