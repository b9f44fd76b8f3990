"""The command line: one file a command, no logic."""

from __future__ import annotations

import sys

import typer

from sybil.errors import SybilError

app = typer.Typer(
    name="sybil",
    help="Lossless speculative decoding: faster generation, the same output.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def run() -> None:
    """The `sybil` command: an error of ours is one line on standard error and exit 2; Ctrl-C is exit 130."""
    from sybil.cli import compare, generate

    app.command()(generate.generate)
    app.command()(compare.compare)
    try:
        app(standalone_mode=True)
    except SybilError as error:
        print(f"sybil: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201  the one line
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
