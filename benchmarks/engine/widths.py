"""Checks on real weights, which stay in their blocks, that the bits of a token's logits don't depend on what is
verified beside it.

A text is decoded alone, one token at a time, and a digest of each position's logits is kept. Then the same text is
verified 1 to 9 tokens at a time, in batches of 1 to 4 rows, beside other texts of other lengths. The last tokens of
some blocks are wrong ones, which are rolled back. Only whole lines are written to the file, so a later run goes on
where an earlier one was cut off."""

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
"""Called with the number of tokens that were verified, and how they were verified."""


@dataclass(frozen=True, slots=True)
class DecodedText:
    """A prompt and the tokens that follow it. digests: for each new token, the digest of the logits that it was taken
    from."""

    id: str
    prompt: list[int]
    tokens: list[int]
    digests: list[str]


@dataclass(frozen=True, slots=True)
class Verified:
    """New tokens of `batch` texts, verified `width` at a time. differing: the tokens whose logits have other bits.
    leaving: the tokens for which another token would have been chosen."""

    width: int
    batch: int
    turn: int
    compared: int
    differing: int
    leaving: int


def digest(logits: Tensor) -> str:
    """The digest of the bits of one row of logits (vocab,)."""
    return hashlib.blake2b(logits.numpy().tobytes(), digest_size=8).hexdigest()


def plain(decoder: Decoder, name: str, prompt: Sequence[int], new_tokens: int) -> DecodedText:
    """Decode a prompt greedily and alone; no token ends the text."""
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
    """Verify the new tokens of texts that are equally long. Returns how many were compared, how many have logits with
    other bits, and for how many another token would have been chosen."""
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
    """Verify at least `tokens` tokens; widths and batch sizes take turns. What `path` holds of an earlier run isn't
    done again, but is yielded and counted as well."""
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
