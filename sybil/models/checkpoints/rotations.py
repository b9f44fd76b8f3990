"""Makes rotations of transformers' configs. Each frequency is the same float32 number as in transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sybil.errors import NotAModel, WeightsMismatch
from sybil.models.checkpoints.fields import Fields, unknown
from sybil.models.shape import Rotary


def rotary(
    config: Fields, head_size: int, theta: str = "rope_theta", part: str = "", default_part: float = 1.0
) -> Rotary | None:
    """The rotations of a config whose layers all have the same ones.

    theta: the name of the config's field with their base, which is read where the rotations' own object has none. part:
    the name of the field that says which part of a head is rotated, if the family has one. default_part: that part
    where the field is left out."""
    return _of(config, config.part("rope_scaling", "rope_parameters"), head_size, theta, part, default_part)


def of_kinds(config: Fields, head_size: int, thetas: Mapping[str, str]) -> dict[str, Rotary | None]:
    """The rotations of a config in which each kind of layer has its own (Gemma 3), by kind. thetas: the name of the
    field with each kind's base. In older files rope_scaling belongs to the layers without a window."""
    ropes = config.part("rope_parameters")
    if ropes.names() - thetas.keys():
        raise unknown("rope_parameters", sorted(ropes.names()))
    kinds = {kind: ropes.part(kind) for kind in thetas}
    kinds["full_attention"] = kinds["full_attention"].also(config.part("rope_scaling"))
    return {kind: _of(config, rope, head_size, thetas[kind]) for kind, rope in kinds.items()}


def _of(
    config: Fields, rope: Fields, head_size: int, theta: str, part: str = "", default_part: float = 1.0
) -> Rotary | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3") and not _has_one_factor_each(rope, kind):
        raise unknown("rope_type", kind)
    if rope.parts():
        raise unknown("rope_parameters", rope.parts())
    base = rope.get("rope_theta") or config.get(theta) or 10000.0
    rotated = rope.get("partial_rotary_factor")
    if rotated is None:
        rotated = config.get(part or "partial_rotary_factor")
    rotated = default_part if rotated is None else rotated
    if not part and rotated != 1:
        raise unknown("partial_rotary_factor", rotated)
    dimensions = int(head_size * rotated)
    # float32 operations in transformers' order, so that each frequency is the same number
    frequencies = 1.0 / (base ** (torch.arange(0, dimensions, 2, dtype=torch.float32, device="cpu") / dimensions))
    if kind == "linear":
        frequencies = frequencies / rope["factor"]
    if kind == "llama3":
        original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
        frequencies = _llama3(frequencies, rope, original or config["max_position_embeddings"])
    if kind == "longrope":
        frequencies = _divided(base, dimensions, rope["long_factor"])
    size = 2 * len(frequencies)
    if size > head_size:
        raise WeightsMismatch(f"config.json has heads of {head_size} dimensions and rotates {size}: make them even")
    if not (frequencies * config["max_position_embeddings"]).isfinite().all():
        raise NotAModel(f"config.json has rope_theta {base:g}, and its rotations have no finite angles: mend the file")
    return Rotary(size, tuple(frequencies.tolist())) if size else None


def _has_one_factor_each(rope: Fields, kind: str) -> bool:
    """Whether each frequency is divided by a factor of its own that doesn't depend on the text's length, as in GGUF."""
    return kind == "longrope" and rope.get("attention_factor") == 1 and rope["short_factor"] == rope["long_factor"]


def _divided(base: float, dimensions: int, factors: tuple[float, ...]) -> Tensor:
    if len(factors) != dimensions // 2:
        raise WeightsMismatch(f"config.json has {len(factors)} factors for {dimensions // 2} frequencies: name each")
    powers = base ** (torch.arange(0, dimensions, 2, dtype=torch.float32, device="cpu") / dimensions)
    return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * powers)


def _llama3(frequencies: Tensor, rope: Fields, original: int) -> Tensor:
    """Llama 3.1's frequencies: long waves are stretched by the factor, short ones are kept, and those between are
    interpolated."""
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    waves = 2 * math.pi / frequencies
    stretched = torch.where(waves > original / low, frequencies / factor, frequencies)
    smooth = (original / waves - low) / (high - low)
    between = (waves >= original / high) & (waves <= original / low)
    return torch.where(between, (1 - smooth) * stretched / factor + smooth * stretched, stretched)
