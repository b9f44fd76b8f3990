"""sybil compare: what speculation gains, and that nothing in the output changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from sybil.cli import options
from sybil.cli.terminal import make_console, make_progress, make_table
from sybil.devices import choose_device, dtype_named
from sybil.drafting.window import AUTO
from sybil.errors import InvalidSetting
from sybil.loading import IN_BLOCKS, dtype_chosen, keeps_blocks
from sybil.measuring import compare as measuring
from sybil.measuring import files, prompts
from sybil.measuring.contenders import AUTOREGRESSIVE, OURS, PEERS
from sybil.measuring.task import Task, read, usual_draft_dtype
from sybil.measuring.timing import Interval
from sybil.reports import figures

FULL, QUICK = (64, 48), (9, 16)  # prompts, new tokens: about two minutes and twenty seconds on two cores


def compare(
    pair: options.PairOption = None,
    target: options.TargetOption = None,
    draft: options.DraftOption = None,
    dtype: options.DtypeOption = None,
    draft_dtype: options.DraftDtypeOption = None,
    device: options.DeviceOption = None,
    gamma: options.GammaOption = None,
    rule: options.RuleOption = options.RULE,
    window: options.WindowOption = options.WINDOW,
    temperature: options.TemperatureOption = None,
    top_k: options.TopKOption = options.TOP_K,
    top_p: options.TopPOption = options.TOP_P,
    min_p: options.MinPOption = options.MIN_P,
    seed: options.SeedOption = None,
    quick: options.QuickOption = False,
    max_new_tokens: options.MaxNewTokensOption = None,
    prompt_file: options.PromptsOption = None,
    out: options.OutOption = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the JSONL file of a run that was cut off.", rich_help_panel=options.OUTPUT),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit 1 if Sybil's tokens leave those they must be, and no near-tie explains it.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
) -> None:
    """Run transformers, its own speculation, and Sybil without and with the draft over the same prompts; beside a GGUF
    file llama.cpp too, where it is installed."""
    console = make_console()
    chosen_target, chosen_draft = options.names(pair, target, draft)
    chosen_device = choose_device(device)
    sampling = options.sampling(temperature, top_k, top_p, min_p)
    count, length = QUICK if quick else FULL
    chosen = prompts.spread(options.prompts(pair, target, prompt_file), count)
    as_it_lies = keeps_blocks(chosen_target, dtype, chosen_device)
    kept = IN_BLOCKS if as_it_lies else str(dtype_chosen(chosen_target, dtype, chosen_device)).removeprefix("torch.")
    draft_kept = dtype_named(draft_dtype, draft=True)
    usual = usual_draft_dtype(chosen_draft, kept, str(chosen_device))
    task = Task(
        target=chosen_target,
        draft=chosen_draft,
        max_new_tokens=length if max_new_tokens is None else max_new_tokens,
        gamma=AUTO if gamma is None else gamma,
        dtype=kept,
        device=str(chosen_device),
        prompts=measuring.digest(chosen),
        draft_dtype=usual and str(draft_kept or usual).removeprefix("torch."),
        temperature=sampling.temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        rule=rule,
        window=window,
        seed=seed or 0,
    )
    task.check()
    if check:
        _check_comparable(task)
    rows = read(resume, task) if resume else []
    out = options.out_folder(out, "compare")
    path = resume or files.unused(out / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl")
    files.check_folder(out)

    with console.status("loading the models"):
        comparison = measuring.Comparison(task)
    files.folder(path.parent)
    done = frozenset((row["prompt"], row["contender"]) for row in rows)
    interrupted, found = False, []
    try:
        with make_progress(console) as progress:
            total = len(chosen) * len(comparison.contenders)
            bar = progress.add_task("measuring", total=total, completed=len(done))
            for row in comparison.rows(chosen, done):
                files.append(path, row)
                rows.append(row)
                progress.update(bar, advance=1, description=f"{row['prompt']}: {row['contender']}")
    except KeyboardInterrupt:
        interrupted = True
        console.print(f"interrupted: {len(rows)} rows kept in {path}; go on with --resume {path}")
    for why in comparison.left_out.values():
        console.print(why, soft_wrap=True)
    summaries = measuring.summarise(rows, tuple(comparison.contenders))
    if summaries:
        caption = _caption(comparison, summaries[0].prompts)
        found = measuring.agreements(comparison, rows, chosen)
        console.print(_table(summaries, found, console))
        console.print(caption, style="dim", soft_wrap=True)
        _print_agreement(console, task, found)
        _print_after_first(console, summaries)
        chart = path.with_suffix(".png")
        figures.comparison(summaries, rows, caption, chart)
        console.print(f"rows: {path}   chart: {chart}", soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)
    if check:
        _check(console, task, [agreement for agreement in found if agreement.contender in OURS])


def _check_comparable(task: Task) -> None:
    """Raises InvalidSetting where a difference would mean nothing."""
    if task.computed not in (torch.float32, torch.float64):
        raise InvalidSetting(f"check is on and dtype is {task.dtype}, where rounding decides often: use float32")
    if task.reference is None:
        drawn = f"rule {task.rule}" if task.draft else "no draft"
        raise InvalidSetting(
            f"check is on and temperature {task.temperature:g} with {drawn}: each decoder draws tokens of its own. Use "
            "rule coupled and a draft, leave temperature out, or let sybil verify judge what is drawn"
        )


def _check(console: Console, task: Task, found: list[measuring.Agreement]) -> None:
    """PASS, or FAIL and exit 1: what transformers' own speculation does is not ours to answer for."""
    wrong, texts = sum(each.unexplained for each in found), sum(each.texts for each in found)
    passed = texts and not wrong
    apart = f"where logits are over {measuring.NEAR_TIE:g} apart"
    verdict = f"{wrong} of {texts} texts leave the tokens of {task.reference} {apart}"
    style = "green" if passed else "red"
    console.print(f"{'PASS' if passed else 'FAIL'}: {verdict}", style=style, highlight=False, soft_wrap=True)
    if not passed:
        raise typer.Exit(1)


