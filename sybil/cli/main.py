"""The `sybil` command: its subcommands, and what becomes of an error."""

from __future__ import annotations

import sys

import typer

import sybil
from sybil.cli.compare import compare
from sybil.cli.generate import generate
from sybil.cli.profile import profile
from sybil.cli.verify import verify

app = typer.Typer(
    name="sybil",
    help="Lossless speculative decoding: faster generation, the same output.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(compare)
app.command()(profile)
app.command()(verify)


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
    """An error of ours is one line on standard error and exit 2; Ctrl-C is exit 130."""
    try:
        app()
    except sybil.SybilError as error:
        typer.echo(f"sybil: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
