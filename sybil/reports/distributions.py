"""A sweep's charts of distributions: acceptance over texts and by place in the block, latencies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sybil.reports import style
from sybil.reports.grouping import Panel, about, at_best, pages, panels, word
from sybil.reports.rows import MeasuredCell
from sybil.reports.speeds import SETTINGS, settings
from sybil.reports.style import Chart
from sybil.sweeping.run import Quantiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def charts(cells: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """The charts for which the cells have data."""
    proposing = [cell for cell in cells if cell.measured.proposed]
    yield from _by_domain(proposing)
    yield from _by_place(proposing)
    yield from _latencies(cells)


def _by_domain(proposing: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """How acceptance spreads over the texts of each domain."""
    title = "Acceptance by domain"
    caption = (
        "A dot a text: accepted over proposed tokens, at the number of proposed tokens (K) that was fastest. The box "
        "holds the middle half of the texts; its line is the median."
    )
    usable = panels(at_best(proposing), "domain", "gamma", hues=())
    for end, chosen in pages(usable):
        cells = [cell for panel in chosen for cell in panel.cells]
        rows = tuple(
            (*settings(cell), text, rate)
            for cell in cells
            for text, rate in enumerate(cell.measured.text_acceptance)
            if rate is not None
        )
        if rows:
            headings = (*SETTINGS, "text", "acceptance")
            yield Chart(f"acceptance-domain{end}", title, caption, headings, rows, _domain_figure(chosen, cells, title))


def _domain_figure(chosen: Sequence[Panel], cells: Sequence[MeasuredCell], title: str) -> Callable[[], Figure]:
    def draw() -> Figure:
        import seaborn  # type: ignore[import-untyped]

        jitter = np.random.default_rng(0)
        labels = [[style.wrapped(word("domain", cell.config), 1.2) for cell in panel.cells] for panel in chosen]
        height = 0.75 + max(style.rows_high(each, 0.34) for each in labels)
        titles = [panel.title for panel in chosen]
        figure, drawn = style.panels(titles, title, about(cells, "domain", "gamma"), 2, height)
        for axes, panel, domains in zip(drawn, chosen, labels, strict=True):
            names, rates = [], []
            for cell, name in zip(panel.cells, domains, strict=True):
                kept = [rate for rate in cell.measured.text_acceptance if rate is not None]
                names += [name] * len(kept)
                rates += kept
            look = {"x": rates, "y": names, "ax": axes, "orient": "h"}
            box = {"facecolor": style.COLOURS[4], "edgecolor": style.INK, "alpha": 0.45}
            seaborn.boxplot(**look, boxprops=box, linecolor=style.INK, linewidth=0.9, fliersize=0, width=0.6)
            heights = [list(dict.fromkeys(names)).index(name) for name in names] + jitter.uniform(
                -0.18, 0.18, len(names)
            )
            axes.plot(rates, heights, "o", color=style.COLOURS[0], markersize=2)
            axes.set_xlim(-0.02, 1.02)
            axes.set_xlabel("accepted / proposed, by text")
            axes.set_ylabel("")
        return figure

    return draw


def _by_place(proposing: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """Survival: the share of proposals that were kept up to each place, at the largest gamma."""
    title = "Survival by place in the block"
    caption = (
        "Of the rounds that proposed so many tokens, the share that kept all up to this one; at the largest number of "
        "proposed tokens (K) that was measured."
    )
    usable = panels([cell for cell in _farthest(proposing) if cell.measured.survival], "gamma", gamma=True)
    for end, chosen in pages(usable):
        cells = [cell for panel in chosen for cell in panel.cells]
        rows = tuple(
            (*settings(cell), place, kept)
            for cell in cells
            for place, kept in enumerate(cell.measured.survival, start=1)
        )
        headings = (*SETTINGS, "place", "survival")
        yield Chart(f"acceptance-place{end}", title, caption, headings, rows, _place_figure(chosen, cells, title))


def _farthest(cells: Sequence[MeasuredCell]) -> list[MeasuredCell]:
    """Among cells that differ in gamma only, the cell of the largest number; that of auto where no gamma is a
    number."""
    found: dict[tuple[object, ...], MeasuredCell] = {}
    for cell in cells:
        key = tuple(value for name, value in cell.config if name != "gamma")
        known = found.get(key)
        if known is None or _number(cell) > _number(known):
            found[key] = cell
    return list(found.values())


def _number(cell: MeasuredCell) -> int:
    return 0 if cell.config.gamma == "auto" else int(cell.config.gamma)


def _place_figure(chosen: Sequence[Panel], cells: Sequence[MeasuredCell], title: str) -> Callable[[], Figure]:
    def draw() -> Figure:
        titles = [panel.title for panel in chosen]
        names = list(dict.fromkeys(name for panel in chosen for name in panel.series))
        columns = 3 if len(chosen) > 2 else 2
        figure, drawn = style.panels(titles, title, about(cells, "gamma"), columns, 1.7, legend=names)
        for axes, panel in zip(drawn, chosen, strict=True):
            for name, (cell, *_) in panel.series.items():
                kept = cell.measured.survival
                axes.plot(range(1, len(kept) + 1), kept, **style.series(names.index(name)), label=name)
            most = max(len(cell.measured.survival) for cell in panel.cells)
            axes.set_xticks(range(1, most + 1, -(-most // 8)))
            axes.set_xlim(0.6, most + 0.4)
            axes.set_ylim(0, 1.03)
            axes.set_xlabel("place in the block")
        for axes in drawn[::columns]:
            axes.set_ylabel("kept up to there")
        style.key(figure, drawn)
        return figure

    return draw


def _latencies(cells: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """Cumulative distributions of the milliseconds for a token, and of those to the first token."""
    for name, title, label, quantiles in (
        ("latency-token", "Latency of a token", "milliseconds a token", _per_token),
        ("latency-first-token", "Time to the first token", "milliseconds to the first token", _to_first),
    ):
        caption = (
            f"The share of samples that took no longer than so many {label}: farther left is faster. At the number of "
            "proposed tokens (K) that was fastest. A steep line means that all took much the same."
        )
        usable = panels(
            [cell for cell in at_best(cells) if quantiles(cell).count], "gamma", hues=("drafter",), gamma=True
        )
        for end, chosen in pages(usable):
            shown = [cell for panel in chosen for cell in panel.cells]
            rows = tuple(
                (*settings(cell), percent, ms) for cell in shown for percent, ms in enumerate(quantiles(cell).at)
            )
            figure = _latency_figure(chosen, shown, title, label, quantiles)
            yield Chart(f"{name}{end}", title, caption, (*SETTINGS, "percent", "ms"), rows, figure)


def _per_token(cell: MeasuredCell) -> Quantiles:
    return cell.measured.ms_per_token


def _to_first(cell: MeasuredCell) -> Quantiles:
    return cell.measured.ms_to_first_token


def _latency_figure(
    chosen: Sequence[Panel],
    cells: Sequence[MeasuredCell],
    title: str,
    label: str,
    quantiles: Callable[[MeasuredCell], Quantiles],
) -> Callable[[], Figure]:
    def draw() -> Figure:
        columns = 3 if len(chosen) > 2 else 2
        names = list(dict.fromkeys(name for panel in chosen for name in panel.series))
        titles, told = [panel.title for panel in chosen], about(cells, "drafter", "gamma")
        figure, drawn = style.panels(titles, title, told, columns, 1.7, legend=names)
        for axes, panel in zip(drawn, chosen, strict=True):
            for name, (cell, *_) in panel.series.items():
                look = style.series(names.index(name)) | {"markevery": (3 + 4 * names.index(name), 24)}
                axes.plot(quantiles(cell).at, np.linspace(0, 1, 101), **look, label=name)
            _scale(axes, [quantiles(cell) for cell in panel.cells])
            axes.set_ylim(-0.02, 1.02)
            axes.set_xlabel(label)
        for axes in drawn[::columns]:
            axes.set_ylabel("share of samples")
        style.key(figure, drawn)
        return figure

    return draw


def _scale(axes: Axes, found: Sequence[Quantiles]) -> None:
    """Make an axis begin at 0. Where the slowest 1 % is far away, the axis ends at the 99 % quantile."""
    farthest, most = max(each.at[-1] for each in found), max(each.p99 for each in found)
    axes.set_xlim(0, 1.05 * (most if farthest > 3 * most > 0 else farthest) or 1)
