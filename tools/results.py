"""Writes docs/results.md from the rows of four shipped sweeps and one of own pairs, and draws the page's figures.

    python -m tools.results FOLDER

The folder holds drafters.jsonl, gamma.jsonl, gamma_temperature.jsonl and pairs.jsonl, as `sybil sweep NAME --results
FOLDER/NAME.jsonl` wrote them, and own_pairs.jsonl, by docs/results/own_pairs.yaml. Every number of the page comes from
these rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sybil.measuring import files
from sybil.reports import theory
from sybil.reports.report import charts
from sybil.reports.rows import MeasuredCell, Results, read
from sybil.reports.tables import agreement
from sybil.sweeping.run import NONE

DOCS = Path(__file__).resolve().parents[1] / "docs"
FIGURES = {
    "gamma": ("speedup-gamma", "acceptance-place"),
    "gamma_temperature": ("speedup-gamma-temperature", "theory"),
    "drafters": ("drafters", "time-by-phase"),
    "pairs": ("speedup-pair-domain", "acceptance-domain"),
    "own_pairs": ("speedup-pair-domain", "acceptance-domain"),
}
FILES = {"own_pairs": "docs/results/own_pairs.yaml"}
"""The sweeps that don't ship."""
LOOPS = (NONE, "uncached-plain", "uncached")
OPEN = {"editing": "predictable", "code": "predictable", "conversation": "creative"}


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Iterator[str]:
    """A table in Markdown. The first `left` columns are aligned to the left."""
    yield f"| {' | '.join(headings)} |"
    yield f"|{'|'.join(['---'] * left + ['---:'] * (len(headings) - left))}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def ordered(cells: Iterable[MeasuredCell]) -> list[MeasuredCell]:
    """Plain decoding first, then by drafter, number of proposed tokens, temperature and domain. A file has its rows in
    the order in which they were done."""

    def place(cell: MeasuredCell) -> tuple[str, int, str, float, float, str]:
        config = cell.config
        rank = LOOPS.index(config.drafter) if config.drafter in LOOPS else len(LOOPS)
        gamma = float("inf") if config.gamma == "auto" else float(config.gamma)
        return config.pair, rank, config.drafter, gamma, config.temperature, config.domain

    return sorted(cells, key=place)


def over(cell: MeasuredCell) -> str:
    """A cell's speed-up with its interval."""
    found = cell.speed_up
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})" if found else ""


def kept(cell: MeasuredCell) -> str:
    rate = cell.measured.acceptance_rate
    return "" if rate is None or cell.is_plain else f"{rate:.0%}"


def speed(cell: MeasuredCell) -> str:
    return f"{cell.measured.tokens_per_second:.1f}"


def told(results: Results, name: str) -> str:
    """The command of a sweep, and where and when it ran."""
    rows = [cell.row for cell in results.cells]
    kinds = {(str(row.environment["processor"]), str(row.environment["capability"])) for row in rows}
    commits = sorted({str(row.environment["commit"]) for row in rows})
    first = rows[0].environment
    days = sorted({row.finished[:10] for row in rows})
    where = ", ".join(f"{processor} ({capability})" for processor, capability in sorted(kinds))
    return (
        f"`sybil sweep {FILES.get(name, name)}` at commit {', '.join(commits)}, {first['threads']} threads of {where}, "
        f"torch {first['torch']}, transformers {first['transformers']}, {', '.join(days)}."
    )


def matrix(
    cells: Iterable[MeasuredCell], across: Callable[[MeasuredCell], str], value: Callable[[MeasuredCell], str]
) -> Iterator[str]:
    """A table with a row for each number of proposed tokens."""
    by = {(str(cell.config.gamma), across(cell)): value(cell) for cell in cells}
    gammas, columns = dict.fromkeys(gamma for gamma, _ in by), dict.fromkeys(column for _, column in by)
    rows = [[f"K = {gamma}", *(by.get((gamma, column), "") for column in columns)] for gamma in gammas]
    return markdown(["", *columns], rows)


def throughput(results: Results) -> Iterator[str]:
    """Standard decoding compared with speculative decoding, the first prototype's loop included."""
    yield "## Standard against speculative decoding"
    yield (
        "The prototype that Sybil grew from printed 10.3 times plain decoding. It kept no keys and values: each token "
        "cost a reading of the whole text, and a round saved several such readings. `uncached-plain` and "
        "`uncached` are that loop, by transformers' forward and by the lossless rule. The last column sets every "
        "decoder beside `uncached-plain`.\n"
    )
    for pair in dict.fromkeys(cell.config.pair for cell in results.cells):
        cells = [cell for cell in results.cells if cell.config.pair == pair]
        slowest = next((cell for cell in cells if cell.config.drafter == "uncached-plain"), None)
        base = slowest.measured.tokens_per_second if slowest else None
        rows = [
            (
                "none" if cell.is_plain else cell.config.drafter,
                "" if cell.config.plain else str(cell.config.gamma),
                speed(cell),
                over(cell) if cell.config.drafter != "uncached-plain" else "",
                kept(cell),
                f"{cell.measured.tokens_per_round:.2f}",
                f"{cell.measured.tokens_per_second / base:.1f}" if base else "",
            )
            for cell in cells
        ]
        yield f"### {pair}"
        headings = ("drafter", "K", "tokens/s", "over its plain decoding", "accepted", "tokens a round")
        wide = (*headings, "over uncached-plain") if base else headings
        yield from markdown(wide, [row[: len(wide)] for row in rows])


