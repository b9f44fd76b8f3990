"""Draw one text as it is decoded, without a draft and with one, as a moving SVG: the README's picture.

python tools/moving_picture.py docs/generate.svg

Both runs are real. Each token appears at the time at which its round ended, by the decoder's own clock. The picture is
one SVG file with CSS animation: no script, no font and nothing else is fetched, so that it also moves in an img tag.
"""

from __future__ import annotations

import html
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sybil import Decoder

COLUMNS, LINES = 58, 24
"""Of text in a panel, in characters: how wide it is, and the most lines that are drawn."""
CHARACTER, LINE_HEIGHT, MARGIN, TOP = 7.2, 19, 18, 92
"""In the picture's units: a character of the monospace font at 12 units is about 7.2 wide."""
PLAYING, RESTING, TICKS = 9.0, 4.0, 60
"""Seconds until the slower text is complete, seconds for which the end then stands still, and updates of the clock."""
STYLE = """
text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #c9d1d9;
  white-space: pre }
.head { font-weight: bold } .small { fill: #8b949e } .draft { fill: #3fb950 } .target { fill: #f778ba }
.tick { opacity: 0 }
g, .tick, .end { animation-duration: %gs; animation-iteration-count: infinite; animation-timing-function: step-end }
@media (prefers-reduced-motion: reduce) { g, .tick, .end { animation: none !important } }
"""


@dataclass(frozen=True, slots=True)
class DrawnRound:
    """One round of a run. seconds: from the run's beginning to the round's end; tokens: how many it gave; pieces: the
    text that it completed, each piece with whether the draft proposed it."""

    seconds: float
    tokens: int
    pieces: tuple[tuple[str, bool], ...]


def recorded(decoder: Decoder, prompt: Any, **settings: Any) -> list[DrawnRound]:
    """Decode the prompt and keep its rounds, each at its time by the decoder's own clock."""
    from sybil.text import TextStream

    assert decoder.tokenizer is not None
    stream, seconds, rounds = TextStream(decoder.tokenizer), 0.0, list[DrawnRound]()
    for step in decoder.stream(prompt, **settings):
        seconds += step.timings.total
        pieces = [(stream.push([token]), place < step.accepted[0]) for place, token in enumerate(step.tokens[0])]
        rounds.append(DrawnRound(seconds, len(pieces), tuple(piece for piece in pieces if piece[0])))
    if rest := stream.finish():
        last = rounds[-1]
        rounds[-1] = DrawnRound(last.seconds, last.tokens, (*last.pieces, (rest, False)))
    return rounds


def picture(title: str, prompt: str, caption: str, panels: Sequence[tuple[str, Sequence[DrawnRound]]]) -> str:
    """The SVG. panels: a heading and the rounds of each run, the first of which is the one that others are compared
    with. caption: what was run, and on what."""
    longest = max(rounds[-1].seconds for _, rounds in panels)
    slower, cycle = PLAYING / longest, PLAYING + RESTING
    width = 2 * MARGIN + COLUMNS * CHARACTER
    asked, told = textwrap.wrap(" ".join(prompt.split()), 2 * COLUMNS)[0], textwrap.wrap(caption, 2 * COLUMNS + 4)
    rules, body = [STYLE % cycle], list[str]()

    def write(x: float, y: float, text: str, kind: str, name: str = "") -> None:
        said = f' style="animation-name: {name}"' if name else ""
        body.append(f'<text x="{x:.1f}" y="{y:.0f}" class="{kind}"{said}>{html.escape(text, quote=False)}</text>')

    def shown(name: str, begin: float, end: float = cycle) -> str:
        """The name of a rule that shows something from begin to end, in seconds of the picture."""
        hidden = f"{100 * end / cycle:.2f}% {{ opacity: 0 }}" if end < cycle else "100% { opacity: 1 }"
        rules.append(
            f"@keyframes {name} {{ 0% {{ opacity: 0 }} {100 * begin / cycle:.2f}% {{ opacity: 1 }} {hidden} }}"
        )
        return name

    write(MARGIN, 26, asked, "head")
    last = 0
    for number, (heading, rounds) in enumerate(panels):
        left = MARGIN + number * width
        write(left, 54, heading, "head")
        row, column = 0, 0
        for index, each in enumerate(rounds):
            body.append(f'<g style="animation-name: {shown(f"p{number}r{index}", each.seconds * slower)}">')
            for piece, of_draft in each.pieces:
                for part in _placed(piece, row, column):
                    row, column = part.row, part.column + len(part.text)
                    if part.row < LINES and part.text.strip():
                        x, y = left + part.column * CHARACTER, TOP + part.row * LINE_HEIGHT
                        write(x, y, part.text, "draft" if of_draft else "target")
                        last = max(last, part.row)
            body.append("</g>")
        end = rounds[-1].seconds
        for tick in range(TICKS):
            begin, until = (end * place / TICKS for place in (tick, tick + 1))
            name = shown(f"p{number}t{tick}", begin * slower, until * slower)
            write(left, 72, _counted(rounds, begin), "small tick", name)
        write(left, 72, _counted(rounds, end), "small end", shown(f"p{number}end", end * slower))
    bottom = TOP + (last + 1) * LINE_HEIGHT
    write(MARGIN, bottom + 14, "a token that the draft proposed and the target accepted", "draft")
    write(MARGIN + width, bottom + 14, "the target's own token", "target")
    for line, text in enumerate([*told, _slowed(slower)]):
        write(MARGIN, bottom + 34 + 17 * line, text, "small")
    height = bottom + 42 + 17 * len(told)
    described = "; ".join(f"{heading}: {_counted(rounds, rounds[-1].seconds)}" for heading, rounds in panels)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(panels) * width:.0f} {height:.0f}" '
        'role="img" aria-labelledby="title desc">',
        f'<title id="title">{html.escape(title)}</title>',
        f'<desc id="desc">{html.escape(f"{described}. {caption}")}</desc>',
        f"<style>{''.join(rules)}</style>",
        '<rect width="100%" height="100%" rx="8" fill="#0d1117"/>',
        *body,
        "</svg>\n",
    ]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Part:
    """Text at its place in a panel: the row and column of its first character."""

    text: str
    row: int
    column: int


