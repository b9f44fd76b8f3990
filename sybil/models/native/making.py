"""Rounds weights in C, and gives a file's weights in float32 by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sybil.models.native import library
from sybil.models.native.records import unpacked
from sybil.models.native.threads import by_rows
from sybil.models.rounding import counting_of, row_bytes
from sybil.models.storage import Bits, StoredWeights


def rounded(weight: Tensor, bits: Bits, importance: Tensor | None = None) -> Tensor:
    """The same as rounding.rounded(), computed in C, with the same bytes."""
    built = library.load()
    assert built is not None  # a caller that packs weights has the library
    outputs, inputs = weight.shape
    weight = weight.detach().to("cpu", torch.float32).contiguous()
    numbers = torch.empty(outputs, row_bytes(bits, inputs), dtype=torch.uint8, device="cpu")
    counting = None if importance is None else counting_of(importance, inputs).contiguous()

    def work(first: int, last: int) -> None:
        told = None if counting is None else counting.data_ptr()
        rows = weight[first:last].data_ptr(), last - first, inputs
        built.sybil_round(*rows, bits, told, numbers[first:last].data_ptr())

    by_rows(work, outputs, inputs)
    return numbers


class InFloat32(Mapping[str, Tensor]):
    """A file's weights by name. Weights in blocks are converted to float32 in C."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return in_float32(self._weights, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def in_float32(weights: Mapping[str, Tensor] | StoredWeights, name: str) -> Tensor:
    """A weight by its name; one that is stored in blocks is converted to float32. Raises KeyError."""
    blocks = getattr(weights, "blocks", lambda name: None)(name)
    if blocks is None:
        return weights[name]
    parts = [unpacked(each) for each in blocks]
    return torch.cat(parts) if len(parts) > 1 else parts[0]
