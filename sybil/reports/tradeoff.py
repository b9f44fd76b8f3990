"""Quality against speed, as a picture and as a table for other programs."""

from __future__ import annotations

import csv
import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sybil.measuring.files import replace
from sybil.reports.style import pyplot
from sybil.trading.candidates import Family
from sybil.trading.summaries import TradeoffPoint, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS: Mapping[Family, tuple[str, str, str]] = {
    "plain": ("#000000", "D", "plain decoding of the float target"),
    "lossless": ("#0072b2", "o", "lossless, by drafter"),
    "lenience": ("#e69f00", "^", "lenience:L"),
    "typical": ("#009e73", "v", "typical:EPSILON"),
    "threshold": ("#cc79a7", "s", "threshold:T"),
    "topk": ("#56b4e9", "P", "topk:K"),
    "quantised": ("#d55e00", "X", "target in few bits"),
}
"""For each family: its colour (Okabe and Ito's, which colour-blind readers can tell apart), its marker, and its
name."""
RADII, ANGLES = (11, 17, 25, 35, 47, 61, 77), range(0, 360, 30)
"""The distances, in typographic points, and the angles, in degrees, that a label may have from its point."""
FAR = 30
"""The distance, in typographic points, from which a line leads from a label to its point."""
Box = tuple[float, float, float, float]
"""(left, bottom, right, top) in pixels."""


def pareto(points: Sequence[TradeoffPoint], caption: str, path: Path) -> None:
    """Drift against tokens a second, as a PNG at path and as an SVG beside it."""
    figure = draw(points, caption)
    for file in (path, path.with_suffix(".svg")):
        image = io.BytesIO()
        figure.savefig(image, dpi=140, format=file.suffix[1:])
        replace(file, image.getvalue())
    pyplot().close(figure)


def draw(points: Sequence[TradeoffPoint], caption: str) -> Figure:
    """A figure with a mark for each candidate, at its speed and its drift's absolute value, with the drift's interval.
    A line joins the candidates of a rule, and another one runs along the front. A label is a candidate's name within
    its family."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(11, 6.6), layout="constrained")
    for family, (colour, marker, name) in LOOKS.items():
        members = [point for point in points if point.candidate.family == family]
        if not members:
            continue
        x, y = [point.tokens_per_second for point in members], [abs(point.drift.value) for point in members]
        reach = [_reach(point) for point in members]
        axes.errorbar(x, y, list(zip(*reach, strict=True)), fmt="none", ecolor=colour, elinewidth=1, alpha=0.45)
        if family not in ("plain", "lossless"):
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.6)
        fills = [colour if point.drift.value >= 0 else "white" for point in members]
        axes.scatter(x, y, 46, fills, marker=marker, edgecolors=colour, linewidths=1.4, zorder=4)
        axes.scatter([], [], 46, colour, marker=marker, label=name)
    best = front(points)
    x, y = [each.tokens_per_second for each in best], [each.distance for each in best]
    label = "Pareto front (a lossless decoder's drift counts as 0)"
    axes.step([*x, 0], [*y, y[-1]], "k--", where="post", linewidth=1.2, alpha=0.7, zorder=1, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    fastest, farthest = max(each.tokens_per_second for each in points), max(_top(each) for each in points)
    axes.set_xlim(0, 1.12 * fastest)
    axes.set_ylim(-0.07 * farthest, 1.1 * farthest)
    axes.set_xlabel("tokens a second, sampled at temperature 1 (median of the prompts)")
    axes.set_ylabel("drift from the float target, nats a token (95 % interval)\nfilled: too greedy, hollow: degraded")
    axes.spines[["top", "right"]].set_visible(False)
    plain = next(point.tokens_per_second for point in points if point.candidate.family == "plain")
    above = axes.secondary_xaxis("top", functions=(lambda rate: rate / plain, lambda times: times * plain))
    above.set_xlabel("times plain decoding", fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(textwrap.fill(caption, 130), fontsize=9)
    figure.canvas.draw()  # this computes all sizes
    _label(axes, points)
    return figure  # type: ignore[no-any-return]  # pyplot is untyped here


def _reach(point: TradeoffPoint) -> tuple[float, float]:
    """How far the interval reaches below and above the drift's absolute value; not below zero."""
    half = (point.drift.high - point.drift.low) / 2
    return min(half, abs(point.drift.value)), half


