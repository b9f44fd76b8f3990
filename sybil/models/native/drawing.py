"""Distributions and draws in C, for float32 rows on a CPU. The C code makes one or two passes over a row. numpy makes a
dozen, and after each forward its code and its copies of the row are no longer in the processor's caches."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sybil.models.native import library
from sybil.noise import COLUMN, Exponentials

Array = np.ndarray
CANDIDATE = 12
"""The size of drawing.h's struct Candidate, in bytes."""
A_COLUMN = 12
"""The bytes of working memory that racing.h needs for a column."""
RUN = 64
"""Tokens in a run of drawing.h's kth_largest(), which needs a candidate for each run beside those of the tokens."""


def does(rows: Tensor) -> bool:
    """Whether the C library is available and takes these rows."""
    return rows.dtype is torch.float32 and rows.is_cpu and library.load() is not None


def _built() -> ctypes.CDLL:
    built = library.load()
    assert built is not None  # callers have checked does()
    return built


def distributions(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The same as filters.filtered() and filters.softmax(), (..., vocab) -> (..., vocab). A token whose probability is
    less than e^-87 times the likeliest token's gets 0."""
    logits = logits.contiguous()
    probs, vocab = torch.empty_like(logits), logits.shape[-1]
    if logits.numel():
        room = np.empty(CANDIDATE * (vocab + vocab // RUN + 1), np.uint8)
        sizes = logits.numel() // vocab, vocab
        settings = temperature, top_k, top_p, min_p
        _built().sybil_distribute(logits.data_ptr(), *sizes, *settings, probs.data_ptr(), room.ctypes.data)
    return probs


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The same as sampling.draw(): probs (..., vocab), uniforms (...) in [0, 1) -> tokens (...)."""
    probs, uniforms = probs.contiguous(), uniforms.to(torch.float64).contiguous()
    tokens = torch.empty_like(uniforms, dtype=torch.int64)
    sizes, nothing = (uniforms.numel(), probs.shape[-1]), (None,) * 5
    _built().sybil_draw(*sizes, probs.data_ptr(), *nothing, uniforms.data_ptr(), tokens.data_ptr())
    return tokens


def race(probs: Tensor, exponentials: Exponentials) -> Tensor:
    """The same as exponentials.first(probs): probs (..., vocab) -> tokens (...)."""
    vocab, tokens = probs.shape[-1], torch.empty_like(exponentials.rows, memory_format=torch.contiguous_format)
    room = np.empty(A_COLUMN * -(-vocab // COLUMN), np.uint8)
    probs, rows, positions = (each.contiguous() for each in (probs, exponentials.rows, exponentials.positions))
    places = rows.data_ptr(), positions.data_ptr()
    _built().sybil_race(
        tokens.numel(), vocab, probs.data_ptr(), exponentials.noise.seed, *places, tokens.data_ptr(), room.ctypes.data
    )
    return tokens


@dataclass(frozen=True, slots=True)
class Rest:
    """The residuals max(weight * target - draft, 0), (n, vocab). targets and drafts are arrays of rows of vocab
    numbers.

    at: (n,), the number of the row in targets. drafted: (n,), the number of the row in drafts, -1 for none. without:
    (n,), a token whose residual is 0, -1 for none. weights: (n,)."""

    targets: Array
    at: Array
    drafts: Array | None
    drafted: Array | None
    without: Array | None
    weights: Array

    def sums(self) -> Array:
        """The sum of each residual, (n,) float64."""
        found = np.empty(len(self.at))
        self._call("sybil_rest", found)
        return found

    def draw(self, uniforms: Array) -> Array:
        """Tokens (n,) drawn from the residuals by uniforms (n,) in [0, 1). Where a residual is zero, the token is drawn
        from the target; it is -1 where the target is NaN or 0 too."""
        tokens = np.empty(len(self.at), np.int64)
        self._call("sybil_draw", uniforms.astype(np.float64), tokens)
        return tokens

    def _call(self, function: str, *more: Array) -> None:
        def lying(numbers: Array | None, kind: type) -> Array | None:
            return None if numbers is None else np.ascontiguousarray(numbers, kind)

        targets, drafts = lying(self.targets, np.float32), lying(self.drafts, np.float32)
        at, drafted, without = (lying(each, np.int64) for each in (self.at, self.drafted, self.without))
        given = targets, at, drafts, drafted, without, lying(self.weights, np.float32), *more
        addresses = [None if each is None else each.ctypes.data for each in given]
        getattr(_built(), function)(len(self.at), self.targets.shape[-1], *addresses)
