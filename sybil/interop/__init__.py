"""Sybil's loop inside transformers' own generate()."""

from sybil.interop.generate import custom_generate

__all__ = ["custom_generate"]
