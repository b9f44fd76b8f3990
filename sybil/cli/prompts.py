"""sybil prompts: prompts to measure by, of three domains or a user's own, and their lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from sybil.arguments import described
from sybil.checking.sight import seen
from sybil.cli import options
from sybil.cli.terminal import make_console, make_table, print_json
from sybil.errors import DatasetUnusable, HubUnreachable, InvalidSetting, PackageMissing
from sybil.measuring import files as disk
from sybil.measuring.compare import digest
from sybil.measuring.hub_prompts import fetch
from sybil.measuring.promptset import COUNT, DOMAINS, TINY, Lengths, PromptSet
from sybil.pairs import default_pair

AUTO, HUB, SHIPPED = SOURCES = ("auto", "hub", "shipped")


def prompts(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Your own files, each a domain by its name: .txt, a prompt a line, or JSONL, a text or messages each. "
            "If left out: code, conversation and summarization.",
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            help="Where the three domains are from. hub: openai/openai_humaneval, tatsu-lab/alpaca and "
            "abisee/cnn_dailymail, by the package datasets; shipped: prompts written for Sybil, without network; "
            "auto: the hub's where they can be had, and the shipped ones elsewhere.",
            rich_help_panel=options.AMOUNT,
        ),
    ] = AUTO,
    domain: Annotated[
        list[str] | None,
        typer.Option(help="Only this domain; may be given several times.", rich_help_panel=options.AMOUNT),
    ] = None,
    count: options.CountOption = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help=f"{TINY} prompts, as many of each kind.", rich_help_panel=options.AMOUNT)
    ] = False,
    seed: options.SeedOption = None,
    pair: options.PairOption = None,
    target: options.TargetOption = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the prompts to this file, as JSONL, for --prompts of the other commands.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Prompts to measure by: choose them, count their tokens by a model's tokenizer, and save them."""
    model, wanted, seed = target or pair or default_pair(), _count(count, tiny), seed or 0
    _check(source, files, save)
    named = options.names(pair or default_pair(), target, None)[0]
    tokenizer = seen(named, tokenizer=True)[0].tokenizer  # no weights of a hub model are fetched
    if tokenizer is None:
        raise InvalidSetting(f"{model} has no tokenizer: choose a model that does")
    if files:
        found, origin = PromptSet.load(*files), "files"
    else:
        found, origin = _of_domains(source, domain or DOMAINS, tokenizer, wanted, seed)
    chosen = (found.only(domain) if domain else found).sample(wanted, seed)
    lengths = chosen.lengths(tokenizer)
    path = None if save is None else disk.unused(save)
    if path is not None:
        chosen.save(path)
    if as_json:
        domains = {name: asdict(each) for name, each in lengths.items()}
        about = {"source": origin, "seed": seed, "tokenizer": model, "digest": digest(list(chosen.prompts))}
        print_json(about | {"domains": domains, "saved": None if path is None else str(path)})
        return
    console = make_console()
    console.print(_table(console, lengths))
    console.print(f"tokens by the tokenizer of {model}; prompts: {origin}, seed {seed}", style="dim", soft_wrap=True)
    if path is not None:
        console.print(f"saved: {path}", soft_wrap=True)


def _count(count: int | None, tiny: bool) -> int:
    """How many prompts the options ask for. Raises InvalidSetting."""
    if tiny and count is not None:
        raise InvalidSetting(f"count is {count} and a tiny set has {TINY} prompts: leave one of them out")
    return TINY if tiny else COUNT if count is None else count


def _check(source: str, files: list[Path] | None, save: Path | None) -> None:
    """Raises InvalidSetting for an unknown source, options that exclude each other, or a file that can't be saved."""
    if source not in SOURCES:
        raise InvalidSetting(f"source is {described(source)}: use one of {', '.join(SOURCES)}")
    if files and source != AUTO:
        raise InvalidSetting(f"source is {source!r} and {files[0]} is a file of your own: leave one of them out")
    if save is not None:
        disk.check_file(save, "save")


def _of_domains(
    source: str, domains: Sequence[str], tokenizer: Tokenizer, count: int, seed: int
) -> tuple[PromptSet, str]:
    """(the prompts of the hub or those that ship with Sybil, which of the two they are)."""
    if source != SHIPPED:
        try:
            return fetch(tokenizer, count, seed, domains), HUB
        except (DatasetUnusable, HubUnreachable, PackageMissing) as error:
            if source == HUB:
                raise
            typer.echo(f"the prompts are those that ship with Sybil: {error}", err=True)
    return PromptSet.load(), SHIPPED


def _table(console: Console, lengths: Mapping[str, Lengths]) -> Table:
    """A table with a row for each domain."""
    table = make_table(console, "domain", "n", "min", "mean", "max")
    for name, each in lengths.items():
        table.add_row(name, str(each.n), str(each.min), f"{each.mean:.1f}", str(each.max))
    return table
