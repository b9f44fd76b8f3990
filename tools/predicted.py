"""What `sybil check` predicts beside what is measured: `python -m tools.predicted memory` and `... speed`.

memory: each model is loaded and decodes in a fresh process, whose largest resident memory is read. speed: plain
decoding and each drafter take turns on the same prompts, on a machine that does nothing else. Both print Markdown."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

import sybil
from sybil.checking.check import check
from sybil.checking.memory import memory as reckoned
from sybil.checking.promise import emitted, speed_up
from sybil.measuring import prompts as texts
from sybil.pairs import PAIRS, SMOLLM2, STDLIB

CONTEXT, NEW_TOKENS = 512, 64
ROOT = Path(__file__).parents[1]
RUN = """
import json, sys
import torch, sybil
from benchmarks.fresh import resident
source, draft, dtype, batch, context, new, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
before = resident("VmRSS")
decoder = sybil.load(source, draft, dtype=dtype, device="cpu")
rows = [[(7 * place + row) % 400 + 5 for place in range(context - new)] for row in range(batch)]
decoder.generate(rows, max_new_tokens=new, eos_token_id=[])
print(json.dumps(resident("VmHWM") - before))
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement of memory. The bytes are set once it has been made."""

    name: str
    source: str
    draft: str | None
    dtype: str | None
    batch: int
    predicted: int = 0
    measured: int = 0

    @property
    def off(self) -> float:
        """The relative error of the prediction: its difference from the measured bytes, divided by them."""
        return self.predicted / self.measured - 1


def cells(gemma: Path | None) -> list[Cell]:
    """The embedded target alone and with its draft, SmolLM2, and Gemma 3 where its file is given."""
    pair, smollm2 = PAIRS[STDLIB], PAIRS[SMOLLM2].source
    kinds: list[tuple[str, str, str | None, Sequence[str | None]]] = [
        ("stdlib's target", pair.target, None, ("float32", "bfloat16")),
        ("stdlib", pair.target, pair.draft, ("float32",)),
        ("smollm2", smollm2, None, (None, "float32")),
        ("stdlib's target", pair.target, "self:6", ("float32",)),
        ("smollm2", smollm2, "self:6", ("float32",)),
    ]
    kinds += [("gemma-3-270m", str(gemma), None, (None, "float32"))] if gemma else []
    return [
        Cell(name, source, draft, dtype, batch)
        for name, source, draft, dtypes in kinds
        for dtype in dtypes
        for batch in (1, 4)
    ]


def measured(cell: Cell, threads: int) -> Cell:
    """The cell with the predicted memory, and the memory that a fresh process takes beyond its imports."""
    found = check(cell.source, cell.draft, dtype=cell.dtype, device="cpu", batch=cell.batch, context=CONTEXT)
    alone = {} if cell.draft else {"draft": None, "helper": None}  # else a registered pair brings a draft
    arguments = [cell.source, cell.draft, cell.dtype, cell.batch, CONTEXT, NEW_TOKENS, threads]
    command = [sys.executable, "-c", RUN, json.dumps(arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    peak = reckoned(replace(found.setup, **alone)).peak
    return replace(cell, predicted=peak, measured=int(float(done.stdout) * 2**20))


def rows(found: Iterable[Cell]) -> Iterable[str]:
    """A Markdown table."""
    yield "| model | draft | weights in | rows | predicted, MB | measured, MB | off by |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for each in found:
        kept = each.dtype or "the file's blocks"
        sizes = f"{each.predicted / 1e6:.0f} | {each.measured / 1e6:.0f} | {each.off:+.1%}"
        yield f"| {each.name} | {each.draft or 'none'} | {kept} | {each.batch} | {sizes} |"


def memory(
    gemma: Annotated[Path | None, typer.Option(help="Gemma 3 270M's GGUF file.")] = None,
    threads: Annotated[int, typer.Option(help="How many compute.")] = torch.get_num_threads(),
    only: Annotated[str, typer.Option(help="Models of whose name this is a part.")] = "",
) -> None:
    """Predicted and measured memory of real models."""
    torch.set_num_threads(threads)
    for line in rows(measured(cell, threads) for cell in cells(gemma) if only in cell.name):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def speed(
    count: Annotated[int, typer.Option(help="Prompts.")] = 12,
    gamma: Annotated[int, typer.Option(help="Tokens that are drafted in a round.")] = 4,
) -> None:
    """Predicted and measured speed-ups of the drafters of both real pairs. The prediction is given what share of the
    drafted tokens was kept; costs are its own. Behind each predicted cost stands the measured one."""
    typer.echo(
        "| target | drafter | tokens/round | drafted/round | chance kept | a drafted token costs | a further token "
        "adds | predicted | measured | off by |"
    )
    typer.echo("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, dtype in ((STDLIB, "float32"), (SMOLLM2, "float32"), (SMOLLM2, None)):
        found = check(name, dtype=dtype, device="cpu", context=256)
        plain = sybil.load(found.target, dtype=dtype, device="cpu")
        chosen = texts.spread(texts.load(shipped=PAIRS[name].prompts), count)
        ids = [texts.encode(prompt, plain) for prompt in chosen]
        for each in found.candidates:
            if each.promise is not None:
                drafted = sybil.load(found.target, each.name, dtype=dtype, device="cpu")
                line = _turns(plain, drafted, ids, gamma, each.promise.cost, each.promise.verified)
                kept = dtype or "the file's blocks"
                typer.echo(f"| {name}, {kept} | {each.name.rpartition('/')[2]} | {line} |")


def _turns(
    plain: sybil.Decoder, drafted: sybil.Decoder, ids: list[list[int]], gamma: int, cost: float, verified: float
) -> str:
    """The rest of a row. Plain and drafted decoding take turns on each prompt; the time to read the prompt isn't
    counted."""
    ratios, once, drafting, verifying = [], [], [], []
    total = sybil.Stats()
    settings = {"max_new_tokens": NEW_TOKENS, "eos_token_id": [], "do_sample": False}
    for number, prompt in enumerate([ids[0], *ids]):  # the first run warms up
        one = plain.generate([prompt], **settings).stats
        other = drafted.generate([prompt], gamma=gamma, **settings).stats
        if not number:
            continue
        token = (one.seconds - one.timings.prefill) / one.emitted
        ratios.append(token / ((other.seconds - other.timings.prefill) / other.emitted))
        once.append(token)
        drafting.append(other.timings.draft / max(other.proposed, 1) / token)
        beyond = (other.timings.total - other.timings.prefill - other.timings.draft) / token - other.rounds
        verifying.append(beyond / max(other.proposed, 1))
        total = replace(
            total, rounds=total.rounds + other.rounds, proposed=total.proposed + other.proposed,
            emitted=total.emitted + other.emitted,
        )  # fmt: skip
    mean = total.proposed / total.rounds
    predicted, found = speed_up(cost, verified, mean, total.tokens_per_round), median(ratios)
    return (
        f"{total.tokens_per_round:.2f} | {mean:.2f} | {_chance(total.tokens_per_round, gamma):.2f} | {cost:.2f} "
        f"({median(drafting):.2f}) | {verified:.2f} ({median(verifying):.2f}) | {predicted:.2f} | {found:.2f} | "
        f"{predicted / found - 1:+.0%}"
    )


def _chance(tokens: float, gamma: int) -> float:
    """The probability with which a drafted token is kept if rounds of gamma emit that many tokens, found by
    bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if emitted(middle, gamma) < tokens else (low, middle)
    return low


app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)
app.command()(memory)
app.command()(speed)

if __name__ == "__main__":
    app()
