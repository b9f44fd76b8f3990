"""What decoding counts, exactly. `nox -s counters` compares the counters with expected.json; `-- --update` writes the
file.

Seeds are fixed and nothing is timed, so every difference has a cause in the code. More work for the same text is a
regression, and a gain that nobody can explain is suspicious. Exit status: 0 if all is as expected, 1 if something
differs, 2 if there is nothing to compare with."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from sybil import Decoder
    from sybil.models import Model

EXPECTED = Path(__file__).with_name("expected.json")
COUNTERS = ("target forwards", "draft forwards", "proposed", "accepted", "emitted")
TEXTS, REAL = "texts", "smollm2"
"""TEXTS: a counter that only the cases of GGUF blocks and of the real pair have, a digest of the tokens. REAL: the name
of the real pair."""
RULES = ("greedy", "token", "block", "coupled")
COPIES = ("self:4", "self:8", "hybrid:lookup,self:8", "cascade:self:4,self:8")
SKIPS = ("skip:2", "hybrid:lookup,skip:2", "cascade:lookup,skip:2")
"""Drafters that need no second model and are counted over every target. COPIES are counted over the tiny target alone:
a copy rounds activations to 8 bits, so the last bits of a sum, which differ between processors, can become a whole step
of that rounding. That was not seen with the tiny target. The copies' gamma is fixed, because most of a tiny copy's
bytes are padding, which differs between processors too."""
STORED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
"""The kinds of GGUF blocks that are counted."""
Counters = dict[str, Any]


class Counted:
    """A model that counts its forwards, those that read a prompt included."""

    def __init__(self, model: Model) -> None:
        self._model, self.forwards = model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, tokens: Tensor, cache: Any) -> Tensor:
        self.forwards += 1
        return self._model.forward(tokens, cache)

    def prefill(self, tokens: Tensor, cache: Any) -> None:
        self.forwards += 1
        self._model.prefill(tokens, cache)


def count(
    decoder: Decoder, prompts: list[Tensor], batch: int, *, with_texts: bool = False, **settings: Any
) -> Counters:
    """The counters of decoding all prompts, `batch` of them at a time. No token ends a text."""
    from sybil import Decoder

    target, helpers, draft = Counted(decoder.target), [Counted(model) for model in decoder.models[1:]], decoder.draft
    counted = Decoder(target, draft and draft.over(*helpers), decoder.tokenizer, decoder.eos_token_ids)
    parts = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
    fixed = {"gamma": 4, "eos_token_id": [], "seed": 0}
    said = [counted.generate(part, **{**fixed, **settings}) for part in parts]
    stats = [each.stats for each in said]
    texts = [row.tolist() for each in said for row in each.tokens] if with_texts else None
    return {
        "target forwards": target.forwards,
        "draft forwards": sum(helper.forwards for helper in helpers),
        "proposed": sum(each.proposed for each in stats),
        "accepted": sum(each.accepted for each in stats),
        "emitted": sum(each.emitted for each in stats),
        **({TEXTS: hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]} if texts else {}),
    }


def cases() -> Iterator[tuple[str, Counters]]:
    """Each case's name and counters, as they are counted."""
    for name, decoders, prompts, new_tokens in (("tiny", *_tiny(), 40), ("embedded", *_embedded(), 32)):
        for drafter, decoder in decoders.items():
            for rule in RULES if decoder.draft else RULES[:2]:  # without a draft all three sampling rules are the same
                sampled = {} if rule == "greedy" else {"do_sample": True, "rule": rule}
                for batch in (1, 3) if rule in RULES[:2] else (1,):
                    found = count(decoder, prompts, batch, max_new_tokens=new_tokens, **sampled)
                    yield f"{name}, {drafter}, {rule}, batch {batch}", found
        for settings in ({"gamma": 2}, {"gamma": 8}, {"window": "heuristic"}, {"window": "confident"}):
            found = count(decoders["draft model"], prompts, 1, max_new_tokens=new_tokens, **settings)
            yield f"{name}, draft model, greedy, {' '.join(map(str, *settings.items()))}", found
        for drafter, rule in itertools.product(("draft model", *SKIPS), ("token", "block")):
            if drafter in decoders:  # seeded, so that costs are by sizes; greedily they are by the clock
                drawn = {"max_new_tokens": new_tokens, "do_sample": True, "rule": rule, "gamma": "auto"}
                yield f"{name}, {drafter}, {rule}, gamma auto", count(decoders[drafter], prompts, 3, **drawn)
    yield from stored_cases()


def stored_cases() -> Iterator[tuple[str, Counters]]:
    """The cases of the tiny target again, each with its weights in another kind of blocks of a GGUF file."""
    import sybil
    from tests import ggufs

    model, _, prompts = _tiny_models()
    for kind in STORED:
        with tempfile.TemporaryDirectory() as folder:
            file = ggufs.write(model, Path(folder) / f"{kind}.gguf", storage=kind)
            for draft in (None, "self:8"):
                decoder = sybil.load(file, draft, device="cpu")
                found = count(decoder, prompts, 3, with_texts=True, max_new_tokens=40)
                yield f"tiny {kind}, {draft or 'no draft'}, greedy, batch 3", found


