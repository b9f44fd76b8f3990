"""Sybil: lossless speculative decoding."""

from sybil.decoding import Decoder
from sybil.errors import SybilError
from sybil.pairs import PAIRS, Pair, load
from sybil.results import Generation, Stats, Step, Timings
from sybil.sampling import Sampling
from sybil.settings import Settings

__version__ = "0.1.0"
__all__ = [
    "PAIRS",
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
    "load",
]
