"""The output of `sybil compare`: its tables, what was compared, and which contenders' tokens agree."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from sybil.cli import options
from sybil.cli.terminal import make_table
from sybil.devices import DTYPES
from sybil.loading import IN_BLOCKS
from sybil.measuring import compare as measuring
from sybil.measuring.contenders import PEERS
from sybil.measuring.drafters import DRAFT, NONE
from sybil.measuring.summaries import Summary
from sybil.measuring.task import Row, Task
from sybil.measuring.timing import Interval


def caption(comparison: measuring.Comparison, rows: list[Row], count: int) -> str:
    """What was compared, over how many prompts, and on which machine. The commits are those of the measured rows."""
    task, about = comparison.task, comparison.machine
    commits = " and ".join(dict.fromkeys(row["commit"] or "none" for row in rows))
    beside = "its drafters" if task.drafters else task.draft
    parts = [f"{task.target} with {beside}" if beside else f"{task.target} without a draft"]
    parts.append(task.sampling.told)
    if not task.sampling.greedy:
        parts += [f"rule {task.rule}"] * bool(beside)
        parts.append(f"seed {task.seed}")
    parts += [f"gamma {task.gamma}"] * (beside is not None and not task.drafters)
    parts += [f"window {task.window}"] * (bool(beside) and task.window != options.WINDOW)
    parts += [
        f"{name} knows the target's commonest tokens alone"
        if way == "commonest"
        else f"{name} has another tokenizer and drafts by {way}"
        for name, way in comparison.translated.items()
    ]
    is_compared = not task.drafters or any(way.drafter == DRAFT for way in task.ways.values())
    tells_storage = is_compared and comparison.draft_storage not in (None, task.dtype)
    kept = f" (Sybil's draft {comparison.draft_storage})" if tells_storage else ""
    weights = task.dtype
    if weights == IN_BLOCKS:
        weights = "the file's own blocks (transformers float32)"
    elif weights not in DTYPES:
        weights = f"{weights} (transformers the weights as stored, in float32)"
    parts += [f"{name} {value}" for name in ("revision", "adapter") if (value := getattr(task, name)) is not None]
    return (
        f"{', '.join(parts)}, {count} prompts, {task.max_new_tokens} new tokens, {weights}{kept} on "
        f"{about['processor']}, {about['threads']} threads, torch {about['torch']}, transformers "
        f"{about['transformers']}, commit {commits}"
    )


def table(summaries: list[Summary], found: list[measuring.Agreement], console: Console) -> Table:
    """The table of the decoders that are compared for one draft."""
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


def drafters_table(
    comparison: measuring.Comparison, summaries: list[Summary], found: list[measuring.Agreement], console: Console
) -> Table:
    """The table of the drafters, with other systems first. A drafter that can't be made has a row, too."""
    between = "\n" if console.is_terminal else " "
    headings = (
        "drafter", "gamma", "tokens/ s", "over none", "over transformers", "accepted", "tokens/ round",
        "draft's weights, MB", "growth, MB", "same texts",
    )  # fmt: skip
    same = {each.contender: f"{each.same} of {each.texts}" for each in found}
    by_name, task = {row.contender: row for row in summaries}, comparison.task
    plain = by_name[task.plain]
    table = make_table(console, *(heading.replace("/ ", f"/{between.strip(' ')}") for heading in headings))
    for name in (*(each for each in by_name if each not in task.ways), *task.ways):
        way, row = task.ways.get(name), by_name.get(name)
        first = (name if way is None else way.drafter, "" if way is None or way.gamma is None else str(way.gamma))
        if row is None:
            table.add_row(*first, "left out")
            continue
        growth = "" if row.peak_memory is None else f"{(row.peak_memory - row.weight_bytes) / 1e6:.0f}"
        table.add_row(
            *first,
            f"{row.tokens_per_second:.0f}",
            _interval(row.over_autoregressive, between),
            _interval(row.over_transformers, between),
            "" if row.acceptance_rate is None else f"{row.acceptance_rate:.0%}",
            f"{row.tokens_per_round:.2f}",
            "" if way is None else f"{(row.weight_bytes - plain.weight_bytes) / 1e6:.0f}",
            growth,
            same.get(name, ""),
        )
    return table


def domains_table(domains: dict[str, dict[str, Interval]], console: Console) -> Table:
    """The table of each drafter's speed-up over decoding without a draft, by domain."""
    between = "\n" if console.is_terminal else " "
    table = make_table(console, "over none, by kind of prompt", *domains)
    names = dict.fromkeys(name for each in domains.values() for name in each if name != NONE)
    for name in names:
        cells = (each.get(name) for each in domains.values())
        table.add_row(name, *("" if cell is None else _interval(cell, between) for cell in cells))
    return table


def _interval(interval: Interval, between: str) -> str:
    if interval.low == interval.high:
        return f"{interval.value:.2f}x"
    return f"{interval.value:.2f}x{between}({interval.low:.2f} to {interval.high:.2f})"


def print_agreement(console: Console, task: Task, found: list[measuring.Agreement]) -> None:
    """Print which contenders give the reference's tokens, and where the others first differ."""
    if task.reference is None:
        console.print("every decoder drew tokens of its own: none must be another's", soft_wrap=True)
    told = found if not task.drafters else [each for each in found if each.differences]  # the table has the rest
    for agreement in told:
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


def print_after_first(console: Console, summaries: list[Summary], plain: str) -> None:
    """Print the time for a token after the prompt, where a peer takes part. The table's times include the prompt."""
    told = [row for row in summaries if row.contender in (*PEERS, plain)]
    if any(row.contender in PEERS for row in told):
        parts = ", ".join(
            f"{row.contender} {row.ms_after_first:.2f}{' by its own clock' if row.contender in PEERS else ''}"
            for row in told
        )
        console.print(f"milliseconds a token after the prompt: {parts}")
