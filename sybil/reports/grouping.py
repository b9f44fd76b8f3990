"""Groups cells into panels, names panels and series, and chooses the gamma that represents a drafter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sybil.errors import one_line
from sybil.reports.rows import MeasuredCell
from sybil.reports.style import SERIES
from sybil.sweeping.run import NONE, RunConfig

FIELDS = tuple(RunConfig.model_fields)
OF_DRAFTS = ("drafter", "rule", "gamma", "window", "draft_dtype")
"""The settings that plain decoding doesn't have."""
HUES = ("drafter", "domain", "temperature", "rule", "pair")
"""The settings by which a panel's series may differ. The first of them that varies is used."""
PLAIN = "no draft"
PANELS = 6
"""The most panels of a figure. Further panels go into the next figure."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. series: its cells, by the setting in which they differ. told: the settings that axes and legend show.
    title: what its cells share and the figure's other panels don't; pages() sets it."""

    series: Mapping[str, tuple[MeasuredCell, ...]]
    told: frozenset[str]
    title: str = ""

    @property
    def cells(self) -> tuple[MeasuredCell, ...]:
        return tuple(cell for cells in self.series.values() for cell in cells)


def word(field: str, config: RunConfig) -> str:
    """A setting in a reader's words: "K4", "greedy", "T 0.8", "batch 4"; "" for plain decoding where it lacks the
    setting."""
    value = getattr(config, field)
    if isinstance(value, str):
        value = one_line(value, 80)
    if config.plain and field in OF_DRAFTS:
        return "" if field != "drafter" else PLAIN if config.drafter == NONE else value
    match field:
        case "pair" | "device":
            said = value
        case "drafter":
            said = "the pair's draft" if value == "pair" else value
        case "gamma":
            said = "K\u00a0auto" if value == "auto" else f"K{value}"
        case "temperature":
            said = f"T\u00a0{value:g}" if value else "greedy"  # no line break within it
        case "domain":
            said = "all domains" if value == "all" else value
        case "rule" | "window":
            said = f"{value} {field}"
        case "dtype":
            said = value or "usual dtype"
        case "draft_dtype":
            said = f"draft in {value or 'its usual dtype'}"
        case _:
            said = f"{field.replace('_', ' ')}\u00a0{value}"
    return str(said)


def varying(cells: Iterable[MeasuredCell]) -> list[str]:
    """The settings in which cells differ. Settings of drafts are compared among the cells that have a draft."""
    every = list(cells)
    drafted = [cell for cell in every if not cell.is_plain]
    chosen = {field: drafted if field in OF_DRAFTS else every for field in FIELDS}
    return [field for field in FIELDS if len({getattr(cell.config, field) for cell in chosen[field]}) > 1]


def about(cells: Sequence[MeasuredCell], *apart: str) -> str:
    """What the cells of a chart have in common, for the line under its title."""
    different = {*varying(cells), *apart}
    drafted = [cell for cell in cells if not cell.is_plain] or cells
    told = [field for field in ("pair", "drafter", "temperature", "domain", "batch") if field not in different]
    return " · ".join(word(field, drafted[0].config) for field in told) if cells else ""


def at_best(cells: Sequence[MeasuredCell]) -> list[MeasuredCell]:
    """Keeps one gamma among cells that differ in gamma and domain only. Among the gammas measured in the most domains
    it is the one with the most tokens a second (the geometric mean). It represents a drafter in charts without an axis
    for gamma. The cells of plain decoding are kept."""
    kept = [cell for cell in cells if cell.is_plain]
    for group in split([cell for cell in cells if not cell.is_plain], "gamma", "domain").values():
        by_gamma: dict[int | str, list[float]] = {}
        for cell in group:
            by_gamma.setdefault(cell.config.gamma, []).append(math.log(cell.measured.tokens_per_second))
        best = max((len(rates), sum(rates) / len(rates), str(gamma)) for gamma, rates in by_gamma.items())[2]
        kept += [cell for cell in group if str(cell.config.gamma) == best]
    return kept


def split(cells: Iterable[MeasuredCell], *apart: str) -> dict[tuple[object, ...], list[MeasuredCell]]:
    """The cells grouped by all settings except those in `apart`."""
    found: dict[tuple[object, ...], list[MeasuredCell]] = {}
    for cell in cells:
        found.setdefault(tuple(getattr(cell.config, field) for field in FIELDS if field not in apart), []).append(cell)
    return found


def panels(cells: Sequence[MeasuredCell], *apart: str, hues: Sequence[str] = HUES, gamma: bool = False) -> list[Panel]:
    """The cells by panel. apart: the settings on the panel's axes. hues: the first of these settings that varies makes
    the panel's series. gamma: whether a series' name has its gamma, too. Plain decoding is a series of every panel
    whose texts it decodes."""
    drafted = [cell for cell in cells if not cell.is_plain]
    plain = split((cell for cell in cells if cell.is_plain), *OF_DRAFTS, *apart)
    different = [field for field in varying(drafted or cells) if field not in apart]
    hue = next((field for field in hues if field in different), None)
    series_by = {hue, "gamma"} if gamma else {hue}
    found = []
    for group in split(drafted or cells, *apart, *(field for field in series_by if field)).values():
        series: dict[str, list[MeasuredCell]] = {}
        if drafted:
            # baselines decode the panel's texts; where texts make the series, they would double their number
            own = {key for each in group for key in split([each], *OF_DRAFTS, *apart)}
            base = [cell for key, each in plain.items() if key in own for cell in each]
            if base and hue in (None, *OF_DRAFTS):
                series[PLAIN] = base
        for cell in sorted(group, key=lambda each: _rank(hue, each)):
            name = word(hue, cell.config) if hue else word("drafter", cell.config)
            name += f"\u00a0{word('gamma', cell.config)}" if gamma and not cell.config.plain else ""
            series.setdefault(name, []).append(cell)
        names = list(series)
        for start in range(0, len(names), SERIES):
            chosen = names[start : start + SERIES]
            told = frozenset(field for field in (*apart, *series_by) if field)
            found.append(Panel({name: tuple(series[name]) for name in chosen}, told))
    return found


def _rank(hue: str | None, cell: MeasuredCell) -> float:
    """A sort key: numbers ascend, and names keep the order of the file."""
    value = getattr(cell.config, hue) if hue else None
    return float(value) if isinstance(value, int | float) else 0.0


def pages(found: Sequence[Panel], most: int = PANELS) -> Iterator[tuple[str, list[Panel]]]:
    """For each figure, (the suffix of its name: "", "-2", "-3"; its panels with their titles)."""
    for number, start in enumerate(range(0, len(found), most), start=1):
        chosen = found[start : start + most]
        different = varying(cell for panel in chosen for cell in panel.cells)
        titled = []
        for panel in chosen:
            own, drafted = varying(panel.cells), [cell for cell in panel.cells if not cell.is_plain] or panel.cells
            words = [
                word(field, drafted[0].config) for field in different if field not in panel.told and field not in own
            ]
            titled.append(replace(panel, title=", ".join(words)))
        yield f"-{number}" if number > 1 else "", titled
