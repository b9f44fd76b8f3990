"""The output of `sybil --version`: what is installed here, one package on each line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from importlib import metadata

import torch

import sybil
from sybil.models.native import library


def versions() -> Iterator[str]:
    """Sybil's version, then the versions of the packages that it computes with. Raises InvalidSetting where SYBIL_LANES
    is wrong."""
    yield f"sybil {sybil.__version__}"
    yield f"torch {torch.__version__}"
    yield f"transformers {metadata.version('transformers')}"
    yield f"C forward: {_forward()}"


def _forward() -> str:
    """Whether the C forward can be built here. Its first build on a machine takes seconds."""
    if os.environ.get("SYBIL_NATIVE") == "0":
        return "off, since SYBIL_NATIVE is 0"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        built = library.load()
    if built is not None:
        return f"builds, with vectors of {built.sybil_lanes()} floats"
    return f"doesn't build: {said[-1].message}" if said else "doesn't build"
