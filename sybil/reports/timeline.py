"""The picture of a text's rounds: when draft and target worked, and how many proposed tokens were accepted along the
text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from sybil.measuring.timeline import DRAFT, SAMPLING, TARGET, TRACKS, Round
from sybil.reports.figures import PART_COLOURS, VERDICT_COLOURS, save
from sybil.reports.style import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN, AVERAGED = 10, 8
"""The number of rounds whose spans are drawn, and the number of rounds in the moving average."""
TALLEST = 0.8
COLOURS = {
    "draft": PART_COLOURS[0],
    "verify": PART_COLOURS[1],
    "sample": PART_COLOURS[2],
    "other": PART_COLOURS[3],
}
LANES = (TARGET, DRAFT, SAMPLING)


def timeline(rounds: Sequence[Round], caption: str, path: Path) -> None:
    """Above: the spans of the first rounds. Below, if a draft proposed tokens: the accepted tokens by place in the
    text."""
    if any(each.proposed for each in rounds):
        figure, (above, below) = pyplot().subplots(2, 1, figsize=(11, 6), height_ratios=(4, 5), layout="constrained")
        _spans(rounds[:SHOWN], above, LANES)
        _acceptance(rounds, below)
    else:
        figure, axes = pyplot().subplots(figsize=(11, 2.6), layout="constrained")
        _spans(rounds[:SHOWN], axes, (TARGET, SAMPLING))
    save(figure, caption, path)


def _spans(rounds: Sequence[Round], axes: Axes, lanes: Sequence[str]) -> None:
    """The spans of rounds. Time begins with the first draft, because reading the prompt takes far longer than a
    round."""
    axes.spines[["top", "right"]].set_visible(False)
    spans = [span for each in rounds for span in each.spans if span.phase != "prefill"]
    start = spans[0].begin
    for phase, colour in COLOURS.items():
        bars = [(1e3 * (span.begin - start), 1e3 * span.seconds) for span in spans if span.phase == phase]
        if TRACKS[phase] in lanes:
            bottom = lanes.index(TRACKS[phase]) - TALLEST / 2
            # an edge, so that the shortest span is visible
            axes.broken_barh(bars, (bottom, TALLEST), facecolors=colour, edgecolors=colour, linewidth=0.6, label=phase)
    for each in rounds:
        begin = next(span.begin for span in each.spans if span.phase != "prefill")
        middle = 1e3 * ((begin + each.end) / 2 - start)
        axes.axvline(1e3 * (begin - start), color="black", linewidth=0.5, alpha=0.3)
        if each.proposed:
            told = f"{each.accepted} of {each.proposed}"
            axes.text(middle, -0.62, told, ha="center", va="bottom", fontsize=8)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_ylim(len(lanes) - 0.45, -0.9)
    axes.set_xlim(0, 1e3 * (rounds[-1].end - start))
    counts = " (above each: tokens accepted of those proposed)" if DRAFT in lanes else ""
    axes.set_xlabel(f"milliseconds, the first {len(rounds)} rounds{counts}")
    axes.legend(ncols=len(COLOURS), loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)


def _acceptance(rounds: Sequence[Round], axes: Axes) -> None:
    """A bar for each round, as wide as its number of tokens, with a mark where the target rejected a proposed token."""
    axes.spines[["top", "right"]].set_visible(False)
    places = [each.place for each in rounds]
    accepted = [each.accepted for each in rounds]
    widths = [len(each.tokens) for each in rounds]
    axes.bar(
        places, accepted, widths, align="edge", color=PART_COLOURS[0], alpha=0.75, edgecolor="white", linewidth=0.4,
        label="accepted in a round",
    )  # fmt: skip
    means = [fmean(accepted[end - AVERAGED : end]) for end in range(AVERAGED, len(accepted) + 1)]
    ends = [place + width for place, width in zip(places, widths, strict=True)][AVERAGED - 1 :]
    axes.plot(ends, means, color=PART_COLOURS[1], linewidth=2, label=f"mean of {AVERAGED} rounds, up to there")
    rejected = [each.place + each.accepted + 0.5 for each in rounds if each.rejected]
    axes.plot(
        rejected, [-0.22] * len(rejected), "x", color=VERDICT_COLOURS["FAIL"], markersize=5,
        label="the target rejected a token here",
    )  # fmt: skip
    most = max(each.proposed for each in rounds)
    axes.axhline(most, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(-0.5, most + 0.5)
    axes.set_yticks(range(most + 1))
    axes.set_xlim(0, rounds[-1].place + len(rounds[-1].tokens))
    axes.set_xlabel("place in the new text, in tokens")
    axes.set_ylabel("tokens accepted")
    axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