def _top(point: TradeoffPoint) -> float:
    return abs(point.drift.value) + _reach(point)[1]


def _label(axes: Axes, points: Sequence[TradeoffPoint]) -> None:
    """Write each point's name as near to the point as possible without covering a mark or another name. figure.canvas
    must have been drawn, so that sizes are known."""
    from matplotlib.text import Text

    figure = axes.figure
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]  # Agg's
    scale = figure.dpi / 72
    at = [axes.transData.transform((each.tokens_per_second, abs(each.drift.value))) for each in points]
    taken: list[Box] = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in at]
    room = axes.get_window_extent(renderer)
    for point, (x, y) in sorted(zip(points, at, strict=True), key=lambda each: -each[1][1]):
        colour, _, _ = LOOKS[point.candidate.family]
        text = axes.annotate(
            point.candidate.label, (point.tokens_per_second, abs(point.drift.value)), (0, 0),
            textcoords="offset points", fontsize=8.5, color=colour, ha="center", va="center", zorder=5,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip
        text.set_in_layout(False)
        size = Text.get_window_extent(text, renderer)  # without the line to its point
        half = size.width / 2 + 1.5 * scale, size.height / 2 + 1.0 * scale
        best = (math.inf, (0.0, 0.0), (0.0, 0.0, 0.0, 0.0))
        for radius, angle in itertools.product(RADII, ANGLES):
            # a name is wider than high, so it needs more distance at its sides
            right = math.cos(math.radians(angle)) * (radius * scale + half[0] - half[1])
            up = math.sin(math.radians(angle)) * radius * scale
            box = (x + right - half[0], y + up - half[1], x + right + half[0], y + up + half[1])
            outside = box[0] < room.x0 or box[1] < room.y0 or box[2] > room.x1 or box[3] > room.y1
            cost = sum(_shared(box, other) for other in taken) + outside * 1e6
            if cost < best[0]:
                best = cost, (right / scale, up / scale), box
            if not cost:
                break
        text.set_position(best[1])
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(math.hypot(*best[1]) > FAR)  # a short line would look like a minus sign
        taken.append(best[2])


def _shared(one: Box, other: Box) -> float:
    """The area that two boxes share, in pixels."""
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


COLUMNS = (
    "candidate", "family", "lossless", "on_front", "prompts", "tokens", "tokens_per_second", "over_plain",
    "over_plain_low", "over_plain_high", "acceptance_rate", "drift", "drift_low", "drift_high", "perplexity",
    "distinct_1", "distinct_2", "distinct_3", "repetition", "greedy_tokens_per_second", "greedy_over_plain",
    "greedy_over_plain_low", "greedy_over_plain_high", "agreement", "same_texts",
)  # fmt: skip


def records(points: Sequence[TradeoffPoint]) -> list[dict[str, Any]]:
    """For each point a dict with COLUMNS; all values except the first four are numbers."""
    best = front(points)
    return [
        dict(
            zip(
                COLUMNS,
                (
                    each.candidate.name, each.candidate.family, each.candidate.lossless, each in best, each.prompts,
                    each.tokens, each.tokens_per_second, each.over_plain.value, each.over_plain.low,
                    each.over_plain.high, each.acceptance_rate, each.drift.value, each.drift.low, each.drift.high,
                    each.perplexity, *each.distinct, each.repetition, each.greedy_tokens_per_second,
                    each.greedy_over_plain.value, each.greedy_over_plain.low, each.greedy_over_plain.high,
                    each.agreement, each.same_texts,
                ),
                strict=True,
            )
        )
        for each in points
    ]  # fmt: skip


def table(points: Sequence[TradeoffPoint], path: Path) -> None:
    """Write records() as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(points))
    replace(path, text.getvalue().encode())
