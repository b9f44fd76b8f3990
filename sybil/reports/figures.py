"""Figures, as PNG files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sybil.measuring.contenders import (
    ASSISTED,
    AUTOREGRESSIVE,
    LLAMA_CPP,
    OURS,
    PROMPT_LOOKUP,
    SPECULATIVE,
    TRANSFORMERS,
)
from sybil.measuring.drafters import NONE, Way
from sybil.measuring.files import replace
from sybil.measuring.profile import DRAFT_STEP, ProfileReport
from sybil.measuring.summaries import Summary, ms_per_token
from sybil.measuring.task import Row
from sybil.measuring.timing import Interval
from sybil.reports.style import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from sybil.losslessness.chisquare import Check
    from sybil.losslessness.judge import Report as Judgement

PART_COLOURS = ("#c9a227", "#7b2d8b", "#2d6a8b", "#9aa3ad")  # draft, target, sampling and rule, everything else
VERDICT_COLOURS = {"PASS": "#2e7d4f", "FAIL": "#b3261e", "INCONCLUSIVE": "#8a6d00"}
COLOURS = {
    TRANSFORMERS: "#9aa3ad",
    ASSISTED: "#6b7784",
    PROMPT_LOOKUP: "#6b7784",
    AUTOREGRESSIVE: "#c9a227",
    SPECULATIVE: "#7b2d8b",
    LLAMA_CPP: "#2d6a8b",
}


def comparison(summaries: Sequence[Summary], rows: Sequence[Row], caption: str, path: Path) -> None:
    """Left: milliseconds for a token by contender, with a dot for each prompt. Right: the speed-up of Sybil's last
    contender by domain."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
    farthest = 0.0
    jitter = np.random.default_rng(0)
    for place, summary in enumerate(summaries):
        chosen = [row for row in rows if row["contender"] == summary.contender]
        ms = [ms_per_token(row) for row in chosen]
        left.barh(place, summary.ms_per_token, color=COLOURS[summary.contender], alpha=0.85)
        left.plot(ms, place + jitter.uniform(-0.28, 0.28, len(ms)), ".", color="black", alpha=0.35, markersize=3.5)
        label = f"{summary.ms_per_token:.2f} ms, {summary.over_transformers.value:.2f}x"
        left.text(0.99, place, label, transform=left.get_yaxis_transform(), ha="right", va="center", weight="bold")
        farthest = max(farthest, summary.ms_per_token, *ms)
    left.set_yticks(range(len(summaries)), [summary.contender for summary in summaries])
    left.invert_yaxis()
    left.set_xlabel("milliseconds a token (bar: median; dots: prompts)")
    left.set_xlim(0, 1.5 * farthest)  # the labels stand to the right of every dot

    cost = {(row["contender"], row["prompt"]): ms_per_token(row) for row in rows}
    last = [summary.contender for summary in summaries if summary.contender in OURS][-1]
    domains: dict[str, list[float]] = {}
    for row in rows:
        plain = cost.get((TRANSFORMERS, row["prompt"]))
        if row["contender"] == last and plain:
            domains.setdefault(row["domain"], []).append(plain / cost[last, row["prompt"]])
    medians = {"color": COLOURS[last], "linewidth": 2}
    right.boxplot(list(domains.values()), tick_labels=list(domains), medianprops=medians)
    _slant(right)
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    right.set_ylim(bottom=0)
    right.set_ylabel("Sybil's speed-up over transformers")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, caption, path)


def drafters(
    summaries: Sequence[Summary],
    domains: Mapping[str, Mapping[str, Interval]],
    ways: Mapping[str, Way],
    caption: str,
    path: Path,
) -> None:
    """Tokens a second by drafter, other systems first; and each drafter's speed-up over decoding without a draft, by
    kind of prompt."""
    plt = pyplot()
    rows = sorted(summaries, key=lambda summary: summary.contender in ways)  # stable: the order is kept otherwise
    ours = [name for name in ways if name != NONE and any(name in each for each in domains.values())] or [NONE]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 1.6 + 0.34 * len(rows)), layout="constrained")
    for place, summary in enumerate(rows):
        colour = COLOURS.get(summary.contender, COLOURS[SPECULATIVE])
        colour = COLOURS[AUTOREGRESSIVE] if summary.contender == NONE else colour
        left.barh(place, summary.tokens_per_second, color=colour, alpha=0.85)
        label = f" {summary.tokens_per_second:.0f} ({summary.over_autoregressive.value:.2f}x)"
        left.text(summary.tokens_per_second, place, label, va="center", fontsize=9)
    left.set_yticks(range(len(rows)), [summary.contender for summary in rows])
    left.invert_yaxis()
    left.set_xlim(0, 1.3 * max(summary.tokens_per_second for summary in rows))
    left.set_xlabel("tokens a second (in brackets: over none, median of prompts)")
    left.spines[["top", "right"]].set_visible(False)

    over = np.array([[each[name].value if name in each else np.nan for each in domains.values()] for name in ours])
    most = max(2.0, float(np.nanmax(over)))
    right.imshow(np.log2(over), cmap="PuOr_r", vmin=-np.log2(most), vmax=np.log2(most), aspect="auto")
    for place, column in np.ndindex(over.shape):
        if not np.isnan(over[place, column]):
            told, is_dark = f"{over[place, column]:.2f}", abs(np.log2(over[place, column])) > 0.6 * np.log2(most)
            colour = "white" if is_dark else "black"
            right.text(column, place, told, color=colour, ha="center", va="center", fontsize=9)
    right.set_xticks(range(len(domains)), list(domains))
    _slant(right)
    right.set_yticks(range(len(ours)), ours)
    right.set_title("over none, by kind of prompt", fontsize=9)
    right.spines[:].set_visible(False)
    right.tick_params(length=0)
    save(figure, caption, path)


