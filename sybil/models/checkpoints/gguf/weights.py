"""Gives a GGUF file's tensors by transformers' names, with their rows in transformers' order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from gguf.constants import MODEL_ARCH_NAMES, GGMLQuantizationType
from gguf.tensor_mapping import get_tensor_name_map
from torch import Tensor

from sybil.errors import NotAModel, UnsupportedModel, shown
from sybil.models.checkpoints.gguf.architectures import ARCHITECTURES
from sybil.models.checkpoints.gguf.config import PICTURES, UNREAD
from sybil.models.checkpoints.gguf.header import STORED, Contents, Place
from sybil.models.checkpoints.sources import Family
from sybil.models.shape import Shape
from sybil.models.storage import Blocks, dequantised

_AS_THEY_ARE = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


class FileTensors:
    """Tensors of a GGUF file by transformers' names. A tensor in blocks is read as float32.

    rotated: the number of heads of each tensor whose rows are reordered. In the file, the rows of a head's two halves,
    which are rotated against each other, alternate; in transformers one half follows the other."""

    lasting = False
    norms_are_whole = True

    def __init__(self, places: Mapping[str, Place], rotated: Mapping[str, int]) -> None:
        self.places, self.rotated = places, rotated
        self.shapes = {name: place.shape for name, place in places.items()}
        self.dtypes: Mapping[str, torch.dtype | str] = {
            name: _AS_THEY_ARE.get(place.type, torch.float32) for name, place in places.items()
        }
        self.storages = {name: STORED[place.type] for name, place in places.items() if len(place.shape) == 2}
        self.nbytes = sum(place.nbytes for place in places.values())

    def read(self, name: str) -> Tensor:
        """One tensor's numbers. Raises NotAModel where the file has changed, or a head has an odd number of rows."""
        place = self.places[name]
        numbers, kept = place.numbers(), _AS_THEY_ARE.get(place.type)
        if kept:
            return self._arranged(name, numbers.view(kept).view(place.shape))
        blocks = Blocks(STORED[place.type], numbers, place.shape[-1])
        return self._arranged(name, dequantised(blocks).view(place.shape))

    def blocks(self, name: str) -> Blocks | None:
        """A product's weight or the embedding, in the file's own blocks; None for a tensor that isn't a matrix.

        Raises NotAModel where the file has changed, or a head has an odd number of rows."""
        place = self.places[name]
        if len(place.shape) != 2:
            return None
        return Blocks(STORED[place.type], self._arranged(name, place.numbers()), place.shape[1])

    def _arranged(self, name: str, rows: Tensor) -> Tensor:
        if name not in self.rotated:
            return rows
        if len(rows) % (2 * self.rotated[name]):
            raise NotAModel(
                f"{self.places[name].file} has {len(rows)} rows for {name}, and {self.rotated[name]} heads of pairs "
                "don't make so many: download it again"
            )
        return rows.view(self.rotated[name], -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def stored(contents: Contents, known: tuple[Family, Shape], where: str) -> FileTensors:
    """A file's tensors, for the model that its metadata describes.

    Raises UnsupportedModel where a tensor has no name in transformers: leaving it out could change what the model
    computes."""
    name, (family, shape), tensors = contents.metadata["general.architecture"], known, contents.tensors
    layers = min(shape.layers, len(tensors))
    found = {ggml: theirs for theirs, ggml in _names(name, family, layers) if ggml in tensors}
    for ggml in tensors:
        if ggml not in found and ggml not in UNREAD and not ggml.startswith(PICTURES):
            raise UnsupportedModel(
                f"{where} has a tensor {shown(ggml)}, which Sybil doesn't know in the architecture {name!r}: use a "
                "file of another model"
            )
    turned = {".attn_q.": shape.heads, ".attn_k.": shape.kv_heads} if ARCHITECTURES[name].rotated_rows else {}
    heads = {theirs: turned[part] for ggml, theirs in found.items() for part in turned if part in ggml}
    return FileTensors({theirs: tensors[ggml] for ggml, theirs in found.items()}, heads)


def _names(architecture: str, family: Family, layers: int) -> Iterator[tuple[str, str]]:
    """(transformers' name, ggml's name) of each tensor that a model of the family may have."""
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known, prefix = get_tensor_name_map(kind, 1), family.prefixes[0]
    ends = ("weight", "bias")
    for name in (family.embedding, family.positions, *(f"{family.final_norm}.{end}" for end in ends)):
        if name and (ggml := known.get_name(prefix + name, (".weight", ".bias"))):
            yield prefix + name, ggml
    yield family.head[0], "output.weight"
    for each in (name for names in family.names.values() for name in names):
        ggml = known.get_name(prefix + family.layer.format(0) + each)
        if ggml:
            for layer in range(layers):
                for end in ends:
                    name = f"{prefix}{family.layer.format(layer)}{each}.{end}"
                    yield name, f"{ggml.replace('blk.0.', f'blk.{layer}.')}.{end}"
