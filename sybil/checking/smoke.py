"""A first try of a model whose weights are on this machine: ten tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sybil.budget import said
from sybil.checking.check import PairFacts
from sybil.loading import load

PROMPT, NEW_TOKENS = "The quick brown fox", 10


@dataclass(frozen=True, slots=True)
class Smoke:
    """The result of a first try. kept: the storage of the target's weights. tokens: how many were decoded. loading,
    seconds: how long loading and decoding took, in seconds."""

    kept: str
    dtype: str
    device: str
    prompt: str
    text: str
    tokens: int
    loading: float
    seconds: float


def smoke(found: PairFacts, **settings: Any) -> Smoke:
    """Loads the target and its draft, and decodes greedily. settings: of load(). Raises the errors of sybil.errors."""
    began = time.perf_counter()
    decoder = load(found.target, found.draft, **settings)
    loaded = time.perf_counter()
    out = decoder.generate(PROMPT, max_new_tokens=NEW_TOKENS, do_sample=False)
    model: Any = decoder.target
    dtype = str(model.dtype).removeprefix("torch.")
    return Smoke(
        kept=said(model.storage) if hasattr(model, "storage") else dtype,
        dtype=dtype,
        device=str(model.device),
        prompt=PROMPT,
        text=out.text[0],
        tokens=len(out.tokens[0]),
        loading=loaded - began,
        seconds=time.perf_counter() - loaded,
    )
