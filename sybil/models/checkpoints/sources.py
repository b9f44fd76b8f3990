"""Describes which stored tensors each of Sybil's weights is made of, for each family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sybil.models.checkpoints.fields import Fields
from sybil.models.shape import Shape


@dataclass(frozen=True, slots=True)
class Source:
    """The stored tensors that one of Sybil's weights is made of, stacked by rows.

    size: of Sybil's weight. parts: each stored name and its shape. transposed: whether they are stored as (inputs,
    outputs). heads: the number of heads, where the rows are stored head by head, with each head's query, key and value
    together; 0 where all queries come first. offset: what is added to the stored numbers. The sum is computed and kept
    in float32 at least. None: nothing is added, and the weight is kept in the same dtype as all others."""

    size: tuple[int, ...]
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False
    heads: int = 0
    offset: float | None = None

    @property
    def is_stored_so(self) -> bool:
        """Whether Sybil's weight is one stored tensor, unchanged."""
        return len(self.parts) == 1 and not self.transposed and not self.heads and not self.offset

    def kept_in(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that Sybil's weight is kept in, where a model's weights are kept in dtype."""
        return dtype if self.offset is None else torch.promote_types(dtype, torch.float32)

    def arranged(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        """A stored tensor with its rows and columns in Sybil's order. An offset is added in dtype."""
        if self.offset:
            return part.to(dtype) + self.offset
        if self.transposed and part.dim() == 2:
            return part.T
        return part.view(self.heads, 3, -1, *part.shape[1:]).transpose(0, 1).flatten(0, 2) if self.heads else part


@dataclass(frozen=True, slots=True)
class Family:
    """A family: how its config is read, and how its tensors are named.

    names: Sybil's name -> the family's names, whose tensors are stacked by rows in Sybil's weight. prefixes: what a
    checkpoint may put before the family's names. biased: gives Sybil's products that have a bias. transposed: products
    are stored as (inputs, outputs). interleaved: rows are stored head by head, see Source.heads. norm_offset: of each
    norm's weight, see Source.offset; it isn't added where Stored.norms_are_whole. part: the field of config.json that
    holds the language model's config, "" where config.json itself is that config."""

    defaults: Mapping[str, Any]
    shape: Callable[[Fields], Shape]
    biased: Callable[[Fields], Collection[str]]
    prefixes: tuple[str, ...]
    embedding: str
    layer: str
    names: Mapping[str, tuple[str, ...]]
    final_norm: str
    positions: str = ""
    head: tuple[str, ...] = ("lm_head.weight",)
    """Names that the output head may have, without a prefix."""
    transposed: bool = False
    interleaved: bool = False
    norm_offset: float | None = None
    part: str = ""

    def fields(self, config: Mapping[str, Any]) -> Fields:
        """The fields of the language model's config, with the family's defaults for those that are left out."""
        if not self.part:
            return Fields(config, self.defaults)
        whole = Fields(config)
        inner, name = whole.part(self.part), "tie_word_embeddings"
        tied = {name: whole[name]} if name in whole.names() else {}  # transformers reads this field outside the part
        return Fields(self.defaults).also(inner).also(Fields(tied, where=f"{self.part} of config.json"))

    def prefix(self, stored: Collection[str]) -> str:
        """The one of the prefixes that the stored names have."""
        probe = f"{self.layer.format(0)}{self.names['attention_out'][0]}.weight"
        return next((prefix for prefix in self.prefixes if prefix + probe in stored), self.prefixes[0])

    def sources(
        self,
        config: Mapping[str, Any],
        shape: Shape,
        prefix: str,
        embedding: str,
        head: str,
        norms_are_whole: bool = False,
    ) -> Iterator[tuple[str, Source]]:
        """The names of Sybil's weights, each with its source. embedding, head: the stored names of these two.

        Names are made one at a time, because a config may ask for more layers than memory has room for their names."""
        width, inner = shape.width, shape.inner
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        products = {  # the rows and columns of Sybil's weights
            "query_key_value": ((queries, keys, keys), width),
            "attention_out": ((width,), queries),
            "mlp_in": ((inner, inner) if shape.gated else (inner,), width),
            "mlp_out": ((width,), inner),
        }
        norms = shape.norms()
        biased = self.biased(self.fields(config))
        kinds = ("weight", "bias") if shape.norm == "layer" else ("weight",)
        offset = 0.0 if norms_are_whole and self.norm_offset else self.norm_offset

        yield _plain("token_embedding", embedding, shape.vocab_size, shape.embedding_width)
        if shape.position_offset is not None:
            yield _plain("position_embedding", prefix + self.positions, shape.context + shape.position_offset, width)
        if shape.embedding_width != width:
            yield _plain("project_in.weight", f"{prefix}project_in.weight", width, shape.embedding_width)
            yield _plain("project_out.weight", f"{prefix}project_out.weight", shape.embedding_width, width)
        for layer in range(shape.layers):
            theirs = {
                ours: tuple(prefix + self.layer.format(layer) + name for name in names)
                for ours, names in self.names.items()
            }
            for name, size in norms.items():
                for kind in kinds:
                    yield _plain(f"{layer}.{name}.{kind}", f"{theirs[name][0]}.{kind}", size, offset=offset)
            for name, (rows, columns) in products.items():
                heads = shape.heads if self.interleaved and len(rows) == 3 else 0
                yield from self._product(f"{layer}.{name}", theirs[name], rows, columns, heads, name in biased)
        if shape.final_norm:
            for kind in kinds:
                yield _plain(f"final_norm.{kind}", f"{prefix}{self.final_norm}.{kind}", width, offset=offset)
        if not shape.tied_head:
            yield _plain("head.weight", head, shape.vocab_size, shape.embedding_width)

    def _product(
        self, ours: str, theirs: tuple[str, ...], rows: tuple[int, ...], columns: int, heads: int, biased: bool
    ) -> Iterator[tuple[str, Source]]:
        """A product's weight, and its bias where it has one."""
        total = sum(rows)
        pieces = list(zip(theirs, rows if len(theirs) > 1 else (total,), strict=True))
        weights = [(f"{name}.weight", (columns, n) if self.transposed else (n, columns)) for name, n in pieces]
        yield f"{ours}.weight", Source((total, columns), tuple(weights), self.transposed, heads)
        if biased:
            biases = [(f"{name}.bias", (n,)) for name, n in pieces]
            yield f"{ours}.bias", Source((total,), tuple(biases), heads=heads)


def _plain(ours: str, theirs: str, *size: int, offset: float | None = None) -> tuple[str, Source]:
    """A weight that is one stored tensor, unchanged except for an offset."""
    return ours, Source(size, ((theirs, size),), offset=offset)
