"""The output that commands share: the streams, the console, its tables and its progress bar."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sybil.errors import OutputClosed, one_line


def open_streams() -> None:
    """Prepare standard output and standard error. Raises OutputClosed where there is no standard output.

    A letter that the locale's encoding lacks is written as \\x, \\u or \\U and its number, as Python does on standard
    error."""
    if sys.stderr is None:  # closed; a file that is opened later must not become standard error
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if sys.stdout is None:
        raise OutputClosed("standard output is closed: send it to a file, a pipe or /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):  # python -u
        # close_stream() recognises a failed output by what is left in its buffer
        number, encoding, errors = sys.stdout.fileno(), sys.stdout.encoding, sys.stdout.errors
        buffering = 1 if sys.stdout.isatty() else -1
        sys.stdout = os.fdopen(number, "w", buffering, encoding, errors, closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def close_stream(stream: TextIO | None) -> bool:
    """Flush a stream, and return whether that succeeded. If not, the rest is discarded, because Python would try again
    at its end and exit with a status of its own."""
    if stream is None:
        return True
    try:
        stream.flush()
    except (OSError, ValueError):  # ValueError: the stream was closed
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def unwritable(error: OSError) -> str:
    """The message for a standard output that failed."""
    return f"standard output can't be written to ({one_line(str(error))}): make room, or send it elsewhere"


def print_json(record: Mapping[str, Any]) -> None:
    """Print one JSON object on a line of standard output."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


class _Console(Console):
    """A console that raises BrokenPipeError where nobody reads its output; rich's own exits with status 1 there."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls this while it handles the BrokenPipeError


def make_console(*, stderr: bool = False) -> Console:
    """A console for standard output or standard error. Lines to a file or a pipe aren't wrapped. Text is printed
    unchanged: nothing in a name or a path counts as markup."""
    console = _Console(stderr=stderr, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    return console


def make_table(console: Console, first: str, *others: str) -> Table:
    """A table for a terminal, or in Markdown for a file. The first column has text, and the others have numbers."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def make_progress(console: Console) -> Progress:
    """A progress bar with the task's name, its progress and the remaining time; it is shown on a terminal only."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