def real_cases() -> Iterator[tuple[str, Counters]]:
    """The cases of SmolLM2, whose file a package brings. It decodes on the CPU, and its weights stay as the file has
    them."""
    import torch

    import sybil
    from sybil.measuring import prompts

    names = {"no draft": None, **{name: name for name in ("lookup", *SKIPS)}}
    decoders = {name: sybil.load(REAL, draft=draft, device="cpu") for name, draft in names.items()}
    chosen = prompts.spread(prompts.load(shipped=sybil.PAIRS[REAL].prompts), 6)
    texts = [torch.tensor(prompts.encode(each, decoders["no draft"])) for each in chosen]
    for name, decoder in decoders.items():
        for rule, batch in (("greedy", 1), ("greedy", 3), ("token", 1), ("coupled", 1)):
            if rule == "coupled" and not decoder.draft:
                continue
            sampled = {} if rule == "greedy" else {"do_sample": True, "rule": rule}
            found = count(decoder, texts, batch, with_texts=True, max_new_tokens=16, **sampled)
            yield f"{REAL}, {name}, {rule}, batch {batch}", found


def _embedded() -> tuple[dict[str, Decoder], list[Tensor]]:
    import torch

    import sybil
    from sybil.measuring import prompts

    decoder = sybil.load("stdlib", dtype=torch.float32, draft_dtype=torch.float32, device="cpu")
    quantised = sybil.load("stdlib", dtype=torch.float32, draft_dtype=torch.int8, device="cpu")
    named = {name: sybil.load("stdlib", name, dtype=torch.float32, device="cpu") for name in ("lookup", *SKIPS)}
    assert decoder.tokenizer is not None
    texts = [torch.tensor(decoder.tokenizer.encode(each.text).ids) for each in prompts.spread(prompts.load(), 6)]
    decoders = {"no draft": decoder.without_draft(), "draft model": decoder, "int8 draft": quantised}
    return {**decoders, **named}, texts


def _tiny() -> tuple[dict[str, Decoder], list[Tensor]]:
    import torch

    import sybil

    target, draft, prompts = _tiny_models()
    decoder = sybil.load(target, draft, draft_dtype=torch.float32)
    named = {name: sybil.load(target, name) for name in ("lookup", *COPIES)}
    return {"no draft": decoder.without_draft(), "draft model": decoder, **named}, prompts


def _tiny_models() -> tuple[PreTrainedModel, PreTrainedModel, list[Tensor]]:
    """A random GPT-2 of two layers in float32, a draft that is the same model with noise on its weights, and
    prompts."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(13)
    config = GPT2Config(
        vocab_size=31,
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=0,
    )
    target, draft = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    draft.load_state_dict(target.state_dict())
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += 0.03 * torch.randn(parameter.shape)
    return target, draft, [torch.randint(1, 31, (length,)) for length in (3, 11, 7, 5, 2, 17)]


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


def _has_native_forward() -> bool:
    from sybil.models import native

    return native.library.load() is not None


def differences(
    expected: dict[str, Counters], found: dict[str, Counters]
) -> list[tuple[str, str, int | str | None, int | str | None]]:
    """(case, counter, expected, found) of every counter that differs. None stands for a counter that is missing."""
    return [
        (case, counter, before, after)
        for case in {**expected, **found}
        for counter in (*COUNTERS, TEXTS)
        if (before := expected.get(case, {}).get(counter)) != (after := found.get(case, {}).get(counter))
    ]


def main(
    update: Annotated[bool, typer.Option("--update", help="Write what is counted to the file.")] = False,
    path: Annotated[Path, typer.Option("--expected", help="The file to compare with.")] = EXPECTED,
) -> None:
    """Count, and compare the counters with the file. Exit status: see the module."""
    console, errors = Console(width=None if Console().is_terminal else 120), Console(stderr=True)
    try:
        expected: dict[str, Counters] = {} if update and not _is_json(path) else json.loads(path.read_text())
    except (OSError, ValueError) as error:
        errors.print(
            f"counters: {path} can't be read ({error}): `nox -s counters -- --update` writes it", soft_wrap=True
        )
        raise typer.Exit(2) from None
    if not _has_native_forward():
        errors.print(
            "counters: an int8 draft proposes what it does by Sybil's native forward, which isn't there: install a C "
            "compiler, and leave SYBIL_NATIVE unset",
            soft_wrap=True,
        )
        raise typer.Exit(2)
    import sybil

    is_real_there = sybil.PAIRS[REAL].installed
    with console.status("counting") as status:
        found = {}
        for case, counters in itertools.chain(cases(), real_cases() if is_real_there else ()):
            found[case] = counters
            status.update(f"counting: {case}")
    if not is_real_there:
        left = {case: counters for case, counters in expected.items() if case.startswith(f"{REAL}, ")}
        if left:
            told = f"{REAL}: {len(left)} cases are left out, for its file isn't there: {sybil.PAIRS[REAL].fetching}"
            console.print(told, soft_wrap=True)
        expected = {case: counters for case, counters in expected.items() if case not in left}
    differing = differences(expected, found)
    if update:
        kept = found if is_real_there else {**found, **left}
        rows = ",\n".join(f" {json.dumps(case)}: {json.dumps(counters)}" for case, counters in kept.items())
        path.write_text(f"{{\n{rows}\n}}\n")
    if not differing:
        console.print(f"{len(found)} cases, {len(COUNTERS)} counters each: all as expected")
        return
    table = Table("case", "counter", "expected", "found", "change")
    for case, counter, before, after in differing:
        change = f"{after / before - 1:+.1%}" if before and isinstance(after, int) and counter != TEXTS else ""
        table.add_row(case, counter, *("none" if value is None else str(value) for value in (before, after)), change)
    console.print(table)
    names = ", ".join(counter for counter in (*COUNTERS, TEXTS) if any(row[1] == counter for row in differing))
    if update:
        console.print(f"{path.name} is updated; commit it with the change that explains: {names}", soft_wrap=True)
        return
    errors.print(
        f"counters: {names} differ from {path.name} in {len({row[0] for row in differing})} of {len(found)} cases: "
        "mend the change, or run `nox -s counters -- --update` and commit the file with the reason",
        soft_wrap=True,
        highlight=False,
    )
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
