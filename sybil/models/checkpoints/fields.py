"""The fields that are read from a model's files, each with its type and range.

A field is checked when it is read, so nothing of a file is used unchecked. A field that isn't read may hold anything.
"""

from __future__ import annotations

import math
import numbers
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sybil.errors import NotAModel, UnsupportedModel, one_line, shown

LONGEST_TEXT = 100


@dataclass(frozen=True, slots=True)
class Kind:
    """What a field may hold. allowed: the allowed values, in words. taken: makes the plain value of a field's, or None
    for a value that isn't allowed. null: whether null is allowed too, which is read as None."""

    allowed: str
    taken: Callable[[Any], Any]
    null: bool = False

    def read(self, where: str, name: str, value: object) -> Any:
        """The value as plain Python data. Raises NotAModel for one that isn't allowed."""
        if value is None and self.null:
            return None
        read = self.taken(value)
        if read is None:
            raise NotAModel(
                f"{where} has {name} {shown(value)}, and allowed is {self.allowed}{' or null' if self.null else ''}: "
                "mend the file or download it again"
            )
        return read


def or_null(kind: Kind) -> Kind:
    """The same kind, with null allowed."""
    return replace(kind, null=True)


def whole(least: int, most: int) -> Kind:
    """A whole number from least to most, both included."""

    def taken(value: Any) -> int | None:
        fits = isinstance(value, numbers.Integral) and not isinstance(value, bool) and least <= int(value) <= most
        return int(value) if fits else None

    return Kind(f"a whole number from {least} to {most}", taken)


def number(least: float, most: float = sys.float_info.max, above: bool = False) -> Kind:
    """A number from least (or with `above` greater than least) to most. NaN isn't allowed."""

    def taken(value: Any) -> float | None:
        is_one = isinstance(value, numbers.Real) and not isinstance(value, bool)
        read = float(value) if is_one and abs(value) <= most else math.nan  # an integer may be too large for a float
        return read if least <= read <= most and not (above and read == least) else None

    to = "" if most == sys.float_info.max else f" to {most:g}"
    return Kind(f"a finite number {'above' if above else 'from'} {least:g}{to}", taken)


def _only(kind: type, allowed: str) -> Kind:
    return Kind(allowed, lambda value: value if isinstance(value, kind) else None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) <= LONGEST_TEXT else None


def _words(value: Any) -> tuple[str, ...] | None:
    fits = isinstance(value, list | tuple) and all(_text(each) for each in value)
    return tuple(value) if fits else None


def _marks(value: Any) -> tuple[bool, ...] | None:
    fits = isinstance(value, list | tuple) and all(isinstance(each, int) and each in (0, 1) for each in value)
    return tuple(map(bool, value)) if fits else None


def _factors(value: Any) -> tuple[float, ...] | None:
    fits = isinstance(value, list | tuple) and len(value) <= 2**16
    read = tuple(map(POSITIVE.taken, value)) if fits else (None,)
    return None if None in read else read


def _weight_map(value: Any) -> dict[str, str] | None:
    fits = isinstance(value, Mapping) and all(isinstance(file, str) for file in value.values())
    return dict(value) if fits and value else None


def _token_ids(value: Any) -> frozenset[int] | None:
    ids = value.tolist() if hasattr(value, "tolist") else value  # a model object may have tensors here
    ids = ids if isinstance(ids, list | tuple | set | frozenset) else [ids]
    read = [_TOKEN_ID.taken(each) for each in ids]
    return None if None in read else frozenset(read)


_TOKEN_ID = whole(0, 2**31 - 1)
TOKEN_IDS = Kind(f"{_TOKEN_ID.allowed}, a list of such", _token_ids)
"""Token ids of a model or of its tokenizer. An id beyond the vocabulary is allowed, because it is never drawn."""
TRUTH, PART = _only(bool, "true or false"), _only(Mapping, "an object")
TEXT, WORDS = Kind("a word", _text), Kind("a list of words", _words)
MARKS = Kind("a list of 0 and 1", _marks)
WIDTH, INNER, HEADS, LAYERS = whole(1, 2**20), whole(1, 2**24), whole(1, 2**16), whole(1, 2**16)
CONTEXT, LENGTH = whole(1, 2**24), whole(1, 2**31 - 1)
EPSILON, POSITIVE, SHARE = number(0, 1), number(0, above=True), number(0, 1)
SCALE = number(1e-30, 1e30)
"""A factor, in the range of float32."""
FACTORS = Kind("a list of numbers above 0", _factors)

