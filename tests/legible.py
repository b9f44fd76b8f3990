"""Is a figure legible? Every text must lie on its canvas in large enough letters, and no two labels of an axis may
overlap."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SMALLEST = 8
"""The smallest size of a letter, in points at the printed size."""
SLACK = 0.5
"""How many pixels rounding may take away."""


def faults(figure: Figure) -> list[str]:
    """A line for each thing that can't be read; [] if all is legible. figure: after its layout was computed."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    found, left_out = [], set()
    for axes in figure.axes:
        if not axes.has_data():
            found.append(f"empty panel: {axes.get_title()!r}")
        for place, axis in enumerate((axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            labels = [label for label in axis.get_ticklabels() if _is_drawn(label)]
            drawn = [label for label in labels if low - 1e-9 <= label.get_position()[place] <= high + 1e-9]
            left_out |= {id(label) for label in labels} - {id(label) for label in drawn}  # matplotlib doesn't draw them
            found += _overlaps(drawn, renderer)
    found += _overlaps([*(axes.title for axes in figure.axes if axes.get_title()), *figure.texts], renderer)
    for text in figure.findobj(lambda each: isinstance(each, Text) and _is_drawn(each) and id(each) not in left_out):
        box, whole = text.get_window_extent(renderer), figure.bbox.padded(SLACK)
        if box.x0 < whole.x0 or box.y0 < whole.y0 or box.x1 > whole.x1 or box.y1 > whole.y1:
            found.append(f"clipped: {text.get_text()!r}")
        if text.get_fontsize() < SMALLEST:
            found.append(f"{text.get_fontsize():g} points: {text.get_text()!r}")
    return found


def _is_drawn(text: Any) -> bool:
    return bool(text.get_visible() and text.get_text().strip())


def _overlaps(labels: list[Text], renderer: Any) -> list[str]:
    boxes = [(label.get_text(), label.get_window_extent(renderer)) for label in labels]
    return [
        f"overlap: {one!r} and {other!r}"
        for (one, first), (other, second) in combinations(boxes, 2)
        if _touch(first, second)
    ]


def _touch(first: Bbox, second: Bbox) -> bool:
    across = min(first.x1, second.x1) - max(first.x0, second.x0)
    return across > SLACK and min(first.y1, second.y1) - max(first.y0, second.y0) > SLACK
