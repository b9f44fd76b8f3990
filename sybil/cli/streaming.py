"""Prints a stream's text in a terminal, the draft's tokens in one colour and the target's own in another."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import typer
from tokenizers import Tokenizer

from sybil.results import FinishReason, Stats, Step
from sybil.text import TextStream

DRAFTED, OWN = typer.colors.GREEN, typer.colors.BRIGHT_MAGENTA


def shown(stream: Iterable[Step], tokenizer: Tokenizer) -> Generator[Step, None, None]:
    """Yield the steps of one row, and print their text as soon as it is final. The text is printed unchanged, without a
    console library, which would drop tabs and form feeds."""
    pieces = TextStream(tokenizer)
    try:
        for step in stream:
            for index, token in enumerate(step.tokens[0]):
                if piece := pieces.push([token]):
                    typer.secho(piece, nl=False, fg=DRAFTED if index < step.accepted[0] else OWN)
            yield step
    finally:
        typer.secho(pieces.finish(), nl=False)


def ending(steps: Iterable[Step]) -> FinishReason | None:
    """Why the row ended; None where the stream was left early."""
    return next((step.finished[0] for step in steps if step.finished[0]), None)


def counted(stats: Stats, end: str = "") -> str:
    """A line with the number of tokens, their time, and how many of the draft's were accepted. end: why the text
    ended."""
    line = f"{stats.emitted} tokens in {stats.seconds:.2f} s ({stats.tokens_per_second:.1f} tokens/s)"
    line += f", ended by {end}" if end else ""
    if stats.proposed:
        line += (
            f"; accepted {stats.accepted} of {stats.proposed} proposed ({stats.acceptance_rate:.0%}), "
            f"{stats.tokens_per_round:.2f} tokens a round"
        )
    return line
