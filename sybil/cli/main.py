"""The `sybil` command: its subcommands, and what becomes of an error."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Any

import typer

import sybil
from sybil.cli.chat import chat
from sybil.cli.check import check
from sybil.cli.compare import compare
from sybil.cli.distill import distill
from sybil.cli.generate import generate
from sybil.cli.pairs import pairs
from sybil.cli.profile import profile
from sybil.cli.prompts import prompts
from sybil.cli.terminal import close_stream, open_streams, unwritable
from sybil.cli.tradeoff import tradeoff
from sybil.cli.verify import verify
from sybil.errors import OutputClosed, one_line
from sybil.losslessness.child import error_line

FAILED, INTERRUPTED = 2, 130
TRACEBACK = "SYBIL_TRACEBACK"
UsageError: type[Any] = typer.BadParameter.__mro__[1]  # of which typer exports the subclass alone

app = typer.Typer(
    name="sybil",
    help="Lossless speculative decoding: faster generation, the same output.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(chat)
app.command()(check)
app.command()(compare)
app.command()(pairs)
app.command()(profile)
app.command()(prompts)
app.command()(tradeoff)
app.command()(verify)
app.command()(distill)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(sybil.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print it."),
) -> None:
    pass


def run() -> None:
    """Exit with the status that a command chose. Whatever else ends it is one line on standard error and exit 2, for
    0, 1 and 3 are verdicts; Ctrl-C is exit 130. SYBIL_TRACEBACK=1 shows where an error was raised."""
    try:
        open_streams()
        status = _command(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException as error:  # an exit that no command chose is no better than another exception
        status = FAILED
        _tell(error, is_output=isinstance(error, OSError) and not close_stream(sys.stdout))
    if not (close_stream(sys.stdout) and close_stream(sys.stderr)):
        status = FAILED
    sys.exit(status)


def _command(arguments: list[str]) -> int:
    """The command's status. typer's own main() is left out: it makes 1 of a broken pipe and of an EOFError."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("sybil", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich makes an exit of it, where typer prints help
            raise OutputClosed(unwritable(end.__context__)) from None
        raise
    return 0


def _tell(error: BaseException, *, is_output: bool) -> None:
    """One line on standard error, as far as that can be written to. is_output: standard output failed."""
    if isinstance(error, sybil.SybilError):
        line = one_line(str(error), 2000)
    elif isinstance(error, UsageError):
        asked = error.ctx.command_path if error.ctx else "sybil"
        line = f"{one_line(error.format_message() or 'name a command', 500)} ({asked} --help)"
    elif is_output and isinstance(error, OSError):
        line = unwritable(error)
    else:
        line = f"{one_line(error_line(error), 500)} (unforeseen: {TRACEBACK}=1 shows where it was raised)"
    with contextlib.suppress(OSError, ValueError):
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        typer.echo(f"sybil: {line}", err=True)
