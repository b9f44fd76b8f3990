"""The look of charts: colours that colour-blind readers can tell apart, a paper's widths and font sizes, and
formats."""

from __future__ import annotations

import csv
import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 89 / 25.4, 183 / 25.4
"""The widths of one column and of both columns of a paper, in inches."""
INK, PAPER = "#1a1a1a", "#ffffff"
ON_DARK, ON_LIGHT = "#fefefe", "#010101"
"""Colours of letters on coloured fields, whatever the page's own colours. Pure black isn't written into an SVG."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7f5539")  # Okabe and Ito's; brown
MARKERS, LINES = (
    ("o", "s", "^", "D", "v", "P", "X"),
    ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1))),
)
HATCHES = ("", "//", "..", "xx", "\\\\")
SERIES = len(COLOURS)
"""The most series of a panel."""
SMALL, TITLE = 8, 9
"""Font sizes in points, at the printed size."""
LETTERS = 15.5
"""Letters of the size SMALL in an inch, a little fewer than on average."""
DPI = 200
FORMATS = ("svg", "png", "csv")
Value = str | float | int | None


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart and the numbers that it shows. name: of its files. caption: how to read it. draw: makes the figure."""

    name: str
    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    draw: Callable[[], Figure]

    def render(self, formats: Sequence[str]) -> dict[str, bytes]:
        """The chart in each format."""
        found = {"csv": self._csv()} if "csv" in formats else {}
        drawn = [each for each in formats if each != "csv"]
        if not drawn:
            return found
        with self.drawn() as figure:
            for each in drawn:
                image = io.BytesIO()
                metadata = {"Date": None, "Title": self.title} if each == "svg" else {"Title": self.title}
                figure.savefig(image, format=each, dpi=DPI, metadata=metadata)
                found[each] = image.getvalue()
        return found

    @contextmanager
    def drawn(self) -> Iterator[Figure]:
        """A context manager that gives the figure, laid out, and closes it at the end."""
        plt = pyplot()
        with plt.rc_context(_RULES), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that the font lacks is drawn as a box
            warnings.filterwarnings("ignore", "vert: bool was deprecated")  # seaborn's, in matplotlib 3.11
            figure: Figure = self.draw()
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # otherwise each format would lay it out again
            yield figure
            plt.close(figure)

    def _csv(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows([["" if value is None else _guarded(value) for value in row] for row in self.rows])
        return text.getvalue().encode()


def _guarded(value: Value) -> Value:
    """The value, with a quote before a text that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def pyplot() -> Any:
    """matplotlib's pyplot, imported when a chart is made. Names are drawn unchanged: a $ begins no formula."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False
    from matplotlib import pyplot

    return pyplot


def panels(
    titles: Sequence[str],
    title: str,
    about: str,
    columns: int,
    height: float,
    *,
    legend: Sequence[str] = (),
    width: float | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure of a paper's width, with a panel for each of titles, each `height` inches high. Above the panels are the
    title and the line `about`. A single panel is one column wide by default. legend: the names that key() will show
    below the panels."""
    columns = min(columns, len(titles))
    width = width or (COLUMN if len(titles) == 1 else PAGE)
    head, below = textwrap.fill(title, letters(width, TITLE + 1)), textwrap.fill(about, letters(width))
    heads = [wrapped(each, 0.8 * width / columns) for each in titles]
    rows, lines = -(-len(titles) // columns), _lines([head])
    top = 0.06 + 0.17 * lines + (0.15 * _lines([below]) if below else 0)
    bottom = 0.1 + 0.17 * -(-len(legend) // _columns(legend, width)) if legend else 0
    whole = rows * (height + 0.14 * (_lines(heads) - 1)) + top + bottom
    made = pyplot().figure(figsize=(width, whole), layout="constrained")
    made.get_layout_engine().set(rect=(0, 0, 1, 1 - top / whole), w_pad=0.06, h_pad=0.06)
    axes = [made.add_subplot(rows, columns, place + 1) for place in range(len(titles))]
    made.text(0.5, 1 - 0.06 / whole, head, ha="center", va="top", fontsize=TITLE, weight="bold")
    if below:
        made.text(0.5, 1 - (0.08 + 0.17 * lines) / whole, below, ha="center", va="top")
    for each, text in zip(axes, heads, strict=True):
        each.spines[["top", "right"]].set_visible(False)
        if text:
            each.set_title(text)
    return made, axes


def _lines(texts: Sequence[str]) -> int:
    """The number of lines of the longest text."""
    return max((text.count("\n") + 1 for text in texts), default=1)


def _columns(labels: Sequence[str], width: float) -> int:
    """The number of columns of a legend with these labels."""
    longest = max(len(label) for label in labels) + 7
    return max(1, min(len(labels), letters(width) // longest))


def letters(inches: float, points: int = SMALL) -> int:
    """How many letters fit into a width."""
    return max(int(inches * LETTERS * SMALL / points), 8)


def wrapped(text: str, inches: float) -> str:
    """A text broken into lines of that width."""
    return textwrap.fill(text, letters(inches))


def rows_high(labels: Sequence[str], least: float = 0.25) -> float:
    """The height of the rows in inches, each as high as the label with the most lines."""
    return len(labels) * max(least, 0.15 * _lines(labels) + 0.05)


def series(place: int) -> dict[str, Any]:
    """The look of a series: colour, marker and line together, so that a reader needs only one of them."""
    return {
        "color": COLOURS[place % SERIES],
        "marker": MARKERS[place % SERIES],
        "linestyle": LINES[place % SERIES],
        "markersize": 4,
    }


def key(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    known: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if known:
        columns = _columns(list(known), figure.get_figwidth())
        figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=columns, frameon=False)


_RULES: dict[str, Any] = {
    "font.size": SMALL,
    "axes.labelsize": SMALL,
    "axes.titlesize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "sybil",
}
