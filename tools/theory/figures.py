"""The figures of docs/theory.md. Each file holds the numbers that its figure was drawn from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.theory import costs, example

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parents[2] / "docs" / "theory"
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"  # told apart by the colour-blind, too
Series = Mapping[str, Sequence[float]]

COVERED = (1, 5, 9, 17)
"""The numbers of tokens of a forward that are drawn as points under the roof."""
DRAFTS = ((0.9, 0.1), (0.8, 0.1), (0.8, 0.35), (0.5, 0.5))
"""Drafts: how often each token is kept, and what a token costs."""
ROWS = (1, 2, 4, 8, 12, 16, 24, 32)
TEXT = 1024


def roofline() -> Series:
    """GFLOP/s of forwards of GPT-2 Medium over COVERED tokens, by the operations for each byte."""
    found: dict[str, Sequence[float]] = {}
    for machine, storage in ((costs.GTX_FLOAT16, "float16"), (costs.CORES, "float32")):
        operations = 2 * costs.MEDIUM.read
        seconds = [costs.forward(costs.MEDIUM, storage, machine, tokens) for tokens in COVERED]
        found[f"{machine.name}: operations for each byte"] = [costs.intensity(storage, n) for n in COVERED]
        found[f"{machine.name}: GFLOP/s"] = [
            operations * tokens / each / 1e9 for tokens, each in zip(COVERED, seconds, strict=True)
        ]
        found[f"{machine.name}: ridge, roof"] = [machine.ridge, machine.operations / 1e9]
    return found


def kept() -> Series:
    """What the token rule does with each word after "cat": how much is kept, rejected and replaced."""
    target, draft = (example.row(models, "cat") for models in (example.TARGET, example.DRAFT))
    both = target.minimum(draft)
    parts = {"kept": both, "rejected": draft - both, "replaced": target - both}
    return {name: part.tolist() for name, part in parts.items()}


def speedup() -> Series:
    """Speed-ups with 0, 1, 2, ... proposed tokens."""
    return {_named(kept, step): costs.speed_ups(kept, costs.costs(step)) for kept, step in DRAFTS}


def batches() -> Series:
    """Speed-ups by the number of rows in a batch."""
    short, long = ([costs.Batch(rows, text, 0.1) for rows in ROWS] for text in (0, TEXT))
    return {
        "rows": ROWS,
        "short texts, K = 4": [costs.speed_ups(0.8, each)[4] for each in short],
        "short texts, best K": [costs.best(0.8, each)[0] for each in short],
        f"{TEXT:,} tokens of text, K = 4": [costs.speed_ups(0.8, each)[4] for each in long],
    }


def _named(kept: float, step: float) -> str:
    return f"a = {kept:g}, c = {step:g}"


def draw_roofline(axes: Axes, series: Series) -> None:
    for machine, colour, marker, below in ((costs.GTX_FLOAT16, BLUE, "o", True), (costs.CORES, ORANGE, "s", False)):
        ridge, roof = series[f"{machine.name}: ridge, roof"]
        axes.plot([0.25, ridge, 128], [0.25 * roof / ridge, roof, roof], color=colour)
        places = series[f"{machine.name}: operations for each byte"], series[f"{machine.name}: GFLOP/s"]
        axes.plot(*places, marker, color=colour)
        for tokens, x, y in zip(COVERED, *places, strict=True):
            shift = (7, -12) if below else (-2, 7)
            axes.annotate(str(tokens), (x, y), shift, textcoords="offset points", color=colour, ha="center")
        storage = "" if below else ", float32"
        label = f"{machine.name}{storage}: {roof:,.0f} GFLOP/s"
        axes.annotate(label, (128, roof), (0, 5), textcoords="offset points", color=colour, ha="right")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([0.25, 1, 4, 16, 64], ["0.25", "1", "4", "16", "64"])
    axes.set_ylim(4, 2e4)
    axes.set_xlabel("operations for each byte read")
    axes.set_ylabel("GFLOP/s at most")
    axes.set_title("GPT-2 Medium: forwards over 1, 5, 9 and 17 tokens", loc="left")


def draw_kept(axes: Axes, series: Series) -> None:
    labels = {"//": "the draft's alone: rejected", "\\\\": "the target's alone: what takes its place"}
    for place, word in enumerate(example.WORDS):
        both, rejected, replaced = (series[name][place] for name in ("kept", "rejected", "replaced"))
        axes.bar([place - 0.2, place + 0.2], [both] * 2, 0.36, color=BLUE, label="in both: kept" if not place else "")
        for x, part, colour, hatch in ((place - 0.2, rejected, ORANGE, "//"), (place + 0.2, replaced, GREEN, "\\\\")):
            if part > 0:
                axes.bar(x, part, 0.36, both, color="white", edgecolor=colour, hatch=hatch, label=labels.pop(hatch, ""))
        for x, side in ((place - 0.2, "draft"), (place + 0.2, "target")):
            axes.text(x, -0.02, side, ha="center", va="top", fontsize=8)
        axes.text(place, -0.08, word, ha="center", va="top", weight="bold")
    axes.set_xticks([])
    axes.set_ylim(0, 0.9)
    axes.set_ylabel('probability after "cat"')
    axes.legend(frameon=False)


def draw_speedup(axes: Axes, series: Series) -> None:
    styles = zip(series.items(), (BLUE, GREEN, PURPLE, ORANGE), ("-", "--", "-.", ":"), strict=True)
    for (name, values), colour, style in styles:
        axes.plot(values, style, color=colour)
        top = max(range(len(values)), key=values.__getitem__)
        axes.plot(top, values[top], "o", color=colour)
        end = (len(values) - 1, values[-1])
        axes.annotate(name, end, (5, 0), textcoords="offset points", color=colour, va="center")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlim(-0.5, 19.5)
    axes.set_xticks(range(0, 17, 2))
    axes.set_xlabel("proposed tokens K (0: plain decoding; the dot is the best)")
    axes.set_ylabel("speed-up")
    axes.set_ylim(0, 3)


def draw_batches(axes: Axes, series: Series) -> None:
    rows = series["rows"]
    names = [name for name in series if name != "rows"]
    for name, colour, style in zip(names, (BLUE, GREEN, ORANGE), ("o-", "s--", "^:"), strict=True):
        axes.plot(rows, series[name], style, color=colour, label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks([1, 4, 8, 12, 16, 24, 32])
    axes.set_xlabel("rows of the batch")
    axes.set_ylabel("speed-up")
    axes.set_ylim(0, 3)
    axes.legend(frameon=False, loc="lower left")


FIGURES: Mapping[str, tuple[Callable[[], Series], Callable[[Any, Series], None]]] = {
    "roofline": (roofline, draw_roofline),
    "kept": (kept, draw_kept),
    "speedup": (speedup, draw_speedup),
    "batches": (batches, draw_batches),
}


def draw(folder: Path = FOLDER) -> None:
    """Draw every figure as an SVG file, which is the same each time. Its description holds its numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = {"svg.hashsalt": "sybil", "font.size": 10, "hatch.linewidth": 1.0}
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(settings):
        for name, (compute, draw_on) in FIGURES.items():
            series = compute()
            figure, axes = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
            axes.spines[["top", "right"]].set_visible(False)
            draw_on(axes, series)
            told = {"Date": None, "Title": name, "Description": json.dumps(_rounded(series))}
            figure.savefig(folder / f"{name}.svg", metadata=told)
            pyplot.close(figure)


def _rounded(series: Series) -> dict[str, list[float]]:
    return {name: [round(float(value), 6) for value in values] for name, values in series.items()}


def told(svg: str) -> dict[str, list[float]]:
    """The numbers in a figure's description."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    if not found:
        raise ValueError("the figure has no description: draw it with `python -m tools.theory`")
    numbers: dict[str, list[float]] = json.loads(unescape(found[1]))
    return numbers
