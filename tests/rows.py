"""Rows of logits as large as a vocabulary, of every kind."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st


@st.composite
def large_rows(draw: st.DrawFn) -> torch.Tensor:
    """A row (vocab,) of more than LARGE logits, float64: flat, spread, peaked or rounded to few values; some -inf."""
    vocab = draw(st.sampled_from([4_096, 4_999, 12_345, 40_000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    row = draw(st.sampled_from([0.0, 0.3, 2.0, 6.0])) * torch.randn(vocab, dtype=torch.float64, generator=generator)
    spacing = draw(st.sampled_from([0.0, 0.01, 0.5]))
    row = (row / spacing).round() * spacing if spacing else row
    row[: draw(st.sampled_from([0, 1, 3_000, vocab - 2]))] = -math.inf
    row += draw(st.sampled_from([0.0, -50.0, 700.0]))
    return row[torch.randperm(vocab, generator=generator)]
