"""The structs of model.h as Python fills them. Every number is checked here, because ctypes would cut it to 32 bits."""

from __future__ import annotations

import ctypes

from sybil.errors import UnsupportedModel

BLOCK_NORMS = ("attention_norm", "mlp_norm", "attention_out_norm", "mlp_out_norm", "query_norm", "key_norm")
BLOCK_PRODUCTS = ("query_key_value", "attention_out", "mlp_in", "mlp_out")
NUMBERS = (
    *("vocab_size", "context", "layers", "heads", "kv_heads", "head_size", "width", "inner"),
    *("activation", "gated", "norm", "normed", "parallel", "query_key_norm", "position_offset"),
)
SCALES = (
    *("epsilon", "attention_scale", "attention_cap", "embedding_scale"),
    *("residual_scale", "logit_divisor", "logit_cap"),
)
PARTS = 3
"""The most parts of a product."""
LARGEST = (2 - 2.0**-23) * 2.0**127
"""The largest float32."""


class Struct(ctypes.Structure):
    """A struct that raises UnsupportedModel for a number that the field's C type can't hold."""

    def __setattr__(self, name: str, value: object) -> None:
        kind = dict(self._fields_).get(name)  # type: ignore[arg-type]
        if kind in (ctypes.c_int32, ctypes.c_int64):
            bits = 8 * ctypes.sizeof(kind)
            if not isinstance(value, int) or not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
                raise UnsupportedModel(f"{name} is {value!r}, and the C forward takes integers of {bits} bits there")
        if kind is ctypes.c_float and not (isinstance(value, int | float) and abs(value) <= LARGEST):
            raise UnsupportedModel(f"{name} is {value!r}, and the C forward takes numbers up to {LARGEST:.4g} there")
        super().__setattr__(name, value)


class FloatsStruct(Struct):
    """The struct Floats of model.h."""

    _fields_ = [("at", ctypes.c_void_p), ("count", ctypes.c_int64)]


class PartStruct(Struct):
    """The struct Part of model.h."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("bias", FloatsStruct),
        ("outputs", ctypes.c_int32),
        ("storage", ctypes.c_int32),
    ]


class ProductStruct(Struct):
    """The struct Product of model.h."""

    _fields_ = [("parts", PartStruct * PARTS), ("inputs", ctypes.c_int32), ("outputs", ctypes.c_int32)]


class NormStruct(Struct):
    """The struct Norm of model.h."""

    _fields_ = [("weight", FloatsStruct), ("bias", FloatsStruct)]


class BlockStruct(Struct):
    """The struct Block of model.h."""

    _fields_ = [
        *((name, NormStruct) for name in BLOCK_NORMS),
        ("cosines", FloatsStruct),
        ("sines", FloatsStruct),
        ("rotary_size", ctypes.c_int32),
        ("window", ctypes.c_int32),
        ("layer", ctypes.c_int32),
        *((name, ProductStruct) for name in BLOCK_PRODUCTS),
    ]


class ModelStruct(Struct):
    """The struct Model of model.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in (*NUMBERS, "sound")),
        *((name, ctypes.c_float) for name in SCALES),
        ("blocks", ctypes.POINTER(BlockStruct)),
        ("block_count", ctypes.c_int64),
        ("final_norm", NormStruct),
        *((name, ProductStruct) for name in ("token_embedding", "head", "project_in", "project_out")),
        ("positions", FloatsStruct),
    ]


class CacheStruct(Struct):
    """The struct Cache of model.h."""

    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("floats", ctypes.c_int64),
        ("batch", ctypes.c_int32),
        ("capacity", ctypes.c_int32),
        ("places", ctypes.c_int32),
    ]


ALL = (FloatsStruct, PartStruct, ProductStruct, NormStruct, BlockStruct, ModelStruct, CacheStruct)
