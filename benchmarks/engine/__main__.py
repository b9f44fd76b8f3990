"""The engine's bars, measured: `python -m benchmarks.engine flat`, `step`, `replay`, `bits`, `real`, `widths`,
`acceptance`, `drafts`, `window`, `copies` or `replay-copy`, on an idle machine.

Each prints what was found beside what was asked for, and appends it all to the file that --out names.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.engine import acceptance as of_acceptance
from benchmarks.engine import bars
from benchmarks.engine import blocks as of_blocks
from benchmarks.engine import drafts as of_drafts
from benchmarks.engine import real as reals
from benchmarks.engine import widths as widths_of
from benchmarks.engine import window as of_window
from sybil.cli.terminal import make_console, make_progress, make_table
from sybil.loading import load
from sybil.measuring import files
from sybil.measuring import prompts as texts
from sybil.measuring.machine import describe
from sybil.pairs import PAIRS, SMOLLM2, STDLIB

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = make_console()

OutOption = Annotated[Path, typer.Option(help="JSONL file to append the result to.")]
PassesOption = Annotated[int, typer.Option(min=2, help="How often everything is measured.")]
QUARTILES = "quartiles"
OUT, ROWS = Path("sybil-engine.jsonl"), Path("sybil-widths.jsonl")


def _measure(
    command: str, runs: int, measure: Callable[[bars.Tick], bars.Result], out: Path, spread: str = "95 % interval"
) -> None:
    """Measure under a progress bar of `runs` steps, print the bars as a table, and append the record to `out`. spread:
    what the low and high ends of a bar's interval are, for the table's heading."""
    with make_progress(console) as progress:
        task = progress.add_task(command, total=runs)
        result = measure(lambda what: progress.update(task, advance=1, description=what))
    table = make_table(console, command, "found", spread, "bar", "")
    for bar in result.bars:
        found, bound = bar.found, bar.at_least if bar.at_most is None else bar.at_most
        asked = "" if bound is None else f"at {'least' if bar.at_most is None else 'most'} {bound:g}"
        told = f"{found.low:.3f} to {found.high:.3f}" if found.low < found.high else ""
        verdict = {True: "met", False: "missed", None: ""}[bar.met]
        table.add_row(bar.what, f"{found.value:.3f}", told, asked, verdict)
    console.print(table)
    _append(command, result.record(), out)


def _append(command: str, record: dict[str, Any], out: Path) -> None:
    about = describe(torch.device("cpu"))
    date = time.strftime("%Y-%m-%d")
    files.append(out, {"command": command, "date": date, **about, **record})
    console.print(
        f"{about['processor']}, {about['threads']} threads, torch {about['torch']}, transformers "
        f"{about['transformers']}, commit {about['commit'] or 'none'}, {date}; appended to {out}",
        style="dim",
        soft_wrap=True,
    )


@app.command()
def flat(passes: PassesOption = 30, out: OutOption = OUT) -> None:
    """Verification is flat: 9 tokens cost at most 1.25 times 1 token."""
    _measure("flat", 3 * passes, lambda tick: bars.flat(passes, tick), out)


@app.command()
def blocks(passes: PassesOption = 20, out: OutOption = OUT) -> None:
    """Weights in a file's blocks, each format and SmolLM2's mix: 5 tokens cost at most 1.8 times 1, 9 at most 2.6."""
    _measure("blocks", passes, lambda tick: of_blocks.measure(passes, tick), out)


@app.command()
def acceptance(
    pair: Annotated[str, typer.Option(help="The pair whose target drafts for itself.")] = SMOLLM2,
    drafts: Annotated[list[str] | None, typer.Option("--draft", help="A name of --draft; several times.")] = None,
    shifted: Annotated[
        list[int] | None, typer.Option(help="Bits of a copy with shifted blocks; several times.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts, decoded together.")] = 6,
    new_tokens: Annotated[int, typer.Option(min=8, help="New tokens a prompt.")] = 48,
    out: OutOption = OUT,
) -> None:
    """What a target's copies are worth as its draft: bits, acceptance, tokens a round."""
    names = drafts or ["self:8", "self:6", "self:5", "self:4", "skip"]
    chosen = PAIRS[pair]
    table = make_table(console, f"{pair} drafts for itself", "setting", "accepted", "tokens a round", "MB a step")
    rows = of_acceptance.measure(chosen.source, chosen.prompts, names, shifted or [], prompts, new_tokens)
    found = []
    for row in rows:
        found.append(asdict(row))
        table.add_row(row.copy, row.setting, f"{row.accepted:.3f}", f"{row.tokens:.2f}", f"{row.megabytes:.1f}")
    console.print(table)
    _append("acceptance", {"pair": pair, "prompts": prompts, "new_tokens": new_tokens, "found": found}, out)