def _placed(piece: str, row: int, column: int) -> Iterable[_Part]:
    """The parts of a piece, from the place where the text before it ended. A piece is cut at its line ends, and where a
    line of the panel is full."""
    for number, line in enumerate(piece.expandtabs(4).split("\n")):
        if number:
            row, column = row + 1, 0
        hanging = 0 if line[:1].isspace() or line[:1].isalnum() else 2  # a full stop doesn't begin a line
        if column and column + len(line) > COLUMNS + hanging:
            row, column, line = row + 1, 0, line.lstrip(" ")
        for begin in range(0, max(len(line), 1), COLUMNS):
            if begin:
                row, column = row + 1, 0
            yield _Part(line[begin : begin + COLUMNS], row, column)


def _counted(rounds: Sequence[DrawnRound], seconds: float) -> str:
    """The clock at that time, the number of tokens by then, and their rate."""
    tokens = sum(each.tokens for each in rounds if each.seconds <= seconds)
    forwards = sum(each.seconds <= seconds for each in rounds)
    rate = f"{tokens / seconds:4.0f}" if seconds else "   0"
    return f"{seconds:6.3f} s  {tokens:3d} tokens  {rate} tokens/s  {forwards:3d} target forwards"


def _slowed(slower: float) -> str:
    if slower >= 1:
        return f"The picture runs {slower:.1f} times slower than the decoder did; the clocks show the measured times."
    return f"The picture runs {1 / slower:.1f} times faster than the decoder did; the clocks show the measured times."


def main(
    out: Annotated[Path, typer.Argument(help="The SVG file to write.")],
    pair: Annotated[str, typer.Option(help="A registered pair.")] = "smollm2",
    draft: Annotated[
        str, typer.Option(help="What drafts, as sybil.load takes it; pair: the pair's own draft.")
    ] = "self",
    dtype: Annotated[str, typer.Option(help="Of the target's weights.")] = "float32",
    prompt: Annotated[str, typer.Option(help="What is asked.")] = "Explain in four sentences why the sky is blue.",
    tokens: Annotated[int, typer.Option(min=8, help="New tokens.")] = 96,
    runs: Annotated[int, typer.Option(min=1, help="Of each decoder, by turns; the median is drawn.")] = 5,
) -> None:
    """Decode one text without a draft and with one, and draw both runs side by side."""
    import torch

    import sybil
    from sybil.measuring import files
    from sybil.measuring.machine import describe

    named = {} if draft == "pair" else {"draft": draft}
    speculative = sybil.load(pair, dtype=getattr(torch, dtype), device="cpu", **named)
    decoders = {"target alone": speculative.without_draft(), "with a draft": speculative}
    asked = [{"role": "user", "content": prompt}] if speculative.chat_template else prompt
    taken: dict[str, list[list[DrawnRound]]] = {heading: [] for heading in decoders}
    for turn in range(runs + 1):
        for heading, decoder in decoders.items():
            rounds = recorded(decoder, asked, max_new_tokens=tokens)
            if turn:  # the first run of each warms up
                taken[heading].append(rounds)
    texts = {"".join(piece for each in run for piece, _ in each.pieces) for kept in taken.values() for run in kept}
    if len(texts) != 1:
        raise SystemExit("the two decoders' texts differ, so they can't be drawn side by side")
    panels = [(heading, _median(kept)) for heading, kept in taken.items()]
    machine = describe(torch.device("cpu"))
    drafting = "the pair's draft" if draft == "pair" else f"draft {draft}"
    caption = (
        f"{pair} in {dtype}, {drafting}, greedy, the median of {runs} runs of each; commit {machine['commit']}, "
        f"{machine['processor']}, threads: {machine['threads']}, torch {str(machine['torch']).split('+')[0]}"
    )
    title = "The same text without a draft and with one: speculative decoding gives the same tokens sooner"
    files.replace(out, picture(title, prompt, caption, panels).encode())


def _median(runs: list[list[DrawnRound]]) -> list[DrawnRound]:
    """The run with the median time; of an even number of runs, the quicker of the two in the middle."""
    middle = statistics.median_low(run[-1].seconds for run in runs)
    return next(run for run in runs if run[-1].seconds == middle)


if __name__ == "__main__":
    typer.run(main)
