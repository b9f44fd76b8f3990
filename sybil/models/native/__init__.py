"""The decoder-only forward in C, for CPUs."""

from sybil.models.native import library
from sybil.models.native.packing import STORAGES
from sybil.models.native.transformer import NativeTransformer

__all__ = ["STORAGES", "NativeTransformer", "library"]
