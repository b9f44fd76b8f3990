"""sybil pairs: the registered pairs, and all that is known of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sybil.cli import options
from sybil.cli.terminal import make_console, make_table, print_json
from sybil.facts import PICKLE, Facts, converting, folder_of
from sybil.models.storage import BlockStorage, Storage
from sybil.pairs import PAIRS, REGISTERED, Pair, canonical, pair

SHOWN: dict[str, Storage | BlockStorage] = {"fp32": "float32", "fp16": "float16", "int8": "int8", "q4_k": "q4_k"}
"""The storages that are shown, by their columns' headings. bfloat16 takes as much memory as float16."""
RELATIONS = {
    "same": "both have the same tokens",
    "padded": "both have the same tokens, and one has logits for more, which no text is made of",
    "different": "the draft has tokens of its own: it drafts among those that both have, or by text",
}
PAGE = "https://huggingface.co/"


def pairs(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One pair, to be shown in full; all of them if left out.", autocompletion=options.pair_names
        ),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """List the registered pairs: memory, licence, tokens, and what is on this machine. Nothing is fetched."""
    if name is not None:
        chosen = pair(name)
        if as_json:
            print_json(_record(canonical(name), chosen))
        else:
            _show(make_console(), canonical(name), chosen)
        return
    if as_json:
        print_json({"pairs": [_record(each, known) for each, known in PAIRS.items()]})
        return
    console = make_console()
    console.print(_table(console))
    for line in _notes():
        console.print(line, style="dim")


def _table(console: Console) -> Table:
    """A table with a line for each pair. It is 80 columns wide, and a name longer than the registered ones is
    folded."""
    table = make_table(console, "pair", "size", *SHOWN, "licence", "tokens", "here")
    if console.is_terminal:
        table.show_edge = table.pad_edge = False
        table.padding = 0
    name, *numbers, licence, tokens, here = table.columns
    name.no_wrap, name.overflow = False, "fold"
    for column in (*numbers, licence, tokens, here):
        column.no_wrap = True
    for column in (licence, tokens, here):
        column.justify = "left"
    for named, each in PAIRS.items():
        gate = "*" if each.gated else ""
        table.add_row(
            named,
            "+".join(map(_count, each.parameters)),
            *(_gigabytes(each.weight_bytes(storage)) for storage in SHOWN.values()),
            f"{_licence(each)}{gate}",
            each.tokenizer or "",
            _here(each),
        )
    return table


def _notes() -> list[str]:
    """Notes below the table: what its columns mean, and facts that have no column."""
    best = ", ".join(f"{name} {_draft_told(each)} {each.best.gain}x" for name, each in PAIRS.items() if each.best)
    return [
        f"size: parameters, target+draft. {', '.join(SHOWN)}: GB of both together.",
        "*: its owner has to be asked for it. tokens: the draft's beside the target's.",
        f"fastest where measured: {best}.",
        "sybil pairs NAME tells all of one; docs/models.md, how to add your own.",
    ]


def _count(parameters: int | None) -> str:
    """A number of parameters in three or four characters."""
    if parameters is None:
        return "?"
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if parameters >= size:
            whole = parameters / size
            return f"{whole:.1f}{unit}" if whole < 9.95 and unit == "B" else f"{whole:.0f}{unit}"
    return str(parameters)


def _gigabytes(size: float | None) -> str:
    if size is None:
        return "?"
    return f"{size / 1e9:.1f}" if size >= 1e8 else f"{size / 1e9:.2f}"


def _licence(each: Pair) -> str:
    """The target's licence, which matters most. `sybil pairs NAME` names both."""
    return each.facts[0].licence or "?"


def _here(each: Pair) -> str:
    """Whether the weights are on this machine, in a word."""
    places = each.places
    if None not in places:
        found = {str(place) for place in places}
        return found.pop() if len(found) == 1 else "yes"
    return {0: "no", 1: "target" if places[0] else "draft"}[sum(place is not None for place in places)]


