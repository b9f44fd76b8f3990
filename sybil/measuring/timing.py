"""Measuring several things side by side; medians and the intervals around them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sybil.models import Model
from sybil.models.operators.graphs import Graphs
from sybil.models.operators.static import USES
from sybil.transfer import count_to, integers

STREAM, STREAM_BYTES = "stream", 512 << 20  # far more than any processor's cache holds
Found = TypeVar("Found")
TRIES = 4
"""How often a run is measured at most. A GPU records the last shapes of a short text during its third run."""


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all work given to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def unrecorded(measure: Callable[[], Found]) -> Found:
    """The result of measure(). The measurement is repeated where the GPU recorded a CUDA graph meanwhile: recording
    takes longer than computing, and happens once."""
    for _ in range(TRIES):
        before = Graphs.recorded
        found = measure()
        if Graphs.recorded == before:
            break
    return found


def interleave(
    cases: Mapping[str, Callable[[], object]], passes: int, device: torch.device
) -> Iterator[dict[str, float]]:
    """The milliseconds of every case, pass by pass. Each pass runs the cases in another order, so that no case always
    finds the processor's caches as the same other case left them. A first pass warms up and isn't reported."""
    order, generator = list(cases), random.Random(0)
    for count in range(passes + 1):
        generator.shuffle(order)
        sample = {}
        for name in order:
            synchronise(device)
            began = time.perf_counter()
            cases[name]()
            synchronise(device)
            sample[name] = 1e3 * (time.perf_counter() - began)
        if count:
            yield {name: sample[name] for name in cases}


def forward_case(model: Model, tokens: int, depth: int) -> Callable[[], Tensor]:
    """A case: a forward over `tokens` tokens with `depth` tokens in the cache before them."""
    ids = count_to(depth + tokens)[None] % model.vocab_size
    cache, lengths = model.new_cache(1, depth + tokens), integers([depth])
    model.prefill(ids[:, :depth], cache)

    def run() -> Tensor:
        cache.lengths = lengths
        return model.forward(ids[:, depth:], cache)

    if model.device.type == "cuda":
        for _ in range(USES):  # the last one records a graph
            run()
    return run


def stream_case(device: torch.device) -> Callable[[], Tensor]:
    """A case: a read of STREAM_BYTES from memory, which measures the machine's bandwidth."""
    return torch.ones(STREAM_BYTES // 4, dtype=torch.float32, device=device).sum


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


def speed_up(baseline: Sequence[float], other: Sequence[float]) -> Interval:
    """The median over prompts of baseline / other, and its 95 % interval by a percentile bootstrap over prompts (9,999
    resamples, fixed seed). baseline, other: seconds or ms for each token, paired by prompt."""
    ratios = np.asarray(baseline, dtype=float) / np.asarray(other, dtype=float)
    median = float(np.median(ratios))
    if len(ratios) < 2 or np.ptp(ratios) == 0:
        return Interval(median, median, median)
    from scipy import stats  # slow to import, and most commands need none of it

    found = stats.bootstrap((ratios,), np.median, method="percentile", rng=np.random.default_rng(0))
    return Interval(median, float(found.confidence_interval.low), float(found.confidence_interval.high))
