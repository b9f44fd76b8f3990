"""Do two decoders say the same? Where two texts part, and whether rounding alone can part them there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sybil.errors import InvalidSetting


def in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two texts share."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which two texts hold other tokens; where one begins the other, the shorter's length; None
    where they are the same."""
    apart = in_common(one, other)
    return None if apart == max(len(one), len(other)) else apart


def lead(logits: Tensor) -> Tensor:
    """How far the best of logits (..., vocab) stands above the second, (...) float64; infinite beside none."""
    best = F.pad(logits.double(), (0, 1), value=-torch.inf).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two forwards of one model may stand apart in a logit, by other kernels and another order of summation:
    `absolute`, and `relative` times the row's largest. Two tokens that are nearer than that are a near-tie."""

    absolute: float = 1e-3
    relative: float = 0.0

    def of(self, size: NDArray[np.float64] | float) -> Any:
        """size: of the row's largest logit."""
        return self.absolute + self.relative * size


FLOAT32 = Tolerance()
HALF = {torch.float16: Tolerance(0.05, 2**-10), torch.bfloat16: Tolerance(0.5, 2**-7)}
"""Of a forward in half precision and one in float32 with the same weights: absolute is about three times what the
embedded target shows over twelve prompts (0.015 and 0.19); relative, the last bit of a logit."""
Q8_ACTIVATIONS = Tolerance(0.6)
"""Of a forward that rounds what goes into each product to 8 bits, as llama.cpp's does beside quantised weights, and one
that doesn't: three times what its greedy tokens were seen to leave the likeliest by, 0.2 logits (0.14 where SmolLM2's
inputs are rounded in blocks of 32, 24 tokens after each of four prompts)."""
TOLERANCES = {
    "float32": FLOAT32,
    "float16": HALF[torch.float16],
    "bfloat16": HALF[torch.bfloat16],
    "q8 activations": Q8_ACTIVATIONS,
}


def tolerance_of(text: str) -> Tolerance:
    """A tolerance by its name, or by a number of logits; raises InvalidSetting."""
    named = TOLERANCES.get(text.strip().lower())
    if named is not None:
        return named
    try:
        logits = float(text)
    except ValueError:
        logits = math.nan
    if not 0 < logits < math.inf:
        raise InvalidSetting(f"tolerance is {text!r}: use a number of logits above 0, or {', '.join(TOLERANCES)}")
    return Tolerance(logits)
