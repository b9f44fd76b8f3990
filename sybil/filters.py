"""Top-k, top-p and min-p over a large vocabulary on a CPU, without sorting the row.

A row's tokens are ordered by their logits and, where those are equal, by their ids. Each filter keeps an upper end of
that order: the tokens above some least value, and the last few of those that equal it. Only the row's likeliest tokens
are sorted to find that value. Where the distribution is nearly flat these are most of the row."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LARGE = 4096  # tokens; torch filters rows of fewer all at once, and quicker
COLUMN = 64  # values in a column
SHARES = (16, 1)
"""Tokens are looked at that weigh at least this many times (1 - top_p) of the mean. What weighs less than once that is,
all together, less than 1 - top_p of the mass, so none of it stays; most often, of what weighs less than 16 times."""
Array = np.ndarray


def softmax(logits: Tensor, temperature: float) -> Tensor:
    """Logits (..., vocab), float32 or float64 on the CPU, into distributions, in the same way."""
    rows = logits.numpy().reshape(-1, logits.shape[-1])
    probs = np.empty(rows.shape, rows.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for row, made in zip(rows, probs, strict=True):
            np.divide(row, temperature, out=made)
            made -= made.max()  # a row that makes no distribution is NaN throughout
            np.exp(made, out=made)
            made /= made.sum()
    return torch.from_numpy(probs).reshape(logits.shape)


def filtered(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Logits (..., vocab), float32 or float64 on the CPU, into the distributions that at least one filter leaves.

    A row's numbers depend on that row alone. NaN where a row makes no distribution."""
    rows = logits.numpy().reshape(-1, logits.shape[-1])
    probs = np.zeros(rows.shape, rows.dtype)
    with np.errstate(over="ignore"):  # logits that a low temperature takes to infinity make no distribution
        for row, made in zip(rows, probs, strict=True):
            scaled = row if temperature == 1 else row / temperature
            highest = scaled.max()
            if np.isfinite(highest):
                tokens, weights = _kept(scaled, highest, top_k, top_p, min_p)
                made[tokens] = weights / weights.sum()
            else:
                made.fill(math.nan)
    return torch.from_numpy(probs).reshape(logits.shape)


def _kept(row: Array, highest: Array, top_k: int, top_p: float, min_p: float) -> tuple[Array, Array]:
    """The tokens of a row that stay, in ascending order, and what they weigh, the likeliest 1, in float64."""
    if 0 < top_k < len(row):
        least = np.partition(_head(row, top_k), -top_k)[-top_k]
        tokens = np.flatnonzero(row >= max(least, np.finfo(row.dtype).min))  # -inf weighs nothing
        if top_p < 1:
            tokens = tokens[_nucleus(row[tokens], highest, top_p)]
    elif top_p < 1:
        tokens = _nucleus(row, highest, top_p)
    else:  # min-p alone: tokens that weigh clearly less aren't looked at
        tokens = np.flatnonzero(row >= float(highest) + math.log(min_p) - 1e-3)
    weights = np.exp(row[tokens] - highest, dtype=np.float64)
    if min_p > 0:
        stays = weights >= min_p
        tokens, weights = tokens[stays], weights[stays]
    return tokens, weights


def _nucleus(values: Array, highest: Array, top_p: float) -> Array:
    """The places, ascending, of the values that top-p keeps: those that have less than top_p of the mass above them."""
    mass = values - highest
    np.exp(mass, out=mass)
    whole = float(mass.sum())
    for share in SHARES:
        head = np.flatnonzero(mass >= min(share * (1 - top_p) * whole / len(mass), 1.0))
        falling = np.sort(values[head])[::-1]
        sums = np.exp(falling - highest).cumsum(dtype=np.float64)
        count = 1 + int(np.searchsorted(sums, top_p * whole))  # no mass is above the first, sums[0] above the next, ...
        if count <= len(falling):
            break
    falling = falling[:count]
    places = np.flatnonzero(values >= falling[-1])
    equal = np.flatnonzero(values[places] == falling[-1])
    surplus = len(equal) - np.count_nonzero(falling == falling[-1])
    kept: Array = np.delete(places, equal[:surplus])
    return kept


def _head(values: Array, columns: int) -> Array:
    """The values from some least one up, at least so many: all of them where a few columns would be most of them.

    That least one is the so-manieth of the columns' largest values, so every larger one is in the head."""
    width = len(values) // COLUMN
    if 2 * columns > width:
        return values
    grid = values[: width * COLUMN].reshape(COLUMN, width)
    largest = grid.max(0)
    least = np.partition(largest, -columns)[-columns]
    head = np.concatenate([grid[:, largest >= least].ravel(), values[width * COLUMN :]])
    whole: Array = head[head >= least]
    return whole