FIELDS: Mapping[str, Kind] = {
    "model_type": or_null(TEXT),
    "vocab_size": LENGTH,
    "max_position_embeddings": CONTEXT,
    "n_positions": CONTEXT,
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "num_attention_heads": HEADS,
    "n_head": HEADS,
    "num_key_value_heads": or_null(HEADS),
    "head_dim": or_null(whole(1, 2**16)),
    "hidden_size": WIDTH,
    "n_embd": WIDTH,
    "word_embed_proj_dim": or_null(WIDTH),
    "intermediate_size": INNER,
    "ffn_dim": INNER,
    "n_inner": or_null(INNER),
    "hidden_act": TEXT,
    "hidden_activation": TEXT,
    "activation_function": TEXT,
    "layer_norm_epsilon": EPSILON,
    "layer_norm_eps": EPSILON,
    "rms_norm_eps": EPSILON,
    "tie_word_embeddings": TRUTH,
    "scale_attn_weights": TRUTH,
    "scale_attn_by_inverse_layer_idx": TRUTH,
    "add_cross_attention": TRUTH,
    "layer_norm_elementwise_affine": TRUTH,
    "do_layer_norm_before": TRUTH,
    "_remove_final_layer_norm": TRUTH,
    "enable_bias": TRUTH,
    "use_parallel_residual": TRUTH,
    "attention_bias": TRUTH,
    "mlp_bias": TRUTH,
    "is_causal": or_null(TRUTH),
    "use_sliding_window": TRUTH,
    "sliding_window": or_null(LENGTH),
    "max_window_layers": whole(0, 2**31 - 1),
    "layer_types": or_null(WORDS),
    "sliding_window_pattern": LENGTH,
    "no_rope_layers": or_null(MARKS),
    "no_rope_layer_interval": LENGTH,
    "use_bidirectional_attention": or_null(TRUTH),
    "query_pre_attn_scalar": SCALE,
    "attn_logit_softcapping": or_null(SCALE),
    "final_logit_softcapping": or_null(SCALE),
    "embedding_multiplier": SCALE,
    "attention_multiplier": SCALE,
    "residual_multiplier": SCALE,
    "logits_scaling": SCALE,
    "per_layer_config": or_null(PART),
    "text_config": or_null(PART),
    "quantization_config": or_null(PART),
    "quant_method": TEXT,
    "rope_scaling": or_null(PART),
    "rope_parameters": or_null(PART),
    "rope_type": or_null(TEXT),
    "type": or_null(TEXT),
    "full_attention": or_null(PART),
    "sliding_attention": or_null(PART),
    "rope_theta": or_null(POSITIVE),
    "rope_local_base_freq": or_null(POSITIVE),
    "rotary_emb_base": or_null(POSITIVE),
    "partial_rotary_factor": or_null(SHARE),
    "rotary_pct": or_null(SHARE),
    "factor": POSITIVE,
    "short_factor": FACTORS,
    "long_factor": FACTORS,
    "attention_factor": or_null(POSITIVE),
    "low_freq_factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "original_max_position_embeddings": or_null(CONTEXT),
    "eos_token_id": or_null(TOKEN_IDS),
    "weight_map": Kind("an object of tensors and their files", _weight_map),
    "peft_type": TEXT,
    "base_model_name_or_path": or_null(_only(str, "a text")),
    "r": whole(1, 2**16),
    "lora_alpha": POSITIVE,
    "fan_in_fan_out": TRUTH,
    "use_rslora": TRUTH,
    "bias": TEXT,
    "modules_to_save": or_null(WORDS),
    "rank_pattern": or_null(PART),
    "alpha_pattern": or_null(PART),
}
"""The kind of each field, by its name in config.json, generation_config.json, adapter_config.json, the weights' index,
or an object inside one of these. A name means the same in all of them."""


def unknown(name: str, value: object) -> UnsupportedModel:
    """The error for an option that only transformers' own forward knows."""
    return UnsupportedModel(
        f"config.json has {name} {shown(value)}, which Sybil's own forward does not know: "
        "use a Hugging Face model folder, which transformers' forward runs"
    )


class Fields:
    """The fields of an object in a file, each checked when it is read. defaults: for fields that are left out."""

    def __init__(
        self, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, where: str = "config.json"
    ):
        self._values, self._where = {**(defaults or {}), **values}, where

    def __getitem__(self, name: str) -> Any:
        """The field's value. Raises NotAModel where it is left out or isn't allowed."""
        if name not in self._values:
            raise NotAModel(f"{self._where} has no {name}, and needs {FIELDS[name].allowed}: download it again")
        return FIELDS[name].read(self._where, name, self._values[name])

    def get(self, name: str) -> Any:
        """The field's value, None where it is left out. Raises NotAModel where it isn't allowed."""
        return self[name] if name in self._values else None

    def part(self, *names: str) -> Fields:
        """The first of the named objects that holds anything; an empty one if none does."""
        name = next((name for name in names if self.get(name)), None)
        return Fields(self[name] if name else {}, where=f"{name} of {self._where}")

    def names(self) -> set[str]:
        """The names of all fields."""
        return {*self._values}

    def also(self, other: Fields) -> Fields:
        """The fields of both objects. Where both have a field, the other's counts."""
        return Fields(other._values, self._values, where=other._where if other._values else self._where)

    def parts(self) -> list[str]:
        """The names of objects in it that are no fields, or fields that hold one."""
        held = [name for name, value in self._values.items() if isinstance(value, Mapping)]
        return [name for name in held if name not in FIELDS or FIELDS[name].allowed == PART.allowed]


_LAYER_COUNTS = re.compile(r"(num_|n_)?(hidden_|decoder_|encoder_|transformer_)?(layers?|blocks|depth)")
_MODULE_COUNTS = re.compile(r"heads|experts")


def check_foreign(config: Mapping[str, Any], tensors: int) -> None:
    """Checks that a config asks transformers for no larger model than so many stored tensors can be for.

    Raises NotAModel. transformers checks the types itself, but it builds every layer before it looks for weights."""
    fields: list[tuple[str, Any, int]] = [(name, value, 2**63 - 1) for name, value in config.items()]
    while fields:
        name, value, most = fields.pop()
        if isinstance(value, Mapping):
            fields += [(str(each), inner, most) for each, inner in value.items()]
        elif isinstance(value, list | tuple):  # a number in a list may say how often something is repeated
            fields += [(name, inner, 2**24) for inner in value]
        elif isinstance(value, int):
            if _LAYER_COUNTS.fullmatch(name):
                most = tensors
            elif _MODULE_COUNTS.search(name):
                most = 2**16
            if abs(value) > most:
                raise NotAModel(
                    f"config.json has {one_line(name, 80)} {shown(value)} and the weights are {tensors} tensors, and "
                    f"allowed is at most {most}: mend config.json or fetch the weights that belong to it"
                )
