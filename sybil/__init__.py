"""Sybil: lossless speculative decoding."""

from typing import TYPE_CHECKING, Any

from sybil.chat import ChatTemplate
from sybil.conversation import Conversation
from sybil.decoding import Decoder
from sybil.errors import SybilError
from sybil.loading import load
from sybil.pairs import PAIRS, Pair
from sybil.results import Generation, Stats, Step, Timings
from sybil.sampling import Sampling
from sybil.settings import Settings

if TYPE_CHECKING:
    from sybil.interop import custom_generate

__version__ = "0.1.0"
__all__ = [
    "PAIRS",
    "ChatTemplate",
    "Conversation",
    "Decoder",
    "Generation",
    "Pair",
    "Sampling",
    "Settings",
    "Stats",
    "Step",
    "SybilError",
    "Timings",
    "__version__",
    "custom_generate",
    "load",
]


def __getattr__(name: str) -> Any:
    """custom_generate at its first use: it needs transformers, which takes seconds to import."""
    if name == "custom_generate":
        from sybil.interop import custom_generate

        return custom_generate
    raise AttributeError(f"module 'sybil' has no attribute {name!r}")