def by_gamma(results: Results) -> Iterator[str]:
    """Gamma 1 to 8: speed and acceptance; then by kind of text."""
    yield "## Tokens proposed in a round"
    domains = list(dict.fromkeys(cell.config.domain for cell in results.drafted))
    about = {domain: f"{domain} ({OPEN[domain]})" if domain in OPEN else domain for domain in domains}
    yield "Speed-up over plain decoding of the same texts, and the share of proposed tokens that were accepted:\n"
    yield from matrix(
        results.drafted,
        lambda cell: about[cell.config.domain],
        lambda cell: f"{over(cell)}, {kept(cell)}",
    )
    yield "Tokens a second; without a draft:\n"
    plain = {cell.config.domain: speed(cell) for cell in results.cells if cell.config.drafter == NONE}
    yield from markdown(["", *(about[each] for each in domains)], [["none", *(plain[each] for each in domains)]])
    yield from matrix(results.drafted, lambda cell: about[cell.config.domain], speed)


def by_temperature(results: Results) -> Iterator[str]:
    """Gamma against temperature, and the theory beside it."""
    yield "## Tokens proposed against temperature"
    yield "Speed-up over plain decoding at the same temperature:\n"
    yield from matrix(results.drafted, lambda cell: f"{cell.config.temperature:g}", over)
    yield "Accepted of the proposed tokens:\n"
    yield from matrix(results.drafted, lambda cell: f"{cell.config.temperature:g}", kept)
    found = agreement(results)
    yield (
        "**Predicted and measured.** The formula of [theory.md](theory.md#what-sets-the-speed-up), with each cell's "
        f"own survival and costs, is within 15 % of the measured speed-up in {found.within} of {found.cells} cells. "
        + (" ".join(off(results)) or "")
        + "\n"
    )


def off(results: Results) -> Iterator[str]:
    """The cells whose predictions are off, grouped by the reason that the report gives."""
    wrong = [(cell, each) for cell in results.drafted if (each := theory.predict(cell)) and not each.agrees]
    for reason in dict.fromkeys(each.reason for _, each in wrong):
        names = [
            f"K = {cell.config.gamma} at {cell.config.temperature:g} ({each.off:+.0%})"
            for cell, each in wrong
            if each.reason == reason
        ]
        yield f"Off mostly for {reason}: {', '.join(names)}."


def by_pair(results: Results) -> Iterator[str]:
    """Pairs and domains, at four gammas."""
    yield "## Pair, kind of text, tokens proposed"
    yield (
        "This sweep keeps each model as it is stored. SmolLM2's file has blocks of 4 bits, which leave a copy of the "
        "same model few bytes to save; the tables above have it in float32. Speed-up and acceptance:\n"
    )
    yield from each_pair(results)


def by_own_pair(results: Results) -> Iterator[str]:
    """The same for two pairs of a user's own."""
    yield "## Two pairs of one's own"
    yield (
        "The same table for two pairs that a user has to name: [own_pairs.toml](results/own_pairs.toml) is the user's "
        "`pairs.toml` ([models.md](models.md)), and [own_pairs.yaml](results/own_pairs.yaml) the sweep. The draft of "
        "`smollm2-distilled` was made by `tools/distill_smollm2.sh` ([drafting.md](drafting.md)).\n"
    )
    yield from each_pair(results)


def each_pair(results: Results) -> Iterator[str]:
    """A table for each pair, and the pairs that couldn't be measured."""
    for pair in dict.fromkeys(cell.config.pair for cell in results.cells):
        cells = [cell for cell in results.drafted if cell.config.pair == pair]
        yield f"### {pair}, drafter {cells[0].config.drafter if cells else NONE}"
        yield from matrix(cells, lambda cell: cell.config.domain, lambda cell: f"{over(cell)}, {kept(cell)}")
    failed = {(row.config.pair, row.error or "") for row in results.failed}
    for pair, error in sorted(failed):
        yield f"- `{pair}` could not be measured: {error}"
    yield ""


def figures(results: Results, name: str) -> Iterator[str]:
    """Write the figures of a sweep into docs/results, and link them."""
    by_name = {chart.name: chart for chart in charts(results)}
    for each in FIGURES[name]:
        if chart := by_name.get(each):
            made = chart.render(("svg", "csv"))
            for kind, content in made.items():
                files.replace(files.folder(DOCS / "results") / f"{name}-{each}.{kind}", content)
            yield f"![{chart.title}](results/{name}-{each}.svg)\n"


def page(folder: Path) -> Iterator[str]:
    yield "# Results\n"
    yield (
        "Tables that people look for, each from a sweep by a named file. A speed-up is a median over texts, over "
        "plain decoding of the same texts in the same run, with its 95 % interval. [sweeping.md](sweeping.md) says how "
        "cells are measured, [reporting.md](reporting.md) how the figures are read. `python -m tools.results FOLDER` "
        "makes this page of the rows.\n"
    )
    parts = {
        "drafters": throughput,
        "gamma": by_gamma,
        "gamma_temperature": by_temperature,
        "pairs": by_pair,
        "own_pairs": by_own_pair,
    }
    for name, part in parts.items():
        found = read(folder / f"{name}.jsonl")
        results = replace(found, cells=tuple(ordered(found.cells)))
        yield from part(results)
        yield from figures(results, name)
        yield told(results, name) + "\n"


def main(folder: str) -> None:
    lines = "\n".join(line.rstrip("\n") if line.startswith("|") else line for line in page(Path(folder)))
    files.replace(DOCS / "results.md", (lines.rstrip() + "\n").encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
