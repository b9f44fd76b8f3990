"""Products in few bits on GPUs, by an installed library: torchao or bitsandbytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sybil.errors import PackageMissing
from sybil.models.storage import Bits

INT4_GROUP = 32


@dataclass(frozen=True, slots=True)
class Packaged:
    """A library's way to keep a weight. bits: 4 or 8, of a kept weight. make: makes the product from weight and
    bias."""

    bits: int
    make: Callable[[Tensor, Tensor | None], nn.Module]

    def nbytes(self, weight: Tensor) -> int:
        """The bytes that a weight takes, without its scales."""
        return weight.numel() * self.bits // 8


def packaged(bits: Bits, dtype: torch.dtype, draft: str) -> Packaged:
    """The way to keep a draft's weights in 4 bits, or in 8 bits for any larger number, beside a target of that dtype.
    draft: the draft's name, for the message. Raises PackageMissing where no library that can do this is installed."""
    ways: list[tuple[str, int, Callable[[Tensor, Tensor | None], nn.Module]]]
    if bits == 4:
        ways = [("bitsandbytes", 4, _bitsandbytes_4)]
        ways += [("torchao", 4, _torchao_4)] * (dtype == torch.bfloat16)  # its product takes no other dtype
    else:
        ways = [("torchao", 8, _torchao_8), ("bitsandbytes", 8, _bitsandbytes_8)]
    for library, kept, make in ways:
        if importlib.util.find_spec(library) is not None:
            return Packaged(kept, make)
    names = " or ".join(dict.fromkeys(library for library, *_ in ways))
    raise PackageMissing(
        f"draft is {draft}, and a copy in {4 if bits == 4 else 8} bits on a GPU is made by {names}, which isn't "
        f"installed: pip install {ways[0][0]}, or give a draft model, skip or lookup"
    )


def _plain(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _torchao(weight: Tensor, bias: Tensor | None, config: Any) -> nn.Module:
    from torchao.quantization import quantize_

    linear = _plain(weight, bias)
    quantize_(linear, config)
    return linear


def _torchao_8(weight: Tensor, bias: Tensor | None) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig

    return _torchao(weight, bias, Int8WeightOnlyConfig(version=2))


def _torchao_4(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """torchao's product in 4 bits; in 8 bits where a row doesn't divide into whole groups."""
    from torchao.quantization import Int4WeightOnlyConfig

    if weight.shape[1] % INT4_GROUP:
        return _torchao_8(weight, bias)
    return _torchao(weight, bias, Int4WeightOnlyConfig(group_size=INT4_GROUP, int4_packing_format="tile_packed_to_4d"))


def _bitsandbytes(linear: Any, weight: Any, bias: Tensor | None, device: torch.device) -> nn.Module:
    linear.weight = weight
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    made: nn.Module = linear.to(device)  # moving it rounds the weight
    return made


def _bitsandbytes_4(weight: Tensor, bias: Tensor | None) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    keywords = {"quant_type": "nf4", "compress_statistics": False}
    linear = Linear4bit(weight.shape[1], weight.shape[0], bias is not None, compute_dtype=weight.dtype, **keywords)
    kept = Params4bit(weight.cpu(), requires_grad=False, **keywords)
    return _bitsandbytes(linear, kept, bias, weight.device)


def _bitsandbytes_8(weight: Tensor, bias: Tensor | None) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    linear = Linear8bitLt(weight.shape[1], weight.shape[0], bias is not None, has_fp16_weights=False)
    kept = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    return _bitsandbytes(linear, kept, bias, weight.device)
