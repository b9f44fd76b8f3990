"""Turns logits into probabilities, and probabilities and noise into tokens. Pure.

Greedy decoding is temperature 0, where the distribution is one-hot. likeliest() gives its tokens directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sybil.arguments import callables, described, integer, number
from sybil.errors import InvalidSetting, NumericalFailure
from sybil.filters import LARGE, filtered, softmax
from sybil.models.native import drawing
from sybil.noise import Exponentials
from sybil.transfer import integers, upload

BLOCK = 512  # tokens; draw() first sums the probabilities of each block of so many
COLDEST = 1e-6  # a temperature below it would take logits beyond what float32 holds
Processor = Callable[[Tensor, Tensor], Tensor]
"""A LogitsProcessor as transformers has it: (prefix (1, n), logits (1, vocab)) -> logits (1, vocab). A processor that
depends on the row of the batch has a method of_row(row), which gives the processor of that row."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token's distribution is made from logits. The names and the order of the steps are transformers'.

    Processors run first: they see the raw logits and the prefix of each position. The temperature and the filters
    follow. temperature 0 is greedy decoding; top_k 0, top_p 1 and min_p 0 switch their filters off. Raises
    InvalidSetting for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        object.__setattr__(self, "top_k", integer("top_k", self.top_k))
        object.__setattr__(self, "processors", callables("processors", self.processors))
        if not (math.isfinite(self.temperature) and (self.temperature == 0 or self.temperature >= COLDEST)):
            raise InvalidSetting(f"temperature is {self.temperature}: use 0 (greedy) or a number from {COLDEST:g}")
        if self.top_k < 0:
            raise InvalidSetting(f"top_k is {self.top_k}: use a positive number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise InvalidSetting(f"top_p is {self.top_p}: use a number above 0 and at most 1 (1 keeps every token)")
        if not 0 <= self.min_p <= 1:
            raise InvalidSetting(f"min_p is {self.min_p}: use a number from 0 (off) to 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def keywords(self) -> dict[str, Any]:
        """The same sampling as keywords of generate(), without the processors."""
        drawn = {"temperature": self.temperature or 1.0, "top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        return {"do_sample": not self.greedy, **drawn}

    @property
    def told(self) -> str:
        """The sampling in words, without the processors."""
        if self.greedy:
            return "greedy"
        filters = {"top-k": (self.top_k, 0), "top-p": (self.top_p, 1.0), "min-p": (self.min_p, 0.0)}
        on = [f"{name} {value:g}" for name, (value, off) in filters.items() if value != off]
        return ", ".join([f"temperature {self.temperature:g}", *on])


GREEDY = Sampling()


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distributions to sample from: logits (..., vocab) -> probabilities (..., vocab), each row with sum 1, float32
    or wider. The processors aren't applied: see process().

    A row with NaN, with +inf or without a finite entry becomes NaN, for which draw() gives -1."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.greedy:
        chosen = likeliest(logits)[..., None]
        one_hot = torch.zeros_like(logits).scatter_(-1, chosen.clamp(min=0), 1.0)
        return torch.where(chosen >= 0, one_hot, math.nan)
    top_k = sampling.top_k if sampling.top_k < logits.shape[-1] else 0
    top_p, min_p = sampling.top_p, sampling.min_p
    if drawing.does(logits):
        return drawing.distributions(logits, sampling.temperature, top_k, top_p, min_p)
    if logits.device.type == "cpu" and logits.shape[-1] >= LARGE:
        if top_k or top_p < 1 or min_p:
            return filtered(logits, sampling.temperature, top_k, top_p, min_p)
        return softmax(logits, sampling.temperature)
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    if top_k:
        least = scaled.topk(top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -math.inf)
    if top_p < 1:
        ascending, order = scaled.sort(dim=-1, stable=True)
        below = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        below[..., -1] = False  # the likeliest token always stays
        scaled = scaled.masked_fill(below.scatter(-1, order, below), -math.inf)
    probs = scaled.softmax(-1)
    if min_p:
        probs = probs.masked_fill_(probs < min_p * probs.amax(-1, keepdim=True), 0.0)
        probs /= probs.sum(-1, keepdim=True)
    return probs


def likeliest(logits: Tensor) -> Tensor:
    """The greedy tokens (...) of logits (..., vocab); -1 where a row has NaN, has +inf or has no finite entry."""
    if not _numpy_does(logits):
        best, chosen = logits.max(-1)
        return torch.where(best.isfinite(), chosen, -1)
    rows = logits.numpy()
    tokens = np.asarray(rows.argmax(-1))
    broken = ~np.isfinite(rows.max(-1))
    if broken.any():
        tokens[broken] = -1
    return torch.from_numpy(tokens)


def argmax(logits: Tensor) -> Tensor:
    """The same as logits.argmax(-1), by numpy where numpy is faster."""
    return torch.from_numpy(np.asarray(logits.numpy().argmax(-1))) if _numpy_does(logits) else logits.argmax(-1)


def _numpy_does(logits: Tensor) -> bool:
    """Whether numpy computes: on a CPU it takes a tenth of torch's time (torch 2.13, rows of 50,257), and fewer pages
    of code are loaded for it."""
    return logits.device.type == "cpu" and logits.dtype != torch.bfloat16


def process(logits: Tensor, prefixes: list[Tensor], wanted: Tensor, processors: tuple[Processor, ...]) -> Tensor:
    """Apply the processors to logits (batch, n, vocab), and return the processed logits, float32 or wider.

    prefixes: for each row a 1-d tensor of its tokens; lengths may differ. At position i the processors see the row's
    prefix without its last n - 1 - i tokens. wanted: (batch, n), False where the processors aren't called and the
    logits stay as they are."""
    processed = logits.to(torch.promote_types(logits.dtype, torch.float32)).clone()
    last = logits.shape[1] - 1
    for row, prefix in enumerate(prefixes):
        asked = [of_row(processor, row) for processor in processors]
        for place in wanted[row].nonzero().flatten().tolist():
            ids = upload(prefix[None, : len(prefix) - (last - place)], logits.device)
            scores = processed[row, place][None]
            for processor in asked:
                scores = scored(processor, ids, scores)
            processed[row, place] = scores[0]
    return processed


def scored(processor: Processor, ids: Tensor, scores: Tensor) -> Tensor:
    """The scores (1, vocab) that a processor returns for scores (1, vocab) after ids (1, n). Raises InvalidSetting
    where the processor returns anything of another shape."""
    made: Any = processor(ids, scores)
    if not isinstance(made, Tensor) or made.shape != scores.shape:
        raise InvalidSetting(
            f"logits_processor {described(processor)} gave {described(made)}: return scores of shape "
            f"{tuple(scores.shape)}, as they were given"
        )
    return made


def of_row(asked: Any, row: int) -> Any:
    """The processor or stopping criterion for one row of a batch: of_row(row) where the object has that method, and
    else the object itself."""
    return asked.of_row(row) if hasattr(asked, "of_row") else asked


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draws: probs (..., vocab), uniforms (...) in [0, 1) -> tokens (...), int64.

    A token of probability 0 is never drawn. The result is -1 where a row is NaN or all 0. Rows need not be normalised.
    The sums are float64."""
    vocab = probs.shape[-1]
    if drawing.does(probs):
        return drawing.draw(probs, uniforms)
    if probs.device.type == "cpu" and vocab >= LARGE:
        rows = zip(probs.numpy().reshape(-1, vocab), uniforms.double().numpy().reshape(-1), strict=True)
        return integers([_draw(row, uniform) for row, uniform in rows]).reshape(uniforms.shape)
    cdf = probs.double().cumsum(-1)
    total = cdf[..., -1]
    point = upload(uniforms.double(), probs.device) * total
    token = torch.searchsorted(cdf, point[..., None], right=True).squeeze(-1)
    return torch.where(total > 0, token, -1)


def _draw(row: np.ndarray, uniform: float) -> int:
    """draw() for one row (vocab,). The blocks' sums give the block that holds the token, and the sums inside the block
    give the token."""
    blocks = np.add.reduceat(row, np.arange(0, len(row), BLOCK), dtype=np.float64).cumsum()
    if not blocks[-1] > 0:
        return -1
    point = uniform * blocks[-1]
    place = int(np.searchsorted(blocks, point, side="right"))
    block = row[place * BLOCK : (place + 1) * BLOCK]
    sums = (blocks[place - 1] if place else 0.0) + block.cumsum(dtype=np.float64)
    inside = int(np.searchsorted(sums, point, side="right"))
    # by rounding, the point may lie beyond the block's last sum
    return place * BLOCK + (inside if inside < len(block) else int(np.flatnonzero(block)[-1]))


def race(probs: Tensor, exponentials: Tensor | Exponentials) -> Tensor:
    """Draws by exponential races: for each row of probs (..., vocab), the token whose exponential / probability is
    least; -1 where a row is NaN. exponentials: (..., vocab), or Exponentials, which are made on the device of the
    probabilities.

    With exponentials of mean 1 this is the Gumbel-max draw, argmax(log prob + Gumbel), without its logarithms. If two
    distributions draw with the same exponentials, they draw the same token as often as is possible without any other
    communication."""
    if isinstance(exponentials, Exponentials):
        if not probs.is_cpu:
            exponentials = exponentials.made_on(probs.device)
        elif exponentials.in_columns:
            return drawing.race(probs, exponentials) if drawing.does(probs) else exponentials.first(probs)
        else:
            exponentials = exponentials.all()
    return likeliest(probs / upload(exponentials, probs.device))


def no_distribution(is_processed: bool) -> NumericalFailure:
    """The error to raise where draw() or likeliest() gave -1. is_processed: whether processors have changed the
    logits."""
    if is_processed:
        return NumericalFailure(
            "the logits hold NaN, infinity or no token that may follow, once processors have seen them: ask for less "
            "of them (suppress_tokens, bad_words_ids, logits_processor, ...), or check the model's weights"
        )
    return NumericalFailure(
        "the model's logits hold NaN or infinity, so there is no distribution to draw from: check its weights, or load "
        "it with dtype=torch.float32"
    )