def _caption(comparison: measuring.Comparison, count: int) -> str:
    """What was compared, over how many prompts, and on what."""
    task, about = comparison.task, comparison.machine
    parts = [f"{task.target} with {task.draft}" if task.draft else f"{task.target} without a draft"]
    if task.sampling.greedy:
        parts.append("greedy")
    else:
        parts.append(f"temperature {task.temperature:g}")
        parts += [f"top-k {task.top_k}"] * (task.top_k != options.TOP_K)
        parts += [f"top-p {task.top_p:g}"] * (task.top_p != options.TOP_P)
        parts += [f"min-p {task.min_p:g}"] * (task.min_p != options.MIN_P)
        parts += [f"rule {task.rule}"] * bool(task.draft)
        parts.append(f"seed {task.seed}")
    parts += [f"gamma {task.gamma}"] * bool(task.draft)
    parts += [f"window {task.window}"] * (bool(task.draft) and task.window != options.WINDOW)
    kept = "" if comparison.draft_storage in (None, task.dtype) else f" (Sybil's draft {comparison.draft_storage})"
    weights = "the file's own blocks (transformers float32)" if task.dtype == IN_BLOCKS else task.dtype
    return (
        f"{', '.join(parts)}, {count} prompts, {task.max_new_tokens} new tokens, {weights}{kept} on "
        f"{about['processor']}, {about['threads']} threads, torch {about['torch']}, transformers "
        f"{about['transformers']}, commit {about['commit'] or 'none'}"
    )


def _table(summaries: list[measuring.Summary], found: list[measuring.Agreement], console: Console) -> Table:
    between = "\n" if console.is_terminal else " "
    headings = (
        "decoder", "ms/ token", "tokens/ s", "over transformers", "over Sybil, no draft",
        "accepted", "tokens/ round", "first token, ms", "peak memory, MB", "same texts",
    )  # fmt: skip
    same = {each.contender: f"{each.same} of {each.texts}" for each in found}
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
            same.get(row.contender, ""),
        )
    return table


def _interval(interval: Interval, between: str) -> str:
    if interval.low == interval.high:
        return f"{interval.value:.2f}x"
    return f"{interval.value:.2f}x{between}({interval.low:.2f} to {interval.high:.2f})"


def _print_agreement(console: Console, task: Task, found: list[measuring.Agreement]) -> None:
    if task.reference is None:
        console.print("every decoder drew tokens of its own: none must be another's", soft_wrap=True)
    for agreement in found:
        whose = f"the tokens of {task.reference} on {agreement.same} of {agreement.texts} prompts"
        console.print(f"{agreement.contender}: {whose}" + " (it rounds in its own way)" * (not agreement.bound))
        if not agreement.bound:
            continue
        what = "two best logits" if task.sampling.greedy else "two best of the draw"
        for difference in agreement.differences:
            console.print(
                f"  {difference.prompt} leaves them at token {difference.position}, "
                f"where the target's {what} are {difference.gap:.1e} apart"
            )


def _print_after_first(console: Console, summaries: list[measuring.Summary]) -> None:
    """Where a peer takes part: what a token takes once the prompt is read. The table counts the prompt in."""
    told = [row for row in summaries if row.contender in (*PEERS, AUTOREGRESSIVE)]
    if any(row.contender in PEERS for row in told):
        parts = ", ".join(
            f"{row.contender} {row.ms_after_first:.2f}{' by its own clock' if row.contender in PEERS else ''}"
            for row in told
        )
        console.print(f"milliseconds a token after the prompt: {parts}")
