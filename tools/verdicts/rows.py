"""What is judged: a row for each decoder and pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sybil.models.folders import EMBEDDED
from tools.verdicts import files

ENGLISH = "sybil/embedded/prompts/english.jsonl"
FEWER = ("--greedy", "8", "--stopping", "4", "--widths", "2", "--prompts", ENGLISH)
FEW = ("--count", "16", "--repeats", "1", "--greedy", "4", "--stopping", "2", "--widths", "2")
"""Enough for a fault of more than a nat a token."""
MODELS: Mapping[str, Callable[[], str]] = {
    "SMOLLM2": lambda: str(files.smollm2()),
    "SMOLLM2-Q8_0": lambda: str(files.stored("q8_0")),
    "SMOLLM2-Q4_0": lambda: str(files.stored("q4_0")),
    "SMOLLM2-DRAFT": lambda: str(files.draft_folder()),
    "STDLIB": lambda: f"{EMBEDDED}stdlib/target",
    "STDLIB-DRAFT": lambda: f"{EMBEDDED}stdlib/draft",
}
"""Models by the names that the rows have for them."""
FLASHSPEC_TOP_P = "flashspec_top_p.py"
UNIVERSAL = "transformers_two_tokenizers.py"
STOPS = "transformers_stop_strings.py"
OPENVINO_DRAFT = "openvino_draft_sampling.py"
OPENVINO_Q4_1 = "openvino_q4_1.py"
EXPLAINED: Mapping[str, Sequence[str]] = {
    FLASHSPEC_TOP_P: ("distribution",),
    UNIVERSAL: ("distribution",),
    STOPS: ("endings",),
    OPENVINO_DRAFT: ("distribution",),
    OPENVINO_Q4_1: ("distribution", "tokens"),
}
"""The questions that a reproduction in examples/verdicts/ explains a FAIL of."""


@dataclass(frozen=True, slots=True)
class JudgedSystem:
    """system: whose decoder, by its package; way: how it decodes; target, draft: keys of MODELS; decoder: as `sybil
    verify --decoder` takes it, "" for llama.cpp's server; options: further ones of the command; because: keys of
    EXPLAINED, for a FAIL."""

    system: str
    way: str
    target: str
    draft: str | None
    decoder: str
    options: Sequence[str] = ()
    because: Sequence[str] = field(default=())

    @property
    def key(self) -> str:
        return f"{self.system}, {self.way}, {self.target}"

    @property
    def arguments(self) -> list[str]:
        """Of `sybil verify`, with models by their names here."""
        chosen = ["--decoder", self.decoder] if self.decoder else ["--endpoint", "URL"]
        drafting = [] if self.draft is None else ["--draft", self.draft]
        return ["--quick", "--target", self.target, *drafting, *chosen, *self.options]


def _of_stdlib() -> list[JudgedSystem]:
    target, draft, ours = "STDLIB", "STDLIB-DRAFT", "tools.verdicts.decoders"
    return [
        JudgedSystem("transformers", "generate", target, draft, "transformers"),
        JudgedSystem("transformers", "assisted generation", target, draft, "assisted", (), [STOPS]),
        JudgedSystem("transformers", "prompt lookup", target, None, "prompt-lookup", (), [STOPS]),
        JudgedSystem("flashspec", "rejection", target, draft, f"{ours}:flashspec_rejection"),
        JudgedSystem("flashspec", "lookup", target, None, f"{ours}:flashspec_lookup"),
        JudgedSystem("flashspec", "composite", target, draft, f"{ours}:flashspec_composite"),
        JudgedSystem("flashspec", "rejection, top-p 0.9", target, draft, f"{ours}:flashspec_rejection",
            ("--top-p", "0.9"), [FLASHSPEC_TOP_P]),
        JudgedSystem("transformers", "universal assisted generation", target, "SMOLLM2", "usd", FEW,
            [UNIVERSAL, STOPS]),
    ]  # fmt: skip


def _of_smollm2() -> list[JudgedSystem]:
    target, draft, ours = "SMOLLM2", "SMOLLM2-Q4_0", "tools.verdicts.decoders"
    rounded = ("--tolerance", "q8 activations", *FEWER)
    return [
        JudgedSystem(
            "openvino-genai",
            "draft model",
            "SMOLLM2-Q8_0",
            draft,
            "openvino",
            (*FEW, "--prompts", ENGLISH),
            [OPENVINO_DRAFT],
        ),
        JudgedSystem("openvino-genai", "no draft", "SMOLLM2-Q8_0", None, "openvino", FEWER),
        JudgedSystem(
            "openvino-genai",
            "no draft, from Q4_1",
            target,
            None,
            "openvino",
            (*FEW, "--prompts", ENGLISH),
            [OPENVINO_Q4_1],
        ),
        JudgedSystem("xllamacpp", "draft model", target, draft, "", rounded),
        JudgedSystem("xllamacpp", "no draft", target, None, "", rounded),
        JudgedSystem(
            "transformers",
            "universal assisted generation",
            target,
            "STDLIB-DRAFT",
            "usd",
            (*FEW, "--prompts", ENGLISH),
            [UNIVERSAL, STOPS],
        ),
        JudgedSystem("economize", "lookup", target, None, f"{ours}:economize_lookup", FEWER),
        JudgedSystem("economize", "draft model", target, "SMOLLM2-DRAFT", f"{ours}:economize_draft_model", FEWER),
        JudgedSystem("economize", "layer skip", target, None, f"{ours}:economize_layer_skip", FEWER),
        JudgedSystem("economize", "early exit", target, None, f"{ours}:economize_early_exit", FEWER),
        JudgedSystem("transformers", "assisted generation", target, draft, "assisted", FEWER, [STOPS]),
        JudgedSystem("transformers", "generate", target, None, "transformers", FEWER),
        JudgedSystem("transformers", "prompt lookup", target, None, "prompt-lookup", FEWER, [STOPS]),
        JudgedSystem("openvino-genai", "prompt lookup", "SMOLLM2-Q8_0", "lookup", "openvino", FEWER),
        JudgedSystem("flashspec", "rejection", target, draft, f"{ours}:flashspec_rejection", FEWER),
        JudgedSystem("flashspec", "composite", target, draft, f"{ours}:flashspec_composite", FEWER),
        JudgedSystem("flashspec", "lookup", target, None, f"{ours}:flashspec_lookup", FEWER),
    ]


ROWS = [*_of_stdlib(), *_of_smollm2()]
NOT_ASKED = (
    "economize and OpenVINO GenAI on the embedded pair: the pair is of GPT-2's kind, for which economize 0.3.2 has no "
    "adapter and OpenVINO GenAI 2026.4.1 no reader",
    "economize's `typical` and flashspec's `typical`: their authors call them lossy",
)
"""What can't be judged, or needn't be."""
