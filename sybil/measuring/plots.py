"""Figures, as PNG files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sybil.measuring.compare import CONTENDERS, SPECULATIVE, TRANSFORMERS, Row, Summary, ms_per_token
from sybil.measuring.files import replace

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
    figure.suptitle(textwrap.fill(caption, 130), fontsize=9)

    image = io.BytesIO()
    figure.savefig(image, dpi=140, format="png")
    plt.close(figure)
    replace(path, image.getvalue())
