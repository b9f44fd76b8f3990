"""sybil compare: what speculation gains, and that nothing in the output changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sybil.cli.options import (
    DeviceOption,
    DraftOption,
    DtypeOption,
    GammaOption,
    PairOption,
    TargetOption,
    names,
)
from sybil.cli.terminal import make_console, make_progress, make_table
from sybil.devices import choose_device
from sybil.errors import InvalidSetting
from sybil.loading import dtype_chosen
from sybil.measuring import compare as measuring
from sybil.measuring import files, prompts
from sybil.measuring.timing import Interval
from sybil.reports import figures
from sybil.settings import Settings

OURS = (measuring.AUTOREGRESSIVE, measuring.SPECULATIVE)
FULL, QUICK = (64, 48), (9, 16)  # prompts, new tokens: about two minutes and twenty seconds on two cores


def compare(
    pair: PairOption = "stdlib",
    target: TargetOption = None,
    draft: DraftOption = None,
    gamma: GammaOption = 4,
    quick: Annotated[bool, typer.Option("--quick", help="A seventh of the prompts, a third of the tokens.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="New tokens a prompt.")] = None,
    prompt_file: Annotated[Path | None, typer.Option("--prompts", help="JSONL with your own prompts.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the rows (JSONL) and the chart (PNG).")] = Path("sybil-compare"),
    resume: Annotated[Path | None, typer.Option(help="Go on with the JSONL file of a run that was cut off.")] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit 1 if Sybil's tokens leave transformers' where no near-tie explains it."),
    ] = False,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Run transformers, its assisted generation, and Sybil without and with the draft over the same prompts."""
    console = make_console()
    chosen_target, chosen_draft = names(pair, target, draft)
    if chosen_draft is None:
        raise InvalidSetting(f"target {chosen_target} has no draft to compare with: add --draft")
    chosen_device = choose_device(device)
    count, length = QUICK if quick else FULL
    chosen = prompts.spread(prompts.load(prompt_file), count)
    task = measuring.Task(
        target=chosen_target,
        draft=chosen_draft,
        max_new_tokens=length if max_new_tokens is None else max_new_tokens,
        gamma=gamma,
        dtype=str(dtype_chosen(chosen_target, dtype, chosen_device)).removeprefix("torch."),
        device=str(chosen_device),
        prompts=measuring.digest(chosen),
    )
    if check and task.dtype not in ("float32", "float64"):
        raise InvalidSetting(f"check is on and dtype is {task.dtype}, where rounding decides often: use float32")
    Settings(gamma=task.gamma, max_new_tokens=task.max_new_tokens)  # refused here, before anything is loaded
    rows = measuring.read(resume, task) if resume else []
    path = resume or files.unused(out / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl")
    files.check_folder(out)

    with console.status("loading the models"):
        comparison = measuring.Comparison(task)
    files.folder(path.parent)
    done = frozenset((row["prompt"], row["contender"]) for row in rows)
    interrupted, found = False, []
    try:
        with make_progress(console) as progress:
            total = len(chosen) * len(measuring.CONTENDERS)
            bar = progress.add_task("measuring", total=total, completed=len(done))
            for row in comparison.rows(chosen, done):
                files.append(path, row)
                rows.append(row)
                progress.update(bar, advance=1, description=f"{row['prompt']}: {row['contender']}")
    except KeyboardInterrupt:
        interrupted = True
        console.print(f"interrupted: {len(rows)} rows kept in {path}; go on with --resume {path}")
    summaries = measuring.summarise(rows)
    if summaries:
        about = comparison.machine
        caption = (
            f"{task.target} with {task.draft}, greedy, gamma {task.gamma}, {summaries[0].prompts} prompts, "
            f"{task.max_new_tokens} new tokens, {task.dtype} on {about['processor']}, {about['threads']} threads, "
            f"torch {about['torch']}, transformers {about['transformers']}, commit {about['commit'] or 'none'}"
        )
        console.print(_table(summaries, console))
        console.print(caption, style="dim", soft_wrap=True)
        found = measuring.differences(comparison, rows, chosen)
        _print_agreement(console, found, rows)
        chart = path.with_suffix(".png")
        figures.comparison(summaries, rows, caption, chart)
        console.print(f"rows: {path}   chart: {chart}", soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)
    if check:
        _check(console, found, sum(row["contender"] in OURS for row in rows))


def _check(console: Console, found: list[measuring.Difference], compared: int) -> None:
    """PASS, or FAIL and exit 1: what transformers' own assisted generation does is not ours to answer for."""
    from sybil.losslessness.evidence import FLOAT32

    near_tie = FLOAT32.absolute
    wrong = [each for each in found if each.contender in OURS and not each.gap <= near_tie]  # NaN is no near-tie
    passed = compared and not wrong
    verdict = f"{len(wrong)} of {compared} texts leave transformers' where logits are over {near_tie:g} apart"
    style = "green" if passed else "red"
    console.print(f"{'PASS' if passed else 'FAIL'}: {verdict}", style=style, highlight=False, soft_wrap=True)
    if not passed:
        raise typer.Exit(1)


def _table(summaries: list[measuring.Summary], console: Console) -> Table:
    between = "\n" if console.is_terminal else " "
    headings = (
        "decoder", "ms/ token", "tokens/ s", "over transformers", "over Sybil, no draft",
        "accepted", "tokens/ round", "first token, ms", "peak memory, MB",
    )  # fmt: skip
    table = make_table(console, *(heading.replace("/ ", f"/{between.strip(' ')}") for heading in headings))
    for row in summaries:
        table.add_row(
            row.contender,
            f"{row.ms_per_token:.2f}",
            f"{row.tokens_per_second:.0f}",
            _interval(row.over_transformers, between),
            _interval(row.over_autoregressive, between),
            "" if row.acceptance_rate is None else f"{row.acceptance_rate:.0%}",
            f"{row.tokens_per_round:.2f}",
            f"{row.ms_to_first_token:.1f}",
            "" if row.peak_memory is None else f"{row.peak_memory / 1e6:.0f}",
        )
    return table


def _interval(interval: Interval, between: str) -> str:
    if interval.low == interval.high:
        return f"{interval.value:.2f}x"
    return f"{interval.value:.2f}x{between}({interval.low:.2f} to {interval.high:.2f})"


def _print_agreement(console: Console, found: list[measuring.Difference], rows: list[measuring.Row]) -> None:
    referred = {row["prompt"] for row in rows if row["contender"] == measuring.TRANSFORMERS}
    for name in measuring.CONTENDERS[1:]:
        total = sum(row["contender"] == name and row["prompt"] in referred for row in rows)
        differing = [difference for difference in found if difference.contender == name]
        console.print(f"{name}: the tokens of transformers generate on {total - len(differing)} of {total} prompts")
        for difference in differing:
            console.print(
                f"  {difference.prompt} leaves them at token {difference.position}, "
                f"where the target's two best logits are {difference.gap:.1e} apart"
            )
