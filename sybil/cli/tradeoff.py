"""sybil tradeoff: what lossy rules and targets in few bits gain over lossless decoders, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from sybil.cli import options
from sybil.cli.terminal import make_console, make_progress, make_table, print_json
from sybil.devices import choose_device
from sybil.errors import InvalidSetting
from sybil.measuring import files
from sybil.measuring.compare import digest
from sybil.measuring.prompts import Prompt

if TYPE_CHECKING:
    from sybil.trading.rows import TradeoffRow
    from sybil.trading.run import Tradeoff
    from sybil.trading.summaries import TradeoffPoint

FULL, QUICK = (24, 48), (8, 24)  # prompts, new tokens


def tradeoff(
    pair: options.PairOption = None,
    target: options.TargetOption = None,
    draft: options.DraftOption = None,
    device: options.DeviceOption = None,
    seed: options.SeedOption = None,
    quick: options.QuickOption = False,
    max_new_tokens: options.MaxNewTokensOption = None,
    prompt_file: options.PromptsOption = None,
    count: options.CountOption = None,
    out: options.OutOption = None,
    resume: options.ResumeOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Quality against speed: lossless decoders, rules that are not lossless and targets in few bits, each held to the
    float target. Only plain decoding and speculation by the rule token (draft, self, lookup) are lossless."""
    from sybil.trading.rows import Trade, read
    from sybil.trading.run import Tradeoff

    console = make_console(stderr=as_json)
    chosen_target, chosen_draft = options.names(pair, target, draft)
    usual_count, usual_length = QUICK if quick else FULL
    chosen = options.prompts(pair, target, prompt_file, usual_count if count is None else count)
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InvalidSetting(f"max_new_tokens is {max_new_tokens}: use an integer of 1 or more")
    if seed is not None and not 0 <= seed < 2**63:
        raise InvalidSetting(f"seed is {seed}: use an integer of 0 or more, of 63 bits at most")
    trade = Trade(
        target=chosen_target,
        draft=chosen_draft,
        max_new_tokens=usual_length if max_new_tokens is None else max_new_tokens,
        prompts=digest(chosen),
        device=str(choose_device(device)),
        seed=seed or 0,
    )
    rows = read(resume, trade) if resume else []
    path = options.rows_file(out, resume, "tradeoff")
    with console.status("loading the models"):
        run = Tradeoff(trade)
    files.folder(path.parent)
    interrupted = _measure(run, chosen, rows, path, console)
    _report(run, rows, path, console, as_json)
    if interrupted:
        raise typer.Exit(130)


def _measure(run: Tradeoff, chosen: Sequence[Prompt], rows: list[TradeoffRow], path: Path, console: Console) -> bool:
    """Measure the missing rows, and add them to `rows` and to the file. Returns whether Ctrl-C ended it."""
    try:
        with make_progress(console) as progress:
            bar = progress.add_task("measuring", total=run.total(chosen), completed=len(rows))
            for row in run.rows(chosen, frozenset(row.key for row in rows)):
                files.append(path, row.model_dump(mode="json"))
                rows.append(row)
                progress.update(bar, advance=1, description=f"{row.prompt}: {row.candidate}, {row.mode}")
    except KeyboardInterrupt:
        console.print(f"interrupted: {len(rows)} rows kept in {path}; go on with --resume {path}", soft_wrap=True)
        return True
    return False


def _report(run: Tradeoff, rows: Sequence[TradeoffRow], path: Path, console: Console, as_json: bool) -> None:
    """Print the tables and draw the picture, over the prompts that every candidate has finished."""
    from sybil.reports import tradeoff as picture
    from sybil.trading.summaries import summarise

    for name, why in run.left_out.items():
        console.print(f"{name} is left out: {why}", soft_wrap=True)
    points = summarise(rows, run.candidates)
    if not points:
        return
    caption = _caption(run, rows, points)
    chart, numbers = path.with_suffix(".png"), path.with_suffix(".csv")
    picture.pareto(points, caption, chart)
    picture.table(points, numbers)
    paths = {"rows": str(path), "chart": str(chart), "numbers": str(numbers)}
    if as_json:
        about = {"trade": run.trade.model_dump(), "environment": run.environment, "left_out": run.left_out}
        print_json({**about, "points": picture.records(points), **paths})
        return
    console.print(_speeds(points, console))
    console.print(_texts(points, console))
    console.print(caption, style="dim", soft_wrap=True)
    console.print("*: on the Pareto front; there a lossless decoder's drift is 0, as is proved", soft_wrap=True)
    console.print("   ".join(f"{name}: {file}" for name, file in paths.items()), soft_wrap=True)


def _headed(console: Console, *headings: str) -> Table:
    """A table whose headings take two lines on a terminal."""
    wide = not console.is_terminal
    return make_table(console, *(each.replace("-\n", "").replace("\n", " ") if wide else each for each in headings))


def _speeds(points: Sequence[TradeoffPoint], console: Console) -> Table:
    """The table of speed and drift of sampled texts."""
    from sybil.trading.summaries import front

    headings = ("lossless", "tokens\n/s", "over\nplain", "ac-\ncepted", "drift, nats a token\n(95 % interval)")
    table, best = _headed(console, "sampled", *headings), front(points)
    for each in points:
        table.add_row(
            each.candidate.name + " *" * (each in best),
            "yes" if each.candidate.lossless else "no",
            f"{each.tokens_per_second:.0f}",
            f"{each.over_plain.value:.2f}x",
            "" if each.acceptance_rate is None else f"{each.acceptance_rate:.0%}",
            f"{each.drift.value:+.3f} (\u00b1 {each.drift.high - each.drift.value:.3f})",
        )
    return table


def _texts(points: Sequence[TradeoffPoint], console: Console) -> Table:
    """The table of the sampled texts' metrics, and of the greedy texts' speed and agreement."""
    headings = ("perplex-\nity", "distinct\n1, 2, 3", "re-\npeated", "greedy\nspeed", "agree-\nment")
    table = _headed(console, "texts", *headings, f"same\nof {points[0].prompts}")
    for each in points:
        table.add_row(
            each.candidate.name,
            f"{each.perplexity:.1f}",
            " ".join(f"{share:.2f}" for share in each.distinct),
            f"{each.repetition:.1%}",
            f"{each.greedy_over_plain.value:.2f}x",
            f"{each.agreement:.0%}",
            str(each.same_texts),
        )
    return table


def _caption(run: Tradeoff, rows: Sequence[TradeoffRow], points: Sequence[TradeoffPoint]) -> str:
    """What was compared, and on which machine. The commits are those of the measured rows."""
    trade, about = run.trade, run.environment
    commits = " and ".join(dict.fromkeys(str(row.environment.get("commit") or "none") for row in rows))
    beside = f"with {trade.draft}" if trade.draft else "without a draft of its own"
    return (
        f"{trade.target} {beside}, the float target in float32, {points[0].prompts} prompts, {trade.max_new_tokens} "
        f"new tokens, sampled at temperature 1 and greedily, gamma auto, seed {trade.seed}, on {about['processor']}, "
        f"{about['threads']} threads, torch {about['torch']}, commit {commits}"
    )
