"""Are the bits of a token's logits the same, whatever is verified beside it? On real weights, in their blocks.

A text is decoded alone, a token at a time, and each position's logits are kept as a digest. Then the same text is
verified 1 to 9 tokens at a time, in batches of 1 to 4 rows of other texts and lengths; the last tokens of some blocks
are wrong ones, and are rolled back. Every line that is written is whole, and a run that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sybil.decoding import Decoder
from sybil.measuring import files
from sybil.measuring import prompts as texts
from sybil.models import Model, feed, prefill
from sybil.transfer import integers

WIDTHS, BATCHES = range(1, 10), range(1, 5)
NEW_TOKENS = 256
Tick = Callable[[int, str], None]
"""Called with how many tokens were verified, and how."""


@dataclass(frozen=True, slots=True)
class DecodedText:
    """A prompt and what is said after it, token by token; digests: one of the logits that gave each new token."""

    id: str
    prompt: list[int]
    tokens: list[int]
    digests: list[str]


@dataclass(frozen=True, slots=True)
class Verified:
    """New tokens of some texts verified `width` at a time, so many rows together. differing: those whose logits have
    other bits; leaving: those that would have been another token."""

    width: int
    batch: int
    turn: int
    compared: int
    differing: int
    leaving: int


def digest(logits: Tensor) -> str:
    """Of a row's bits (vocab,)."""
    return hashlib.blake2b(logits.numpy().tobytes(), digest_size=8).hexdigest()


def plain(decoder: Decoder, name: str, prompt: Sequence[int], new_tokens: int) -> DecodedText:
    """Decode a prompt greedily, alone; no token ends it."""
    model = decoder.target
    cache, known = model.new_cache(1, len(prompt) + new_tokens), list(prompt)
    digests, tokens = [], []
    for _ in range(new_tokens):
        (logits,) = feed(model, cache, integers([known]), integers([len(known)]))
        digests.append(digest(logits))
        tokens.append(int(logits.argmax()))
        known.append(tokens[-1])
    return DecodedText(name, list(prompt), tokens, digests)


def verify(model: Model, chosen: Sequence[DecodedText], width: int, seed: int) -> tuple[int, int, int]:
    """How many new tokens of the texts, all as long, were compared, have other bits, and would have been others."""
    generator, count = random.Random(seed), min(len(text.tokens) for text in chosen)
    rows = [[*text.prompt, *text.tokens] for text in chosen]
    starts = [len(text.prompt) - 1 for text in chosen]  # the last token of a prompt gives the first new one
    most = max(map(len, rows))
    padded = integers([[*row, *[0] * (most - len(row))] for row in rows])
    cache = model.new_cache(len(chosen), most + width)
    prefill(model, cache, padded, integers(starts))
    done, differing, leaving = [0] * len(chosen), 0, 0
    while min(done) < count:
        ends = [min(width, count - each) for each in done]
        kept = [generator.randint(1, end) if end else 0 for end in ends]
        block = []
        for row, start, place, keep in zip(rows, starts, done, kept, strict=True):
            true = row[start + place : start + place + keep]
            block.append(true + [generator.randrange(model.vocab_size) for _ in range(width - keep)])
        cache.lengths = integers([start + place for start, place in zip(starts, done, strict=True)])
        logits = model.forward(integers(block), cache)
        for index, (text, place, keep) in enumerate(zip(chosen, done, kept, strict=True)):
            for offset in range(keep):
                differing += digest(logits[index, offset]) != text.digests[place + offset]
                leaving += int(logits[index, offset].argmax()) != text.tokens[place + offset]
        done = [place + keep for place, keep in zip(done, kept, strict=True)]
    return count * len(chosen), differing, leaving


def run(decoder: Decoder, prompts: Sequence[texts.Prompt], tokens: int, path: Path, tick: Tick) -> Iterator[Verified]:
    """At least so many tokens, widths and batches taking turns; all that path holds of an earlier run comes first."""
    held = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {row["text"]["id"]: DecodedText(**row["text"]) for row in held if "text" in row}
    done = {(row["width"], row["batch"], row["turn"]): row for row in held if "width" in row}
    places, total = itertools.cycle(prompts), 0
    for turn in itertools.count():
        for width, batch in itertools.product(WIDTHS, BATCHES):
            chosen = [_text(decoder, next(places), known, path, tick) for _ in range(batch)]
            row = done.get((width, batch, turn))
            if row is None:
                found = Verified(width, batch, turn, *verify(decoder.target, chosen, width, turn))
                files.append(path, asdict(found))
            else:
                found = Verified(**row)
            total += found.compared
            tick(found.compared, f"{width} at a time, batches of {batch}")
            yield found
            if total >= tokens:
                return


def _text(decoder: Decoder, prompt: texts.Prompt, known: dict[str, DecodedText], path: Path, tick: Tick) -> DecodedText:
    if prompt.id not in known:
        tick(0, f"{prompt.id} alone")
        known[prompt.id] = plain(decoder, prompt.id, texts.encode(prompt, decoder), NEW_TOKENS)
        row: dict[str, Any] = {"text": asdict(known[prompt.id])}
        files.append(path, row)
    return known[prompt.id]
