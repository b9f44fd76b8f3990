"""The decoder-only forward in C, for CPUs."""

from sybil.models.native import library
from sybil.models.native.transformer import STORAGES, NativeTransformer

__all__ = ["STORAGES", "NativeTransformer", "library"]