@app.command()
def step(passes: PassesOption = 30, out: OutOption = OUT) -> None:
    """A GPT-2 Medium step beside transformers' forward, and its share of the streaming bandwidth."""
    _measure("step", passes, lambda tick: bars.step(passes, tick), out)


@app.command()
def replay(
    prompts: Annotated[int, typer.Option(min=1, help="Random prompts a workload.")] = 2,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of a prompt by each decoder.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=8, help="New tokens a run.")] = 64,
    out: OutOption = OUT,
) -> None:
    """A replay at 75 % acceptance: how much faster speculation is when its costs are real."""
    plan = bars.ReplayPlan(prompts=prompts, repetitions=repetitions, new_tokens=new_tokens)
    runs = sum(2 + (bars.TRANSFORMERS in bounds) for bounds in bars.REPLAY_BARS.values()) * prompts * repetitions
    _measure("replay", runs, lambda tick: bars.replay(plan, tick), out)


@app.command()
def bits(
    tokens: Annotated[int, typer.Option(min=1, help="Greedy tokens to compare in each dtype.")] = 100_000,
    out: OutOption = OUT,
) -> None:
    """Speculative tokens against autoregressive ones, float32 and bfloat16: exit 1 if a single one differs."""
    rows: list[bars.Bits] = []
    interrupted = False
    try:
        with make_progress(console) as progress:
            bar = progress.add_task("bits", total=2 * tokens)
            for row in bars.bits(tokens):
                rows.append(row)
                what = f"{row.pair} {row.dtype}, gamma {row.gamma}, batch {row.batch}"
                progress.update(bar, advance=row.compared, description=what)
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: what was compared so far")
    compared: Counter[tuple[str, str]] = Counter()
    differing: Counter[tuple[str, str]] = Counter()
    accepted: Counter[tuple[str, str]] = Counter()
    proposed: Counter[tuple[str, str]] = Counter()
    for row in rows:
        key = row.dtype, row.pair
        compared[key] += row.compared
        differing[key] += row.differing
        accepted[key] += row.accepted
        proposed[key] += row.proposed
    table = make_table(console, "bits", "tokens compared", "accepted", "differing")
    for key, count in compared.items():
        rate = accepted[key] / max(proposed[key], 1)
        table.add_row(" ".join(key), str(count), f"{rate:.0%}", str(differing[key]))
    verdict = "missed" if differing.total() else "met" if not interrupted else "met so far"
    table.add_row("all (bar: 0 differ)", str(compared.total()), "", f"{differing.total()}, {verdict}")
    console.print(table)
    pairs = [
        {"dtype": dtype, "pair": pair, "compared": count, "differing": differing[dtype, pair]}
        for (dtype, pair), count in compared.items()
    ]
    _append("bits", {"compared": compared.total(), "differing": differing.total(), "pairs": pairs}, out)
    if differing.total():
        raise typer.Exit(1)
    if interrupted:
        raise typer.Exit(130)


