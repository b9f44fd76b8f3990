"""A sweep's charts of speed: the speed-up over plain decoding by gamma, temperature, pair, domain and drafter; measured
speed-ups beside predicted ones; tokens a second by the number of rows in a batch. Charts without data aren't made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sybil.errors import one_line
from sybil.reports import style, theory
from sybil.reports.grouping import Panel, about, at_best, pages, panels, word
from sybil.reports.rows import MeasuredCell
from sybil.reports.style import Chart, Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVER = "speed-up over plain decoding"
MEASURED, SAID, PLAIN = "measured, 95 % interval", "theory at measured survival and cost", "plain decoding"
SETTINGS = ("pair", "drafter", "gamma", "temperature", "domain", "batch")
INTERVAL = ("speed_up", "low", "high")


def settings(cell: MeasuredCell) -> tuple[Value, ...]:
    """The values of SETTINGS of a cell, by which a chart's table names the cell."""
    return tuple(getattr(cell.config, field) for field in SETTINGS)


def _interval(cell: MeasuredCell) -> tuple[Value, ...]:
    found = cell.speed_up
    return (found.value, found.low, found.high) if found else (None, None, None)


def charts(cells: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """The charts for which the cells have data."""
    known = [cell for cell in cells if cell.speed_up and cell.speed_up.value > 0]
    yield from _maps(known)
    yield from _by_gamma(known)
    yield from _by_drafter(known)
    yield from _beside_theory(known)
    yield from _by_batch(cells)


def _maps(known: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """Speed-up by gamma and temperature; and by pair with drafter and domain, at each row's best gamma."""
    by_gamma = [
        panel for panel in panels(known, "gamma", "temperature", hues=()) if _spans(panel, "gamma", "temperature")
    ]
    for end, chosen in pages(by_gamma, 3):
        title = "Speed-up by proposed tokens and temperature"
        caption = (
            "A field is how many times as fast as plain decoding the cell was: the median over texts. Above 1.00 "
            "drafting pays."
        )
        yield _map(f"speedup-gamma-temperature{end}", title, caption, ("temperature",), "gamma", chosen)
    rows = ("pair", "drafter", "gamma")
    by_domain = [panel for panel in panels(at_best(known), "domain", *rows, hues=()) if _spans(panel, "domain")]
    for end, chosen in pages(by_domain, 3):
        title = "Speed-up by pair, drafter and domain"
        caption = (
            "A field is the median speed-up over the texts of a domain. K is the number of proposed tokens that was "
            "fastest for the row's pair and drafter."
        )
        yield _map(f"speedup-pair-domain{end}", title, caption, rows, "domain", chosen)


def _spans(panel: Panel, *fields: str) -> bool:
    return all(len({getattr(cell.config, field) for cell in panel.cells}) > 1 for field in fields)


def _map(name: str, title: str, caption: str, down: tuple[str, ...], across: str, chosen: Sequence[Panel]) -> Chart:
    """A heatmap for each panel. down: the settings of its rows. across: the setting of its columns."""
    cells = [cell for panel in chosen for cell in panel.cells]

    def row_of(cell: MeasuredCell) -> str:
        return style.wrapped(", ".join(filter(None, (word(field, cell.config) for field in down))), 1.6)

    def draw() -> Figure:
        import seaborn  # type: ignore[import-untyped]

        found = [cell.speed_up.value for cell in cells if cell.speed_up]
        reach = np.log2(max(1.2, *found, *(1 / value for value in found)))
        height = 0.5 + max(style.rows_high(list(dict.fromkeys(map(row_of, panel.cells))), 0.27) for panel in chosen)
        titles = [panel.title for panel in chosen]
        figure, drawn = style.panels(titles, title, about(cells, *down, across), 1, height, width=style.PAGE)
        for axes, panel in zip(drawn, chosen, strict=True):
            ordered = sorted(panel.cells, key=lambda cell: _order(getattr(cell.config, down[0])))
            rows = list(dict.fromkeys(map(row_of, ordered)))
            columns = sorted(dict.fromkeys(getattr(cell.config, across) for cell in panel.cells), key=_order)
            over = np.full((len(rows), len(columns)), np.nan)
            for cell in panel.cells:
                place = rows.index(row_of(cell)), columns.index(getattr(cell.config, across))
                over[place] = cell.speed_up.value if cell.speed_up else np.nan
            told = np.vectorize("{:.2f}".format)(over)
            look: dict[str, Any] = {"cmap": "PuOr_r", "vmin": -reach, "vmax": reach, "cbar": False, "linewidths": 0.8}
            seaborn.heatmap(np.log2(over), ax=axes, annot=told, fmt="", **look)
            for text, value in zip(axes.texts, over[~np.isnan(over)], strict=True):
                is_dark = abs(np.log2(value)) > 0.6 * reach
                text.set(color=style.ON_DARK if is_dark else style.ON_LIGHT, fontsize=style.SMALL)
            names = [style.wrapped(one_line(str(column), 80), 4.4 / len(columns)) for column in columns]
            axes.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=0)
            axes.set_yticks(np.arange(len(rows)) + 0.5, rows, rotation=0)
            axes.tick_params(length=0)
        drawn[-1].set_xlabel("proposed tokens a round (K)" if across == "gamma" else across)
        return figure

    return Chart(
        name, title, caption, (*SETTINGS, *INTERVAL), tuple((*settings(c), *_interval(c)) for c in cells), draw
    )


def _order(value: object) -> tuple[int, float]:
    """A sort key: numbers ascend, and words follow in their own order."""
    return (0, float(value)) if isinstance(value, int | float) else (1, 0.0)


def _by_gamma(known: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """The speed-up by gamma, measured and predicted by theory."""
    title = "Speed-up by proposed tokens, measured and by the theory"
    caption = (
        "Dots: the median over texts, with its 95 % interval. Dashed: what the formula of docs/theory.md gives at the "
        "survival measured at the panel's largest K, and the costs measured at every K. Dotted: plain decoding."
    )
    usable = [panel for panel in panels(known, "gamma", hues=()) if _spans(panel, "gamma")]
    for end, chosen in pages(usable):
        yield Chart(
            f"speedup-gamma{end}",
            title,
            caption,
            (*SETTINGS, *INTERVAL, "theory"),
            _gamma_rows(chosen),
            _gamma_figure(chosen, title),
        )


def _sorted(cells: Sequence[MeasuredCell]) -> list[MeasuredCell]:
    return sorted(cells, key=lambda cell: _order(cell.config.gamma))


def _gamma_rows(chosen: Sequence[Panel]) -> tuple[tuple[Value, ...], ...]:
    rows: list[tuple[Value, ...]] = []
    for panel in chosen:
        said = theory.curve(panel.cells)
        for cell in _sorted(panel.cells):
            gamma = cell.config.gamma
            is_said = gamma != "auto" and int(gamma) < len(said)
            rows.append((*settings(cell), *_interval(cell), said[int(gamma)] if is_said else None))
    return tuple(rows)


def _gamma_figure(chosen: Sequence[Panel], title: str) -> Any:
    def draw() -> Figure:
        cells = [cell for panel in chosen for cell in panel.cells]
        columns, titles = 3 if len(chosen) > 2 else 2, [panel.title for panel in chosen]
        figure, drawn = style.panels(titles, title, about(cells, "gamma"), columns, 1.7, legend=(MEASURED, SAID, PLAIN))
        highest = 1.0
        for axes, panel in zip(drawn, chosen, strict=True):
            ordered, said = _sorted(panel.cells), theory.curve(panel.cells)
            numbers = [int(cell.config.gamma) for cell in ordered if cell.config.gamma != "auto"]
            last = max(numbers, default=0)
            places = [last + 1 if cell.config.gamma == "auto" else int(cell.config.gamma) for cell in ordered]
            found = [cell.speed_up for cell in ordered if cell.speed_up]
            bars = [[each.value - each.low for each in found], [each.high - each.value for each in found]]
            axes.errorbar(
                places,
                [e.value for e in found],
                bars,
                fmt="o",
                color=style.COLOURS[0],
                markersize=4,
                capsize=2,
                label=MEASURED,
            )
            if said:
                axes.plot(range(len(said)), said, "--", color=style.COLOURS[1], label=SAID)
            axes.axhline(1, color=style.INK, linewidth=0.8, linestyle=":", label=PLAIN)
            step = -(-last // 8) or 1
            ticks = list(range(0, last + 1, step)) if last else []
            if last in places and last + 1 in places:
                ticks = [tick for tick in ticks if tick <= last - step] + [last]
            axes.set_xticks(
                [*ticks, *([last + 1] if last + 1 in places else [])],
                [*map(str, ticks), *(["auto"] if last + 1 in places else [])],
            )
            axes.set_xlim(-0.5, max(places) + 0.7)
            highest = max(highest, *(each.high for each in found), *said)
            axes.set_xlabel("proposed tokens a round (K)")
        for axes in drawn:
            axes.set_ylim(0, 1.08 * highest)
        for axes in drawn[::columns]:
            axes.set_ylabel("speed-up")
        style.key(figure, drawn)
        return figure

    return draw


def _by_drafter(known: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """A bar for each drafter, at its best gamma."""
    title = "Speed-up by drafter"
    caption = (
        "A bar is the median over texts, at the number of proposed tokens (K) that was fastest for the drafter. The "
        "line on it is the 95 % interval. Dotted: plain decoding. The drafter uncached is over uncached-plain, its own "
        "plain decoding without a cache."
    )
    usable = [panel for panel in panels(at_best(known), "drafter", "gamma", hues=()) if _spans(panel, "drafter")]
    for end, chosen in pages(usable):
        cells = [cell for panel in chosen for cell in panel.cells]
        rows = tuple((*settings(cell), *_interval(cell)) for cell in cells)
        yield Chart(
            f"drafters{end}", title, caption, (*SETTINGS, *INTERVAL), rows, _drafter_figure(chosen, cells, title)
        )


def _drafter_figure(chosen: Sequence[Panel], cells: Sequence[MeasuredCell], title: str) -> Any:
    def draw() -> Figure:
        ranked = [
            sorted(panel.cells, key=lambda cell: -cell.speed_up.value if cell.speed_up else 0.0) for panel in chosen
        ]
        labels = [
            [style.wrapped(f"{word('drafter', c.config)}\u00a0{word('gamma', c.config)}".strip(), 1.3) for c in ordered]
            for ordered in ranked
        ]
        height, titles = 0.6 + max(style.rows_high(names, 0.3) for names in labels), [panel.title for panel in chosen]
        figure, drawn = style.panels(titles, title, about(cells, "gamma"), 2, height)
        highest = max(cell.speed_up.high for cell in cells if cell.speed_up)
        for axes, ordered, names in zip(drawn, ranked, labels, strict=True):
            for place, cell in enumerate(ordered):
                if (found := cell.speed_up) is None:
                    continue
                bar = [[found.value - found.low], [found.high - found.value]]
                pays = found.value >= 1
                look: dict[str, Any] = {"color": style.COLOURS[0 if pays else 1], "hatch": "" if pays else "//"}
                axes.barh(
                    place,
                    found.value,
                    0.7,
                    edgecolor=style.PAPER,
                    xerr=bar,
                    error_kw={"elinewidth": 1, "capsize": 2, "ecolor": style.INK},
                    **look,
                )
                axes.text(found.high + 0.02 * highest, place, f"{found.value:.2f}", va="center")
            axes.set_yticks(range(len(ordered)), names)
            axes.set_ylim(len(ordered) - 0.4, -0.6)
            axes.axvline(1, color=style.INK, linewidth=0.8, linestyle=":")
            axes.set_xlim(0, 1.2 * max(highest, 1))
            axes.set_xlabel(OVER)
        return figure

    return draw


def _beside_theory(known: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """Every cell's predicted speed-up beside the measured one."""
    told = [(cell, found) for cell in known if (found := theory.predict(cell))]
    if len(told) < 2:
        return
    title = "Predicted and measured speed-up"
    caption = (
        "A dot a cell. Predicted: by the formula of docs/theory.md from the cell's own survival and its seconds of "
        "drafting and verifying. The band is 15 % of the measured speed-up to either side."
    )

    def draw() -> Figure:
        figure, (axes,) = style.panels([""], title, "", 1, 2.6, legend=("within 15 %", "agrees", "off by more"))
        values = [value for _, found in told for value in (found.measured, found.formula)]
        low, high = min(values) / 1.15, max(values) * 1.2
        line = np.array([low, high])
        axes.fill_between(
            line,
            line * (1 - theory.BAND),
            line * (1 + theory.BAND),
            color=style.COLOURS[4],
            alpha=0.3,
            linewidth=0,
            label="within 15 %",
        )
        axes.plot(line, line, ":", color=style.INK, linewidth=0.8)
        for within, colour, mark, label in ((True, 0, "o", "agrees"), (False, 1, "X", "off by more")):
            dots = [(found.measured, found.formula) for _, found in told if found.agrees is within]
            if dots:
                axes.plot(*zip(*dots, strict=True), mark, color=style.COLOURS[colour], markersize=4.5, label=label)
        axes.set_xlim(low, high)
        axes.set_ylim(min(low, low * (1 - theory.BAND)), high * (1 + theory.BAND))
        axes.set_xlabel("measured speed-up")
        axes.set_ylabel("predicted speed-up")
        style.key(figure, [axes])
        return figure

    rows = tuple((*settings(cell), found.formula, found.measured, found.off) for cell, found in told)
    yield Chart("theory", title, caption, (*SETTINGS, "predicted", "measured", "off"), rows, draw)


def _by_batch(cells: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """Tokens a second of all rows together, by the number of rows in a batch."""
    title = "Tokens a second by rows decoded together"
    caption = (
        "All rows of a batch together, at the number of proposed tokens (K) that was fastest for the drafter and batch."
    )
    usable = [panel for panel in panels(at_best(cells), "batch", "gamma") if _spans(panel, "batch")]
    for end, chosen in pages(usable):
        every = [cell for panel in chosen for cell in panel.cells]
        rows = tuple((*settings(cell), cell.measured.tokens_per_second) for cell in every)
        yield Chart(
            f"throughput-batch{end}",
            title,
            caption,
            (*SETTINGS, "tokens_per_second"),
            rows,
            _batch_figure(chosen, every, title),
        )


def _batch_figure(chosen: Sequence[Panel], cells: Sequence[MeasuredCell], title: str) -> Any:
    def draw() -> Figure:
        names = list(dict.fromkeys(name for panel in chosen for name in panel.series))
        titles, told = [panel.title for panel in chosen], about(cells, "batch", "gamma")
        figure, drawn = style.panels(titles, title, told, 2, 1.8, legend=names)
        for axes, panel in zip(drawn, chosen, strict=True):
            for name, series in panel.series.items():
                ordered = sorted(series, key=lambda cell: cell.config.batch)
                rates = [cell.measured.tokens_per_second for cell in ordered]
                axes.plot([cell.config.batch for cell in ordered], rates, **style.series(names.index(name)), label=name)
            places = sorted({cell.config.batch for cell in panel.cells})
            axes.set_xscale("log", base=2)
            axes.set_xticks(places, [str(place) for place in places])
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
            axes.set_xlabel("rows of a batch")
            axes.set_ylabel("tokens a second")
        style.key(figure, drawn)
        return figure

    return draw