def profile(report: ProfileReport, caption: str, path: Path) -> None:
    """A round's parts as stacked bars, and the cost of a verification by its number of tokens."""
    plt = pyplot()
    figure, (above, below) = plt.subplots(2, 1, figsize=(11, 5), height_ratios=(1, 2), layout="constrained")
    start = 0.0
    for (part, ms), colour in zip(report.parts.items(), PART_COLOURS, strict=True):
        above.barh(0, ms, left=start, color=colour, label=f"{part}: {ms:.2f} ms, {ms / report.round_ms:.1%}")
        start += ms
    above.set_yticks([])
    above.set_ylim(-0.5, 0.5)
    above.set_xlabel("milliseconds of a round")
    above.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9)

    for place, forward in enumerate(report.forwards):
        below.barh(place, forward.ms, color=PART_COLOURS[0 if forward.name == DRAFT_STEP else 1])
        below.text(
            forward.ms, place, f" {forward.ms:.2f} ms, {forward.share:.0%} of streaming", va="center", fontsize=9
        )
    below.set_yticks(range(len(report.forwards)), [forward.name for forward in report.forwards])
    below.invert_yaxis()
    below.set_xlabel("milliseconds of a forward (median)")
    below.set_xlim(0, 1.3 * max(forward.ms for forward in report.forwards))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, caption, path)


def losslessness(report: Judgement, caption: str, path: Path) -> None:
    """The histogram of u with the band in which chance leaves it, and maps of the dependence between pairs of
    tokens."""
    plt = pyplot()
    figure = plt.figure(figsize=(11, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(11, 10), height_ratios=(1, 12))
    title = f"{report.subject}: {report.verdict}"
    if report.drift is not None:
        drift = report.drift
        title += f"     drift {drift.value:+.3f} nats a token, 95 % interval {drift.low:+.3f} to {drift.high:+.3f}"
    head = figure.add_subfigure(grid[0, :])
    head.text(0.5, 0.4, title, ha="center", va="center", weight="bold", color=VERDICT_COLOURS[report.verdict])
    _spread(report, figure.add_subfigure(grid[1, 0]).add_subplot())
    pairs = sorted((check for check in report.checks if check.residuals), key=lambda check: check.name)
    _pairs(pairs, figure.add_subfigure(grid[1, 1]))
    save(figure, caption, path)


def _spread(report: Judgement, axes: Axes, bins: int = 20) -> None:
    """The histogram of u. For a lossless decoder, all but one bar in a thousand end within the band."""
    from scipy import stats

    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("u: where each token stood in the target's distribution\n(0: the likeliest, 1: the rarest)")
    axes.set_ylabel("tokens, over what is expected")
    axes.set_xlim(0, 1)
    if report.evidence is None:
        axes.text(0.5, 0.5, "no sampled tokens", ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    count = len(report.evidence)
    found = np.histogram(report.evidence.u, bins, (0, 1))[0] * bins / count
    low, high = (float(stats.binom.ppf(share, count, 1 / bins)) * bins / count for share in (0.0005, 0.9995))
    outside = (found < low) | (found > high)
    colours = np.where(outside, VERDICT_COLOURS["FAIL"], PART_COLOURS[1])
    axes.bar((np.arange(bins) + 0.5) / bins, found, 0.86 / bins, color=colours, alpha=0.85)
    axes.axhspan(low, high, color=PART_COLOURS[0], alpha=0.3, zorder=0, linewidth=0, label="99.9 % of lossless bars")
    for edge in (low, high):
        axes.axhline(edge, color=PART_COLOURS[0], linewidth=1.2)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1.25 * max(high, float(found.max())))
    axes.legend(loc="upper right", frameon=False, fontsize=9)


def _pairs(checks: Sequence[Check], figure: SubFigure) -> None:
    """A small map for each check of pairs, in standard deviations."""
    from sybil.losslessness.chisquare import is_shown

    if not checks:
        figure.text(0.5, 0.5, "no pairs of tokens", ha="center", va="center")
        return
    grid = figure.add_gridspec(2, 3)
    for place, check in enumerate(checks):
        axes = figure.add_subplot(grid[divmod(place, 3)])
        residuals = np.array(check.residuals).T  # the earlier token to the right, the later one upwards
        shown = axes.imshow(residuals, cmap="PuOr", vmin=-5, vmax=5, origin="lower", extent=(0, 1, 0, 1))
        colour = VERDICT_COLOURS["FAIL"] if check.failed else "black"
        axes.set_title(f"{check.name}, {is_shown(check.p_value or 0.0)}", fontsize=9, color=colour)
        axes.set_xticks([0, 1])
        axes.set_yticks([0, 1])
        axes.tick_params(length=2, labelsize=8)
    figure.supxlabel("u of the token before, or of the same one a row above", fontsize=10)
    figure.supylabel("u of the token", fontsize=10)
    key = figure.add_subplot(grid[1, 2])  # five checks look at pairs: the sixth field is free
    key.axis("off")
    bar = figure.colorbar(shown, cax=key.inset_axes((0.1, 0.0, 0.12, 1.0)))
    bar.set_label("standard deviations over\nwhat independence gives", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _slant(axes: Axes) -> None:
    """Slant the names of domains below the axes, so that long names don't overlap."""
    for label in axes.get_xticklabels():
        label.set(rotation=20, ha="right")


def save(figure: Figure, caption: str, path: Path) -> None:
    """Write the figure as a PNG file, its caption above it, and close it."""
    figure.suptitle(textwrap.fill(caption, 130), fontsize=9)
    image = io.BytesIO()
    figure.savefig(image, dpi=140, format="png")
    pyplot().close(figure)
    replace(path, image.getvalue())
