"""The models that are replayed: published shapes with random weights, or tiny shapes when only the command is tried."""

from __future__ import annotations

import torch

from benchmarks.gpu.rows import GpuPlan
from sybil.measuring import workload as workloads
from sybil.measuring.workload import RandomModel, RandomPair

_TINY = {"model_type": "gpt2", "n_positions": 128, "n_embd": 64, "n_head": 4, "vocab_size": 512}


def pair_of(plan: GpuPlan) -> RandomPair:
    """The plan's target and draft."""
    if plan.workload:
        return workloads.workload(plan.workload)
    target, draft = (RandomModel(f"tiny {layers}", {**_TINY, "n_layer": layers}) for layers in (3, 2))
    return RandomPair(target, draft)


def dtype_of(name: str) -> torch.dtype:
    """torch's dtype of that name."""
    found: torch.dtype = getattr(torch, name)
    return found


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all work that was given to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
