"""sybil distill: a small draft for a target of the user's own."""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sybil.cli import options
from sybil.cli.compare import SEVERAL, compare
from sybil.cli.terminal import make_console, make_table
from sybil.devices import choose_device, dtype_named
from sybil.distilling import card, documents
from sybil.distilling.recipe import BUDGET, WINDOW, Recipe
from sybil.distilling.stages import WORK, Distillation, Distilled
from sybil.loading import load, read
from sybil.measuring import files
from sybil.storages import dtype_of

TRAINING = "Training"
COMPARED = "draft,self,lookup,hybrid"
EVERY = 30.0  # seconds between two lines of progress, where there is no terminal


def distill(
    target: Annotated[
        str,
        typer.Argument(help="The target: a pair's name, a hub id, a folder, a GGUF file, or ollama:NAME."),
    ],
    data: Annotated[
        list[Path],
        typer.Option(
            help="Texts like those the target will be used for: text files, JSONL (text, prompt or messages), folders. "
            "May be given several times.",
        ),
    ],
    layers: Annotated[
        int, typer.Option(help="The draft's layers; an eighth of the target's if left out.", rich_help_panel=TRAINING)
    ] = 0,
    width: Annotated[
        int, typer.Option(help="Its width; not half of the target's if left out.", rich_help_panel=TRAINING)
    ] = 0,
    vocabulary: Annotated[
        int,
        typer.Option(
            help="How many of the target's tokens it knows, the commonest ones; 16,384 at most if left out.",
            rich_help_panel=TRAINING,
        ),
    ] = 0,
    window: Annotated[
        int, typer.Option("--reach", help="How many tokens back of a text it sees.", rich_help_panel=TRAINING)
    ] = WINDOW,
    budget: Annotated[
        float,
        typer.Option(help="Minutes for the target's answers and the training together.", rich_help_panel=TRAINING),
    ] = BUDGET,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the training, in place of a budget.", rich_help_panel=TRAINING)
    ] = None,
    answers: Annotated[
        int | None,
        typer.Option(help="Batches of 16 answers of the target, in place of a budget.", rich_help_panel=TRAINING),
    ] = None,
    seed: options.SeedOption = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    out: options.OutOption = None,
    comparing: Annotated[
        bool, typer.Option("--compare/--no-compare", help="End with a table of `sybil compare`.")
    ] = True,
) -> None:
    """Distill a small draft for a target, from texts of yours and from the target's own answers. Where it is cut off,
    the same command goes on."""
    console, out = make_console(), options.out_folder(out, "distill")
    asked = Recipe(
        target=target, layers=layers, width=width, vocabulary=vocabulary, window=window, answers=answers, steps=steps,
        budget=budget, seed=seed or 0,
    )  # fmt: skip
    files.check_folder(out)
    source, _ = options.names(None, target, None)
    chosen, named = choose_device(device), dtype_named(dtype)
    found = documents.read(data)
    if found.skipped:
        console.print(f"{found.skipped} files in the folders are no UTF-8 text, and are skipped", soft_wrap=True)
    with console.status("loading the target"):
        decoder, checkpoint = load(source, dtype=dtype, device=device), read(source)
    with _Shown(console) as shown:
        distillation = Distillation(asked, decoder.without_draft(), checkpoint, found, out, shown.report)
        try:
            made = distillation.run()
        except KeyboardInterrupt:
            console.print(f"interrupted: the same command goes on from {out}", soft_wrap=True)
            raise typer.Exit(130) from None
    prompts = card.held_out_prompts(distillation.held_out)
    with console.status("measuring the draft"):
        kept = dtype_of(checkpoint, named, chosen)
        worth = card.worth(distillation.decoder, checkpoint, kept, out, prompts)
    path, licence = card.write_prompts(prompts, out), card.licence_of(checkpoint)
    card.write(made, worth, licence, _command(made, data, dtype))
    _print(console, made, worth)
    if comparing:
        length = min(SEVERAL[1], distillation.new_tokens)
        del decoder, distillation  # their memory
        name = str(out.resolve())  # an absolute path can't be taken for a word of the drafts' grammar
        compare(
            target=target, draft=name, drafters=COMPARED, dtype=dtype, device=device, prompt_file=path, out=out,
            max_new_tokens=length,
        )  # fmt: skip


class _Shown:
    """Shows a distillation's progress: bars on a terminal, and a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        note = TextColumn("{task.fields[note]}", markup=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), note)
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._console, self._tasks, self._last = console, dict[str, TaskID](), -math.inf

    def __enter__(self) -> _Shown:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def report(self, what: str, done: int, of: int, note: str) -> None:
        """See stages.Report."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, note="")
        self._bars.update(self._tasks[what], completed=done, total=of, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last >= EVERY or done == of):
            self._console.print(f"{what}: {done} of {of}, {note}")
            self._last = now


def _command(made: Distilled, data: list[Path], dtype: str | None) -> str:
    """The command line that makes the same draft again."""
    asked, plan = made.recipe, made.plan
    parts = ["sybil", "distill", asked.target, *(part for each in data for part in ("--data", str(each)))]
    numbers = {name: getattr(asked, name) for name in ("layers", "width", "vocabulary", "seed")}
    numbers |= {"reach": asked.window, "answers": plan.answers, "steps": plan.steps}
    numbers |= {} if dtype is None else {"dtype": dtype}
    parts += [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
    return shlex.join([*parts, "--out", str(made.folder)])


def _print(console: Console, made: Distilled, found: list[card.Worth]) -> None:
    """Print what was made, and how many of its tokens are accepted."""
    table = make_table(console, "held-out prompts", "number", "accepted greedily", "a round", "sampled", "a round ")
    for each in found:
        greedy, sampled = each.greedy, each.sampled
        cells = (f"{greedy.acceptance_rate:.0%}", f"{greedy.tokens_per_round:.2f}")
        table.add_row(
            each.kind, str(each.prompts), *cells, f"{sampled.acceptance_rate:.0%}", f"{sampled.tokens_per_round:.2f}"
        )
    console.print(table)
    console.print(
        f"{made.folder}: {made.parameters / 1e6:.2f} M parameters, {made.course.step} steps; its README.md says how it "
        f"was made. {made.folder / WORK} is for going on, and may be deleted.",
        soft_wrap=True,
    )
