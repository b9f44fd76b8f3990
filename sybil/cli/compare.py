"""sybil compare: what speculation gains, and that nothing in the output changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from sybil.cli import comparison as printing
from sybil.cli import options
from sybil.cli.terminal import make_console, make_progress
from sybil.devices import DTYPES, choose_device, dtype_named, word_of
from sybil.drafting.window import AUTO
from sybil.errors import InvalidSetting
from sybil.loading import IN_BLOCKS, check_draft_dtype, kept_in
from sybil.measuring import compare as measuring
from sybil.measuring import files, prompts
from sybil.measuring.drafters import drafters_named, gammas_named
from sybil.measuring.summaries import by_domain, summarise
from sybil.measuring.task import Row, Task, read, usual_draft_dtype
from sybil.reports import figures

FULL, QUICK = (64, 48), (9, 16)  # prompts, new tokens: about two minutes and twenty seconds on two cores
SEVERAL, SEVERAL_QUICK = (12, 48), (4, 16)  # for --drafters: with all drafters under four minutes, and under one


def compare(
    pair: options.PairOption = None,
    target: options.TargetOption = None,
    draft: options.DraftOption = None,
    drafters: Annotated[
        str | None,
        typer.Option(
            help="Compare several drafters over one target: a list such as self,lookup,hybrid:lookup,self, or all. "
            "draft is the draft of the pair or of --draft.",
            rich_help_panel=options.MODELS,
        ),
    ] = None,
    dtype: options.DtypeOption = None,
    draft_dtype: options.DraftDtypeOption = None,
    device: options.DeviceOption = None,
    revision: options.RevisionOption = None,
    adapter: options.AdapterOption = None,
    gamma: options.GammaOption = None,
    gammas: Annotated[
        str | None,
        typer.Option(
            help="Each drafter at each of these, such as auto,4,8. If left out: auto.",
            rich_help_panel=options.SPECULATION,
        ),
    ] = None,
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
    count: options.CountOption = None,
    out: options.OutOption = None,
    resume: options.ResumeOption = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit 1 if Sybil's tokens leave those they must be, and no near-tie explains it.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
) -> None:
    """Run transformers, its own speculation, and Sybil without and with the draft, or with several drafters, over the
    same prompts; beside a GGUF file llama.cpp too, where it is installed."""
    console = make_console()
    chosen_target, chosen_draft = options.names(pair, target, draft)
    chosen_device = choose_device(device)
    sampling = options.sampling(temperature, top_k, top_p, min_p)
    if drafters is None and gammas is not None:
        raise InvalidSetting(f"gammas is {gammas} and there are no --drafters: add them, or use --gamma")
    if drafters is not None and gamma is not None:
        raise InvalidSetting(f"gamma is {gamma} beside --drafters: use --gammas {gamma}")
    several = "" if drafters is None else ",".join(drafters_named(drafters, chosen_draft))
    proposing = "" if drafters is None else ",".join(map(str, gammas_named(gammas or AUTO)))
    usual_count, usual_length = (SEVERAL_QUICK if quick else SEVERAL) if several else QUICK if quick else FULL
    chosen = options.prompts(pair, target, prompt_file, usual_count if count is None else count)
    kept = kept_in(chosen_target, dtype, chosen_device, revision)
    draft_kept = dtype_named(draft_dtype, draft=True)
    check_draft_dtype(chosen_draft, draft_kept)
    usual = usual_draft_dtype(chosen_draft, kept, str(chosen_device))
    task = Task(
        target=chosen_target,
        draft=chosen_draft,
        max_new_tokens=usual_length if max_new_tokens is None else max_new_tokens,
        gamma=AUTO if gamma is None else gamma,
        dtype=kept,
        device=str(chosen_device),
        prompts=measuring.digest(chosen),
        draft_dtype=usual and word_of(draft_kept or usual),
        temperature=sampling.temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        rule=rule,
        window=window,
        seed=seed or 0,
        drafters=several,
        gammas=proposing,
        revision=revision,
        adapter=adapter,
    )
    task.check()
    if check:
        _check_comparable(task)
    rows = read(resume, task) if resume else []
    path = options.rows_file(out, resume, "compare")
    with console.status("loading the models"):
        comparison = measuring.Comparison(task)
    files.folder(path.parent)
    interrupted = _measure(comparison, chosen, rows, path, console)
    found = _report(comparison, chosen, rows, path, console)
    if interrupted:
        raise typer.Exit(130)
    if check:
        _check(console, task, [agreement for agreement in found if agreement.contender in task.ours])


def _measure(
    comparison: measuring.Comparison, chosen: list[prompts.Prompt], rows: list[Row], path: Path, console: Console
) -> bool:
    """Measure the missing rows, and add them to `rows` and to the file. Returns whether Ctrl-C ended it."""
    done = frozenset((row["prompt"], row["contender"]) for row in rows)
    try:
        with make_progress(console) as progress:
            total = len(chosen) * len(comparison.contenders)
            bar = progress.add_task("measuring", total=total, completed=len(done))
            for row in comparison.rows(chosen, done):
                files.append(path, row)
                rows.append(row)
                progress.update(bar, advance=1, description=f"{row['prompt']}: {row['contender']}")
    except KeyboardInterrupt:
        console.print(f"interrupted: {len(rows)} rows kept in {path}; go on with --resume {path}")
        return True
    return False


def _report(
    comparison: measuring.Comparison, chosen: list[prompts.Prompt], rows: list[Row], path: Path, console: Console
) -> list[measuring.Agreement]:
    """Print the tables and draw the chart. Returns the contenders' agreement with the reference."""
    task = comparison.task
    for name, why in comparison.left_out.items():
        console.print(f"{name}: {why}" if name in task.ways else why, soft_wrap=True)
    summaries = summarise(rows, tuple(comparison.contenders), task.plain)
    if not summaries:
        return []
    caption, chart = printing.caption(comparison, rows, summaries[0].prompts), path.with_suffix(".png")
    found = measuring.agreements(comparison, rows, chosen)
    if task.drafters:
        domains = by_domain(rows, [name for name in task.ways if name in comparison.contenders], task.plain)
        console.print(printing.drafters_table(comparison, summaries, found, console))
        console.print(printing.domains_table(domains, console))
        figures.drafters(summaries, domains, task.ways, caption, chart)
    else:
        console.print(printing.table(summaries, found, console))
        figures.comparison(summaries, rows, caption, chart)
    console.print(caption, style="dim", soft_wrap=True)
    printing.print_agreement(console, task, found)
    printing.print_after_first(console, summaries, task.plain)
    console.print(f"rows: {path}   chart: {chart}", soft_wrap=True)
    return found


