"""The registered pairs of a target and a draft: names and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sybil.devices import choose_device, default_draft_dtype, default_dtype
from sybil.errors import UnknownPair
from sybil.models.folders import EMBEDDED

__all__ = ["PAIRS", "Pair", "choose_device", "default_draft_dtype", "default_dtype", "pair"]
# the names of sybil.devices are here too: the benchmarks measure older commits by them (docs/benchmarks.md)


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and a draft that share a tokenizer: hub ids, or folders inside the package.

    A pair's name is no hub id's: one alone has a colon."""

    target: str
    draft: str
    about: str


PAIRS: Mapping[str, Pair] = {
    "stdlib": Pair(f"{EMBEDDED}stdlib/target", f"{EMBEDDED}stdlib/draft", "ships with Sybil: Python, 11M parameters"),
    "gpt2:medium": Pair("openai-community/gpt2-medium", "openai-community/gpt2", "355M parameters"),
    "gpt2:xl": Pair("openai-community/gpt2-xl", "openai-community/gpt2", "1.6B parameters"),
    "smollm2:1.7b": Pair("HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-135M", "1.7B parameters"),
    "qwen2.5:3b": Pair("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-0.5B", "3B parameters"),
}


def pair(name: str) -> Pair:
    """The registered pair of that name; raises UnknownPair."""
    if name not in PAIRS:
        raise UnknownPair(f"there is no pair {name!r}: the pairs are {', '.join(PAIRS)}, or give a target and a draft")
    return PAIRS[name]