def _draft_told(each: Pair) -> str:
    """The name of the fastest draft; "draft" for the pair's own."""
    assert each.best
    return "draft" if each.best.draft == each.draft else each.best.draft


def _show(console: Console, name: str, each: Pair) -> None:
    """Print one pair, with one fact on each line."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for label, told in _lines(name, each):
        grid.add_row(label, told)
    console.print(f"{name}: {each.about}" + f" (also {', '.join(each.aliases)})" * bool(each.aliases))
    console.print(grid)
    for line in _commands(name, each):
        console.print(line, soft_wrap=True)  # no wrapping, so that lines can be copied


def _lines(name: str, each: Pair) -> list[tuple[str, str]]:
    """The known facts about a pair, each with its label."""
    lines = [
        (label, f"{model}: {_told(facts)}; {f'here: {place}' if place else 'not here'}")
        for label, model, facts, place in zip(("target", "draft"), each.models, each.facts, each.places, strict=False)
    ]
    if len(each.models) == 1:
        alone = f"{each.draft}, which needs no second model" if each.draft else "none: name one by --draft"
        lines.append(("draft", alone))
    elif each.tokenizer:
        lines.append(("tokens", f"{each.tokenizer}: {RELATIONS[each.tokenizer]}"))
    memory = ", ".join(f"{word} {_gigabytes(each.weight_bytes(storage))}" for word, storage in SHOWN.items())
    lines.append(("weights", f"{memory} GB, target and draft; caches come on top"))
    best = f"not measured: sybil compare --pair {name} --drafters all"
    if each.best:
        told = f"{each.best.told}: {each.best.command}"
        best = f"{_draft_told(each)}, {each.best.gain} times as fast as without one ({told})"
    lines.append(("best draft", best))
    lines += [("gate", f"{model} has to be asked for: {PAGE}{model}") for model in each.gated]
    lines += [("pickle", f"{model}, which Sybil doesn't read: save it once") for model in _pickles(each)]
    return lines


def _commands(name: str, each: Pair) -> Iterator[str]:
    """The commands that fetch the weights and try the pair."""
    if each.gated:
        yield "hf auth login"
    if each.fetching and not each.installed:
        yield each.fetching
    chosen = f"--pair {name}"
    if _pickles(each):
        yield from map(converting, _pickles(each))
        chosen = " ".join(
            f"{option} {folder_of(model)}" for option, model in zip(("--target", "--draft"), each.models, strict=False)
        )
    yield f'sybil generate "Once upon a time" {chosen}'


def _pickles(each: Pair) -> list[str]:
    """The models that the hub has as pickles only."""
    return [model for model, facts in zip(each.models, each.facts, strict=True) if facts.formats == (PICKLE,)]


def _told(facts: Facts) -> str:
    known = [
        f"{facts.parameters:,} parameters" if facts.parameters else "",
        f"licence {facts.licence}" if facts.licence else "",
        " or ".join(facts.formats),
    ]
    return ", ".join(filter(None, known)) or "nothing is known before it is read"


def _record(name: str, each: Pair) -> dict[str, Any]:
    """A pair as a dict for JSON."""
    models = [
        {
            "name": model,
            "parameters": facts.parameters,
            "licence": facts.licence or None,
            "gated": facts.gated,
            "formats": list(facts.formats),
            "here": place,
        }
        for model, facts, place in zip(each.models, each.facts, each.places, strict=True)
    ]
    best = each.best and {
        "draft": each.best.draft, "gain": each.best.gain, "command": each.best.command, "told": each.best.told,
    }  # fmt: skip
    return {
        "name": name,
        "aliases": list(each.aliases),
        "about": each.about,
        "own": name not in REGISTERED,
        "target": each.target,
        "draft": each.draft,
        "models": models,
        "tokenizer": each.tokenizer,
        "weight_bytes": {storage: _rounded(each.weight_bytes(storage)) for storage in SHOWN.values()},
        "best": best,
    }


def _rounded(size: float | None) -> int | None:
    return None if size is None else round(size)