def _check_comparable(task: Task) -> None:
    """Raises InvalidSetting for settings under which a difference of tokens proves nothing."""
    if task.dtype not in (IN_BLOCKS, *DTYPES):
        raise InvalidSetting(
            f"check is on and dtype is {task.dtype}, which makes another model of the target than transformers runs: "
            "leave dtype out"
        )
    if task.computed not in (torch.float32, torch.float64):
        raise InvalidSetting(f"check is on and dtype is {task.dtype}, where rounding decides often: use float32")
    if task.reference is None:
        drawn = f"rule {task.rule}" if task.draft or task.drafters else "no draft"
        raise InvalidSetting(
            f"check is on and temperature {task.temperature:g} with {drawn}: each decoder draws tokens of its own. Use "
            "rule coupled and a draft, leave temperature out, or let sybil verify judge what is drawn"
        )


def _check(console: Console, task: Task, found: list[measuring.Agreement]) -> None:
    """Print PASS, or print FAIL and exit with 1. Differences of transformers' own speculation don't count."""
    wrong, texts = sum(each.unexplained for each in found), sum(each.texts for each in found)
    passed = texts and not wrong
    apart = f"where logits are over {measuring.NEAR_TIE:g} apart"
    verdict = f"{wrong} of {texts} texts leave the tokens of {task.reference} {apart}"
    style = "green" if passed else "red"
    console.print(f"{'PASS' if passed else 'FAIL'}: {verdict}", style=style, highlight=False, soft_wrap=True)
    if not passed:
        raise typer.Exit(1)
