"""The `sybil` command: its subcommands, and how errors are reported."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Any

import typer
from typer.completion import shell_complete

import sybil
from sybil.cli.chat import chat
from sybil.cli.check import check
from sybil.cli.compare import compare
from sybil.cli.distill import distill
from sybil.cli.examples import help_of
from sybil.cli.generate import generate
from sybil.cli.pairs import pairs
from sybil.cli.profile import profile
from sybil.cli.prompts import prompts
from sybil.cli.report import report
from sybil.cli.sweep import sweep
from sybil.cli.terminal import close_stream, open_streams, unwritable
from sybil.cli.tradeoff import tradeoff
from sybil.cli.verify import verify
from sybil.cli.version import versions
from sybil.errors import OutputClosed, one_line
from sybil.losslessness.child import error_line

FAILED, INTERRUPTED = 2, 130
TRACEBACK, COMPLETION = "SYBIL_TRACEBACK", "_SYBIL_COMPLETE"
UsageError: type[Any] = typer.BadParameter.__mro__[1]  # typer exports its subclass only

app = typer.Typer(
    name="sybil",
    help="Lossless speculative decoding: faster generation, the same output.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(**help_of(generate))(generate)
app.command(**help_of(chat))(chat)
app.command(**help_of(check))(check)
app.command(**help_of(compare))(compare)
app.command(**help_of(pairs))(pairs)
app.command(**help_of(profile))(profile)
app.command(**help_of(prompts))(prompts)
app.command(**help_of(report))(report)
app.command(**help_of(sweep))(sweep)
app.command(**help_of(tradeoff))(tradeoff)
app.command(**help_of(verify))(verify)
app.command(**help_of(distill))(distill)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo("\n".join(versions()))
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_version,
        is_eager=True,
        help="Print the versions of Sybil, torch and transformers, and whether the C forward builds here.",
    ),
) -> None:
    pass


def run() -> None:
    """Exit with the status that a command chose. Any other end of a command prints one line on standard error and exits
    with 2, because 0, 1 and 3 are verdicts. Ctrl-C exits with 130. SYBIL_TRACEBACK=1 shows where an error was
    raised."""
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
    """Run the command and return its status. typer's own main() isn't used, because it exits with 1 for a broken pipe
    and for an EOFError. What main() does for a shell that asks for completions is done here."""
    command = typer.main.get_command(app)
    is_running = False  # while False, a SystemExit is typer's own, after it has shown or installed completion
    try:
        if instruction := os.environ.get(COMPLETION):
            return shell_complete(command, {}, "sybil", COMPLETION, instruction) and FAILED
        with command.make_context("sybil", arguments) as context:
            is_running = True
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich turns a broken pipe into an exit
            raise OutputClosed(unwritable(end.__context__)) from None
        if is_running:
            raise
        return FAILED if end.code else 0
    return 0


def _tell(error: BaseException, *, is_output: bool) -> None:
    """Print an error as one line on standard error, if that can be written to. is_output: whether standard output
    failed."""
    if isinstance(error, sybil.SybilError):
        line = one_line(str(error), 2000)
    elif isinstance(error, UsageError):
        line = one_line(_misused(error, sys.argv[1:]), 500)
    elif is_output and isinstance(error, OSError):
        line = unwritable(error)
    else:
        line = f"{one_line(error_line(error), 500)} (unforeseen: {TRACEBACK}=1 shows where it was raised)"
    with contextlib.suppress(OSError, ValueError):
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        typer.echo(f"sybil: {line}", err=True)


def _misused(error: Any, arguments: list[str]) -> str:
    """What is wrong with a command line. A wrong value of an option is reported in the library's form: the name, the
    value, the remedy."""
    commands = {each.callback.__name__ for each in app.registered_commands if each.callback}
    known = [each for each in arguments[:1] if each in commands]
    asked = f"({' '.join(['sybil', *known])} --help)"
    options = [each for each in getattr(getattr(error, "param", None), "opts", ()) if each.startswith("--")]
    value = _value_of(options, arguments)
    if not isinstance(error, typer.BadParameter) or value is None:
        return f"{error.format_message() or 'name a command'} {asked}"
    said = str(error.message)
    kinds = {"integer": "use an integer", "number": "use a number", "float": "use a number"}
    remedy = said if said.startswith("use ") else next((kinds[kind] for kind in kinds if kind in said), said)
    return f"{options[0].removeprefix('--').replace('-', '_')} is {value!r}: {remedy} {asked}"


def _value_of(options: list[str], arguments: list[str]) -> str | None:
    """The text after an option, or after its "="; the last one where the option is given several times."""
    found = None
    for place, word in enumerate(arguments):
        name, equals, rest = word.partition("=")
        if name in options:
            found = rest if equals else next(iter(arguments[place + 1 :]), None)
    return found
