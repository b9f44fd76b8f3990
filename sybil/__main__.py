"""python -m sybil."""

from sybil.cli.main import run

run()
