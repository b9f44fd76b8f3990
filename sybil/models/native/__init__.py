"""The decoder-only forward in C, for CPUs."""

from sybil.models.native import library
from sybil.models.native.transformer import NativeTransformer
from sybil.models.storage import Storage

STORAGES: tuple[Storage, ...] = ("float32", "bfloat16")
"""The storages in which the C forward takes any weights."""

__all__ = ["STORAGES", "NativeTransformer", "library"]
