"""The target's output in files: tokens, and for each of them the likeliest next tokens with their probabilities."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sybil.errors import ResultsMismatch, told
from sybil.measuring import files

TOP = 16
"""How many of the likeliest tokens are kept for each place. They take 96 bytes."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A row of tokens, in which texts follow one another.

    tokens: (n,) int32. top: (n, k) int32, the tokens that the target finds likeliest after each of them, the likeliest
    first. log_probs: (n, k) float16, the log-probabilities of top, -inf where the target wasn't asked. seconds: how
    long the target took."""

    tokens: np.ndarray
    top: np.ndarray
    log_probs: np.ndarray
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def asked(self) -> int:
        """The number of places at which the target was asked."""
        return int((self.log_probs[:, 0] > -np.inf).sum())

    def save(self, path: Path) -> None:
        """Write the shard to path. A write that is cut off leaves no partial file there."""
        written = io.BytesIO()
        np.savez(written, tokens=self.tokens, top=self.top, log_probs=self.log_probs, seconds=np.float64(self.seconds))
        files.replace(path, written.getvalue())


def load(path: Path, vocab_size: int) -> Shard:
    """The shard in a file. Raises ResultsMismatch for a file that holds none, or one of another vocabulary."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            shard = Shard(stored["tokens"], stored["top"], stored["log_probs"], float(stored["seconds"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ResultsMismatch(f"{path} can't be read ({told(error)}): delete it, and it is made again") from None
    whole, rows = (shard.tokens, shard.top), len(shard.tokens)
    fits = (
        all(each.dtype == np.int32 for each in whole)
        and shard.log_probs.dtype == np.float16
        and shard.tokens.shape == (rows,)
        and shard.top.shape == shard.log_probs.shape == (rows, min(TOP, vocab_size))
        and all(each.size == 0 or 0 <= each.min() <= each.max() < vocab_size for each in whole)
        and not np.isnan(shard.log_probs).any()
    )
    if not fits:
        raise ResultsMismatch(f"{path} is of no target with {vocab_size} tokens: delete it, and it is made again")
    return shard


def joined(shards: Sequence[Shard]) -> Shard:
    """All shards, one after another, as one."""
    tokens, top, log_probs = (
        np.concatenate([getattr(each, name) for each in shards]) for name in ("tokens", "top", "log_probs")
    )
    return Shard(tokens, top, log_probs, sum(each.seconds for each in shards))
