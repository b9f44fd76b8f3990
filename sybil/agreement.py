"""Whether two decoders give the same text: where two texts first differ, and whether rounding alone explains it."""

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
    """The length of the longest common prefix of two texts, in tokens."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which two texts hold different tokens. It is the shorter text's length where that text is a
    prefix of the other, and None where the two are equal."""
    apart = in_common(one, other)
    return None if apart == max(len(one), len(other)) else apart


def lead(logits: Tensor) -> Tensor:
    """The largest of logits (..., vocab) minus the second largest, (...) float64; infinite where there is no second."""
    best = F.pad(logits.double(), (0, 1), value=-torch.inf).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two forwards of one model may differ in a logit, because their kernels sum in different orders. The limit
    is `absolute` plus `relative` times the row's largest logit. Two tokens whose logits are nearer than the limit are a
    near-tie."""

    absolute: float = 1e-3
    relative: float = 0.0

    def of(self, size: NDArray[np.float64] | float) -> Any:
        """size: of the row's largest logit."""
        return self.absolute + self.relative * size


FLOAT32 = Tolerance()
HALF = {torch.float16: Tolerance(0.05, 2**-10), torch.bfloat16: Tolerance(0.5, 2**-7)}
"""The tolerance between a forward in half precision and one in float32 with the same weights. The absolute part is
about three times the difference that the embedded target shows over twelve prompts (0.015 and 0.19). The relative part
is the last bit of a logit."""
Q8_ACTIVATIONS = Tolerance(0.6)
"""The tolerance between a forward that rounds the inputs of each product to 8 bits, as llama.cpp does for quantised
weights, and a forward that doesn't round them. It is three times the largest gap that was seen between a greedy token
and the likeliest one, 0.2 logits (0.14 where SmolLM2's inputs are rounded in blocks of 32, 24 tokens after each of four
prompts)."""
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
