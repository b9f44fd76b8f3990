"""Facts about models that aren't on this machine: their size, their licence, and how to get their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from sybil.models.folders import EMBEDDED

PICKLE: Final = "pickle"
Format = Literal["safetensors", "pickle", "GGUF"]
Relation = Literal["same", "padded", "different"]
"""How a draft's tokens compare with the target's. "same": they are the same. "padded": they are the same, but the
models' logits differ in padding, which no text uses. "different": the draft has another tokenizer."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a model that isn't on this machine.

    parameters: the number of its language model's parameters; a tied embedding and head count once. gated: whether the
    hub gives the model only to those who have asked its owner. formats: of the weights, the owner's own format first. A
    pickle may run code when it is opened, so Sybil doesn't read pickles."""

    parameters: int | None = None
    licence: str = ""
    gated: bool = False
    formats: tuple[Format, ...] = ()


@dataclass(frozen=True, slots=True)
class Best:
    """The fastest of several drafts that were measured. gain: the speed as a multiple of the speed without a draft.
    command: the command that measured it. told: the conditions of the measurement, in words."""

    draft: str
    gain: float
    command: str
    told: str


_HUB: tuple[Format, ...] = ("safetensors", "GGUF")
_OPT, _LLAMA3 = "OPT-175B", "Llama 3"
MODELS: Mapping[str, Facts] = {
    f"{EMBEDDED}stdlib/target": Facts(11_338_880, "PSF", formats=("safetensors",)),
    f"{EMBEDDED}stdlib/draft": Facts(1_969_920, "PSF", formats=("safetensors",)),
    "openai-community/gpt2": Facts(124_439_808, "MIT", formats=_HUB),
    "openai-community/gpt2-medium": Facts(354_823_168, "MIT", formats=_HUB),
    "openai-community/gpt2-large": Facts(774_030_080, "MIT", formats=_HUB),
    "openai-community/gpt2-xl": Facts(1_557_611_200, "MIT", formats=_HUB),
    "distilbert/distilgpt2": Facts(81_912_576, "Apache-2.0", formats=_HUB),
    "facebook/opt-125m": Facts(125_239_296, _OPT, formats=(PICKLE,)),
    "facebook/opt-350m": Facts(331_196_416, _OPT, formats=(PICKLE,)),
    "facebook/opt-1.3b": Facts(1_315_758_080, _OPT, formats=(PICKLE,)),
    "facebook/opt-2.7b": Facts(2_651_596_800, _OPT, formats=(PICKLE,)),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": Facts(1_100_048_384, "Apache-2.0", formats=_HUB),
    "microsoft/Phi-3-mini-4k-instruct": Facts(3_821_079_552, "MIT", formats=_HUB),
    "meta-llama/Meta-Llama-3-8B-Instruct": Facts(8_030_261_248, _LLAMA3, True, _HUB),
    "meta-llama/Llama-3.1-8B": Facts(8_030_261_248, "Llama 3.1", True, _HUB),
    "meta-llama/Llama-3.2-1B": Facts(1_235_814_400, "Llama 3.2", True, _HUB),
    "Qwen/Qwen2.5-0.5B": Facts(494_032_768, "Apache-2.0", formats=_HUB),
    "Qwen/Qwen2.5-3B": Facts(3_085_938_688, "Qwen Research", formats=_HUB),
    "Qwen/Qwen2.5-7B": Facts(7_615_616_512, "Apache-2.0", formats=_HUB),
    "Qwen/Qwen3-0.6B": Facts(596_049_920, "Apache-2.0", formats=_HUB),
    "Qwen/Qwen3-8B": Facts(8_190_735_360, "Apache-2.0", formats=_HUB),
    "HuggingFaceTB/SmolLM2-135M": Facts(134_515_008, "Apache-2.0", formats=_HUB),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Facts(134_515_008, "Apache-2.0", formats=_HUB),
    "HuggingFaceTB/SmolLM2-1.7B": Facts(1_711_376_384, "Apache-2.0", formats=_HUB),
    "google/gemma-3-270m": Facts(268_098_176, "Gemma", True, _HUB),
    "google/gemma-3-4b-pt": Facts(3_880_263_168, "Gemma", True, _HUB),
}
"""The models by hub id, or by folder inside the package."""


def converting(model: str) -> str:
    """A shell line that converts a hub id's pickle into a folder of safetensors, which has the model's name."""
    return (
        'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"[each.from_pretrained('{model}').save_pretrained('{folder_of(model)}') for each in (M, T)]\""
    )


def folder_of(model: str) -> str:
    """A hub id without its owner."""
    return model.rpartition("/")[2]
