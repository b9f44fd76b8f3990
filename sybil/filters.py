"""Top-k, top-p and min-p over a large vocabulary on a CPU, without sorting the row.

A row's tokens are ordered by their logits, and tokens with equal logits by their ids. Each filter keeps the upper end
of that order: the tokens above some threshold, and the last few of the tokens that equal it. Only the row's likeliest
tokens are sorted to find the threshold. Where the distribution is nearly flat, these are most of the row."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LARGE = 4096  # tokens; rows of fewer tokens are filtered faster by torch, all at once
COLUMN = 64  # values in a column
SHARES = (16, 1)
"""Top-p looks only at tokens whose probability is at least share * (1 - top_p) / vocab, for one share after the other.
With share 1 the tokens below that limit have less than 1 - top_p of the mass together, so none of them is kept. With
share 16 that is usually true as well, and fewer tokens are looked at; if it isn't, share 1 follows."""
Array = np.ndarray


def softmax(logits: Tensor, temperature: float) -> Tensor:
    """The distributions of logits (..., vocab), float32 or float64 on the CPU, without a filter. NaN where a row makes
    no distribution."""
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
    """The distributions of logits (..., vocab), float32 or float64 on the CPU, after the filters; at least one filter
    must be on.

    A row's result depends on that row alone. NaN where a row makes no distribution."""
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
    """(the tokens of a row that are kept, ascending; their weights in float64, where the likeliest token weighs 1)."""
    if 0 < top_k < len(row):
        least = np.partition(_head(row, top_k), -top_k)[-top_k]
        tokens = np.flatnonzero(row >= max(least, np.finfo(row.dtype).min))  # a logit of -inf is never kept
        if top_p < 1:
            tokens = tokens[_nucleus(row[tokens], highest, top_p)]
    elif top_p < 1:
        tokens = _nucleus(row, highest, top_p)
    else:  # min-p alone: tokens clearly below the limit aren't looked at
        tokens = np.flatnonzero(row >= float(highest) + math.log(min_p) - 1e-3)
    weights = np.exp(row[tokens] - highest, dtype=np.float64)
    if min_p > 0:
        stays = weights >= min_p
        tokens, weights = tokens[stays], weights[stays]
    return tokens, weights


def _nucleus(values: Array, highest: Array, top_p: float) -> Array:
    """The places, ascending, of the values that top-p keeps: the values with less than top_p of the mass above them."""
    mass = values - highest
    np.exp(mass, out=mass)
    whole = float(mass.sum())
    for share in SHARES:
        head = np.flatnonzero(mass >= min(share * (1 - top_p) * whole / len(mass), 1.0))
        falling = np.sort(values[head])[::-1]
        sums = np.exp(falling - highest).cumsum(dtype=np.float64)
        count = 1 + int(np.searchsorted(sums, top_p * whole))  # above the first is no mass, above the next sums[0], ...
        if count <= len(falling):
            break
    falling = falling[:count]
    places = np.flatnonzero(values >= falling[-1])
    equal = np.flatnonzero(values[places] == falling[-1])
    surplus = len(equal) - np.count_nonzero(falling == falling[-1])
    kept: Array = np.delete(places, equal[:surplus])
    return kept


def _head(values: Array, columns: int) -> Array:
    """All values that are at least some threshold. There are `columns` of them or more.

    The values are divided into columns. The threshold is the `columns`-th largest of the columns' maxima, so only the
    columns with such a maximum are searched. If these would be half of all columns or more, all values are returned."""
    width = len(values) // COLUMN
    if 2 * columns > width:
        return values
    grid = values[: width * COLUMN].reshape(COLUMN, width)
    largest = grid.max(0)
    least = np.partition(largest, -columns)[-columns]
    head = np.concatenate([grid[:, largest >= least].ravel(), values[width * COLUMN :]])
    whole: Array = head[head >= least]
    return whole
