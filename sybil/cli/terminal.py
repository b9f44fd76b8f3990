"""What the commands share of their output: the console, its tables and its progress bar."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def make_console() -> Console:
    """Standard output; a file or a pipe has no edge to wrap at."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def make_table(console: Console, first: str, *others: str) -> Table:
    """For a terminal, or as Markdown for a file; text in the first column, numbers in the others."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def make_progress(console: Console) -> Progress:
    """What is being done, how much of it is done, and how long the rest takes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
