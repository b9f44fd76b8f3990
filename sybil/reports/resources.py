"""A sweep's charts of the time that cells take by phase, and of their memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sybil.reports import style
from sybil.reports.grouping import about, at_best, varying, word
from sybil.reports.rows import MeasuredCell
from sybil.reports.speeds import SETTINGS, settings
from sybil.reports.style import Chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHASES = ("prefill", "draft", "verify", "sample", "other")
SAID = ("reading the prompt", "drafting", "verifying", "sampling and the rule", "everything else")
COLOURS = tuple(style.COLOURS[place] for place in (4, 5, 0, 2, 3))
BARS = 14
"""The most bars of a figure."""


def charts(cells: Sequence[MeasuredCell]) -> Iterator[Chart]:
    """Both charts, with a bar for each cell, at each drafter's best gamma."""
    told = [field for field in varying(cells) if field not in ("drafter", "gamma")]
    ordered = sorted(at_best(cells), key=lambda cell: [str(getattr(cell.config, field)) for field in told])
    for start in range(0, len(ordered), BARS):
        end = f"-{start // BARS + 1}" if start else ""
        chosen = ordered[start : start + BARS]
        told = [field for field in varying(chosen) if field not in ("drafter", "gamma")]
        yield _time(end, chosen, told)
        yield _memory(end, chosen, told)


def _label(cell: MeasuredCell, told: Sequence[str]) -> str:
    words = [word(field, cell.config) for field in told]
    drafter = f"{word('drafter', cell.config)}\u00a0{word('gamma', cell.config)}".strip()
    return style.wrapped(", ".join(filter(None, [*words, drafter])), 2.4)


def _look(colour: str, place: int) -> dict[str, Any]:
    """The look of a part's bars: colour and hatch together, so that a reader needs only one of them."""
    return {"color": colour, "hatch": style.HATCHES[place], "edgecolor": style.PAPER, "linewidth": 0.4}


def _time(end: str, chosen: Sequence[MeasuredCell], told: Sequence[str]) -> Chart:
    title = "Where a token's time goes"
    caption = (
        "Milliseconds a new token by phase, at the number of proposed tokens (K) that was fastest for the drafter. A "
        "bar is as long as the whole time that a token takes, with its share of the reading of prompts."
    )

    def spent(cell: MeasuredCell) -> list[float]:
        return [1e3 * getattr(cell.measured.phases, phase) / cell.measured.emitted for phase in PHASES]

    def draw() -> Figure:
        labels = [_label(cell, told) for cell in chosen]
        told_above, height = about(chosen, "gamma"), 0.55 + style.rows_high(labels)
        figure, (axes,) = style.panels([""], title, told_above, 1, height, legend=SAID, width=style.PAGE)
        begun = [0.0] * len(chosen)
        for phase, said in enumerate(SAID):
            values = [spent(cell)[phase] for cell in chosen]
            axes.barh(range(len(chosen)), values, 0.72, begun, label=said, **_look(COLOURS[phase], phase))
            begun = [start + value for start, value in zip(begun, values, strict=True)]
        axes.set_yticks(range(len(chosen)), labels)
        axes.set_ylim(len(chosen) - 0.4, -0.6)
        axes.set_xlim(0, 1.12 * max(*begun, 1e-9))
        for place, whole in enumerate(begun):
            axes.annotate(f"{whole:.3g}", (whole, place), (3, 0), textcoords="offset points", va="center")
        axes.set_xlabel("milliseconds a token")
        style.key(figure, [axes])
        return figure

    rows = tuple((*settings(cell), *spent(cell)) for cell in chosen)
    headings = (*SETTINGS, *(f"{phase}_ms_per_token" for phase in PHASES))
    return Chart(f"time-by-phase{end}", title, caption, headings, rows, draw)


def _memory(end: str, chosen: Sequence[MeasuredCell], told: Sequence[str]) -> Chart:
    title = "Memory by phase"
    caption = (
        "MiB: the weights, and with them the most that was needed while prompts were read and while tokens were "
        "decoded. A bar is missing where the system doesn't tell."
    )
    parts = (("weights", "weights"), ("prefill", "weights and reading prompts"), ("decode", "weights and decoding"))

    def amounts(cell: MeasuredCell) -> list[float | None]:
        memory = cell.measured.memory
        return [
            None
            if (more := getattr(memory, part)) is None
            else (more + (memory.weights if part != "weights" else 0)) / 2**20
            for part, _ in parts
        ]

    def draw() -> Figure:
        labels = [_label(cell, told) for cell in chosen]
        told_above, height = about(chosen, "gamma"), 0.55 + style.rows_high(labels, 0.36)
        names = [said for _, said in parts]
        figure, (axes,) = style.panels([""], title, told_above, 1, height, legend=names, width=style.PAGE)
        known = [
            (place, part, value)
            for place, cell in enumerate(chosen)
            for part, value in enumerate(amounts(cell))
            if value is not None
        ]
        for part, (_, said) in enumerate(parts):
            bars = [(place + 0.27 * (part - 1), value) for place, which, value in known if which == part]
            if bars:
                places, values = zip(*bars, strict=True)
                axes.barh(places, values, 0.25, label=said, **_look(COLOURS[part + 2], part))
        axes.set_yticks(range(len(chosen)), labels)
        axes.set_ylim(len(chosen) - 0.4, -0.6)
        axes.set_xlim(0, 1.12 * max(value for _, _, value in known) or 1)
        axes.set_xlabel("MiB")
        style.key(figure, [axes])
        return figure

    rows = tuple((*settings(cell), *amounts(cell)) for cell in chosen)
    return Chart(
        f"memory{end}", title, caption, (*SETTINGS, "weights_mib", "with_prefill_mib", "with_decoding_mib"), rows, draw
    )
