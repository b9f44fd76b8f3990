"""Sybil: lossless speculative decoding."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sybil.chat import ChatTemplate
from sybil.conversation import Conversation
from sybil.decoding import Decoder
from sybil.errors import SybilError
from sybil.loading import load
from sybil.measuring.promptset import PromptSet
from sybil.pairs import PAIRS, Pair
from sybil.results import Generation, Stats, Step, Timings
from sybil.sampling import Sampling
from sybil.settings import Settings

if TYPE_CHECKING:
    from sybil.interop import custom_generate
    from sybil.judging import judge

__version__ = "0.2.0"
__all__ = [
    "PAIRS",
    "ChatTemplate",
    "Conversation",
    "Decoder",
    "Generation",
    "Pair",
    "PromptSet",
    "Sampling",
    "Settings",
    "Stats",
    "Step",
    "SybilError",
    "Timings",
    "__version__",
    "custom_generate",
    "judge",
    "load",
]
LATER = {"custom_generate": "sybil.interop", "judge": "sybil.judging"}


def __getattr__(name: str) -> Any:
    """Import the names that need transformers at their first use, because transformers takes seconds to import."""
    if name in LATER:
        return getattr(import_module(LATER[name]), name)
    raise AttributeError(f"module 'sybil' has no attribute {name!r}")