@app.command()
def real(
    passes: PassesOption = 30,
    prompts: Annotated[int, typer.Option(min=2, help="English prompts beside llama.cpp.")] = 12,
    gemma: Annotated[Path | None, typer.Option(help="The GGUF file of Gemma 3 270M, if it is to take part.")] = None,
    out: OutOption = OUT,
) -> None:
    """SmolLM2 from its file, beside llama.cpp (and Gemma 3); verifying, loading, memory; beside a busy process."""
    runs = 2 * prompts * (2 if gemma else 1) + passes + max(passes // 6, 2) + 2 * max(passes // 3, 2)
    _measure("real", runs, lambda tick: reals.real(passes, prompts, gemma, tick), out)


@app.command()
def drafts(
    what: Annotated[str, typer.Argument(help=f"One of {', '.join(of_drafts.COMPARISONS)}.")] = SMOLLM2,
    prompts: Annotated[int, typer.Option(min=4, help="Prompts, as many of each kind.")] = 24,
    gamma: Annotated[str, typer.Option(help="auto, or tokens a round.")] = "auto",
    out: OutOption = OUT,
) -> None:
    """Drafters without a second model over plain decoding, by kind of prompt."""
    if what not in of_drafts.COMPARISONS:
        raise typer.BadParameter(f"use one of {', '.join(of_drafts.COMPARISONS)}")
    asked = of_drafts.COMPARISONS[what]
    runs = prompts * (1 + len(asked.drafters) + bool(asked.over_transformers))
    size = int(gamma) if gamma.isdecimal() else gamma
    _measure(f"drafts {what}", runs, lambda tick: of_drafts.compare(what, prompts, size, tick), out, QUARTILES)


@app.command()
def window(
    pair: Annotated[str, typer.Argument(help=f"One of {', '.join(of_window.DRAFTERS)}.")] = STDLIB,
    drafter: Annotated[str, typer.Argument(help="draft, self or useless (random weights).")] = of_window.USELESS,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts, as many of each kind.")] = 12,
    tokens: Annotated[int, typer.Option(min=8, help="New tokens a prompt; useless: 128 always.")] = 64,
    out: OutOption = OUT,
) -> None:
    """gamma auto beside gammas 1 to 8 by kind of prompt: 0.95 of the best, or 0.96 of plain by a useless draft."""
    if drafter not in of_window.DRAFTERS.get(pair, ()):
        choices = "; ".join(f"{name} with {', '.join(each)}" for name, each in of_window.DRAFTERS.items())
        raise typer.BadParameter(f"use {choices}")
    runs = prompts * (2 if drafter == of_window.USELESS else 2 + len(of_window.GAMMAS))
    measure: Callable[[bars.Tick], bars.Result] = lambda tick: of_window.window(pair, drafter, prompts, tokens, tick)  # noqa: E731
    _measure(f"window {pair} {drafter}", runs, measure, out, QUARTILES)


@app.command()
def copies(
    pair: Annotated[str, typer.Argument(help="The pair whose target is copied.")] = SMOLLM2,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts, as many of each kind.")] = 12,
    passes: PassesOption = 30,
    out: OutOption = OUT,
) -> None:
    """Copies of a target in 4 to 8 bits: a step costs at most 1.3 times its bytes at the streaming rate."""
    runs = passes + prompts * (1 + 3 * len(of_drafts.BITS))
    _measure(f"copies {pair}", runs, lambda tick: of_drafts.copies(pair, prompts, passes, tick), out, QUARTILES)


@app.command()
def replay_copy(
    bits: Annotated[int, typer.Option(help="The copy's: 4, 5, 6 or 8.")] = 4,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs by each decoder, at each gamma.")] = 5,
    out: OutOption = OUT,
) -> None:
    """GPT-2 Medium's shape, drafted for by a copy of itself that replays it at 75 % acceptance: at least 2.83."""
    if bits not in of_drafts.BITS:
        raise typer.BadParameter("bits are 4, 5, 6 or 8")
    gammas = (4, 6, 8)
    runs = 2 * repetitions * len(gammas)
    _measure("replay-copy", runs, lambda tick: of_drafts.replay(bits, gammas, repetitions, tick), out, QUARTILES)


@app.command()
def widths(
    tokens: Annotated[int, typer.Option(min=1, help="Greedy tokens to verify.")] = 100_000,
    rows: Annotated[Path, typer.Option(help="JSONL file of what is done, which a later run goes on with.")] = ROWS,
    out: OutOption = OUT,
) -> None:
    """SmolLM2's greedy tokens verified 1 to 9 at a time in batches of 1 to 4: exit 1 if a logit has another bit."""
    decoder = load(reals.smollm2(), device=bars.CPU)
    chosen = texts.load(shipped=PAIRS[SMOLLM2].prompts)
    compared: Counter[int] = Counter()
    differing: Counter[int] = Counter()
    leaving = 0
    with make_progress(console) as progress:
        bar = progress.add_task("widths", total=tokens)
        tell: widths_of.Tick = lambda count, what: progress.update(bar, advance=count, description=what)  # noqa: E731
        for row in widths_of.run(decoder, chosen, tokens, rows, tell):
            compared[row.width] += row.compared
            differing[row.width] += row.differing
            leaving += row.leaving
    table = make_table(console, "verified at a time", "tokens compared", "logits with other bits")
    for width, count in sorted(compared.items()):
        table.add_row(str(width), str(count), str(differing[width]))
    table.add_row("all (bar: 0)", str(compared.total()), f"{differing.total()}, {leaving} other tokens")
    console.print(table)
    record = {"compared": compared.total(), "differing": differing.total(), "leaving": leaving}
    _append("widths", record, out)
    if differing.total():
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
