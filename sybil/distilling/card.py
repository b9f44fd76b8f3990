"""Measures a distilled draft by decoding with it, and writes the model card that has the numbers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from sybil.decoding import Decoder
from sybil.distilling.documents import Document
from sybil.distilling.material import Material
from sybil.distilling.stages import NEW_TOKENS, ROWS, Distilled
from sybil.errors import one_line
from sybil.loading import maker
from sybil.measuring import files
from sybil.models.checkpoints.gguf import header
from sybil.models.folders import Checkpoint
from sybil.results import Stats, Step

GAMMA, MEASURED, LENGTH = 4, 24, 64  # tokens of a proposal, measured prompts, new tokens for each prompt
KEPT = 64  # the most held-out prompts that are written to the folder
PROMPTS = "prompts.jsonl"
CARD_BYTES = 1 << 16  # how much of a target's card is searched for its licence


@dataclass(frozen=True, slots=True)
class Worth:
    """The counters of decoding held-out prompts of one kind with the draft, greedily and sampled."""

    kind: str
    prompts: int
    greedy: Stats
    sampled: Stats


def held_out_prompts(material: Material) -> list[Document]:
    """Held-out prompts, each once, and at most KEPT. A prompt that would have to be cut to its end is left out."""
    numbers = range(min(material.prompts, 4 * KEPT))
    return [material.asked(number) for number in numbers if material.fits(number)][:KEPT]


def worth(
    decoder: Decoder, checkpoint: Checkpoint, dtype: torch.dtype, folder: Path, prompts: list[Document]
) -> list[Worth]:
    """Decodes the first MEASURED prompts with the draft in the folder. The result has one entry for each kind."""
    drafted = decoder.without_defaults().with_draft(maker(checkpoint, decoder.target, dtype).source(folder))
    found = []
    for kind in dict.fromkeys(each.kind for each in prompts[:MEASURED]):
        chosen = [each for each in prompts[:MEASURED] if each.kind == kind]
        greedy, sampled = (_counted(drafted, chosen, sampled=sampled) for sampled in (False, True))
        found.append(Worth(kind, len(chosen), greedy, sampled))
    return found


def _counted(decoder: Decoder, prompts: list[Document], *, sampled: bool) -> Stats:
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0} if sampled else {}
    count = min(LENGTH, decoder.target.context // 2)
    steps: list[Step] = []
    for seed, prompt in enumerate(prompts):
        said: str | list[dict[str, str]] = prompt.text
        if prompt.messages and decoder.chat_template is not None:
            said = [{"role": role, "content": content} for role, content in prompt.messages]
        elif prompt.messages:
            said = "\n\n".join(content for _, content in prompt.messages)
        steps += decoder.stream(said, gamma=GAMMA, max_new_tokens=count, seed=seed, **drawn)
    return Stats.of(steps)


def write_prompts(prompts: list[Document], folder: Path) -> Path:
    """Writes the prompts to a file in the folder, in the form that `sybil compare --prompts` reads."""
    rows = [
        {
            "id": f"{each.kind}-{number:02}",
            "domain": each.kind,
            **(
                {"messages": [{"role": role, "content": content} for role, content in each.messages]}
                if each.messages
                else {"text": each.text}
            ),
        }
        for number, each in enumerate(prompts, 1)
    ]
    path = folder / PROMPTS
    files.replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return path


def licence_of(checkpoint: Checkpoint) -> str | None:
    """The licence that a target's own files name; None where they name none."""
    named: object = None
    if checkpoint.file is not None:
        named = header.read(checkpoint.file).metadata.get("general.license")
    elif checkpoint.folder is not None and (checkpoint.folder / "README.md").is_file():
        with (checkpoint.folder / "README.md").open(encoding="utf-8", errors="replace") as card:
            found = re.search(r"^license:\s*(\S.*)$", card.read(CARD_BYTES), re.MULTILINE)
        named = found[1] if found else None
    return one_line(named, 60) if isinstance(named, str) and named.strip() else None


def write(made: Distilled, found: list[Worth], licence: str | None, command: str) -> Path:
    """Writes the model card, the folder's README.md, and gives its path."""
    path = made.folder / "README.md"
    files.replace(path, _text(made, found, licence, command).encode())
    return path


def _text(made: Distilled, found: list[Worth], licence: str | None, command: str) -> str:
    asked, plan, course, data = made.recipe, made.plan, made.course, made.documents
    weights = (made.folder / "model.safetensors").stat().st_size / 1e6
    steps = "\n".join(
        f"| {step} | {loss:.3f} | {greedy:.3f} | {sampled:.3f} |" for step, loss, sampled, greedy in course.history[-5:]
    )
    rows = "\n".join(
        f"| {each.kind} | {each.prompts} | {each.greedy.acceptance_rate:.3f} | {each.greedy.tokens_per_round:.2f} "
        f"| {each.sampled.acceptance_rate:.3f} | {each.sampled.tokens_per_round:.2f} |"
        for each in found
    )
    whole = made.covered == 1 and made.known >= asked.vocabulary
    knows = (
        "It knows all of its target's tokens."
        if whole
        else f"It knows {made.known:,} of its target's tokens, which are {made.covered:.2%} of what it was trained on, "
        "and proposes no other. config.json lists them as `draft_tokens`; so it isn't a model by itself."
    )
    terms = (
        f"The target's own files name the licence `{licence}`."
        if licence
        else "The target's own files name no licence: look it up where the target comes from."
    )
    return f"""# A draft for {one_line(asked.target, 120)}

A small model that proposes tokens for its target, distilled by `sybil distill`. The target checks each of them, so the
output is the target's. By itself the draft says nothing that is to be relied on.

    sybil.load({asked.target!r}, draft={str(made.folder)!r})

{asked.layers} layers x {asked.width}, {made.parameters / 1e6:.2f} M parameters, {weights:.1f} MB in float16. Mistral's
architecture: each token sees the {asked.window} before it. The tokenizer is the target's. {knows}

## What it is worth
Held-out prompts (`{PROMPTS}`), decoded with gamma {GAMMA} and {LENGTH} new tokens each, at temperature 0 and 1:

| prompts | number | accepted, temperature 0 | tokens a round | accepted, temperature 1 | tokens a round |
|---|---:|---:|---:|---:|---:|
{rows}

In training, over held-out answers of the target: the mean loss since the row before (nats a token), how often target
and draft find the same token likeliest, and the sum of min(target, draft) over the target's likeliest tokens.

| step | loss | same token | sum of min |
|---:|---:|---:|---:|
{steps}

## Made from
The target's own distribution at {made.places:,} places: {plan.answers} batches of {ROWS} answers to prompts from the
data, greedy and sampled by turns, up to {NEW_TOKENS} tokens each, and {plan.texts} batches of {ROWS} texts of
{asked.window} tokens. The data: {len(data.training)} documents, {len(data.held_out)} more held out, SHA-256
`{data.digest}`.

The target spoke for {made.taught / 60:.1f} minutes. The draft learned for {course.seconds / 60:.1f} minutes:
{course.step} steps, {course.tokens / 1e6:.2f} M places, some of them several times.

    {command}

On the same machine, with as many threads, this command makes the same weights, bit for bit.

## Licence
{terms} A draft is made of its target's outputs and of the data: the terms of both apply to it.
"""
