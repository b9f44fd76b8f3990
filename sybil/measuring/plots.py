"""Figures, as PNG files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sybil.measuring.compare import CONTENDERS, SPECULATIVE, TRANSFORMERS, Row, Summary, ms_per_token
from sybil.measuring.files import replace
from sybil.measuring.profile import DRAFT_STEP, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PART_COLOURS = ("#c9a227", "#7b2d8b", "#2d6a8b", "#9aa3ad")  # draft, target, sampling and rule, everything else
COLOURS = dict(zip(CONTENDERS, ("#9aa3ad", "#6b7784", "#c9a227", "#7b2d8b"), strict=True))


def comparison(summaries: Sequence[Summary], rows: Sequence[Row], caption: str, path: Path) -> None:
    """Milliseconds a token by contender, a dot a prompt; and the speed-up by domain."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

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
    domains: dict[str, list[float]] = {}
    for row in rows:
        plain = cost.get((TRANSFORMERS, row["prompt"]))
        if row["contender"] == SPECULATIVE and plain:
            domains.setdefault(row["domain"], []).append(plain / cost[SPECULATIVE, row["prompt"]])
    right.boxplot(
        list(domains.values()), tick_labels=list(domains), medianprops={"color": COLOURS[SPECULATIVE], "linewidth": 2}
    )
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    right.set_ylim(bottom=0)
    right.set_ylabel("Sybil's speed-up over transformers")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, caption, path)


def profile(report: Report, caption: str, path: Path) -> None:
    """A round's parts, stacked; and what a verification costs by the tokens in it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

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
    _save(figure, caption, path)


def _save(figure: Figure, caption: str, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.suptitle(textwrap.fill(caption, 130), fontsize=9)
    image = io.BytesIO()
    figure.savefig(image, dpi=140, format="png")
    plt.close(figure)
    replace(path, image.getvalue())
