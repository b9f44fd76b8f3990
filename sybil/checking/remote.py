"""A model on the hub, known by its config and by the headers of its weights, which are fetched by range requests.

No weight is fetched. The header of a GGUF file is written to a sparse file of the whole file's length. So the reader
checks the header against the same bounds as that of a local file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sybil.errors import NotAModel, SybilError, one_line, shown, told
from sybil.models import folders
from sybil.models.checkpoints import hub, tokenizers
from sybil.models.checkpoints.families import understood
from sybil.models.checkpoints.files import is_there, read_config
from sybil.models.checkpoints.gguf.names import PART
from sybil.models.checkpoints.safetensors import DTYPES
from sybil.models.folders import Checkpoint
from sybil.models.storage import Blocks, BlockStorage

if TYPE_CHECKING:
    from sybil.models.checkpoints.gguf.header import Contents

FIRST_BYTES, MOST_BYTES = 1 << 20, 64 << 20
"""Bytes of a GGUF file that are fetched for its header: FIRST_BYTES at first, and four times as many each time that the
header is longer, up to MOST_BYTES."""
MOST_PARTS, MOST_SIDES, MOST_NUMBER, MOST_FILE = 256, 8, 1 << 48, 1 << 48
SECONDS = 30.0
"""The longest wait for the next bytes of a header from the hub."""
CONFIG = ["config.json"]
TOKENIZER = [*CONFIG, "tokenizer*", "special_tokens_map.json", "added_tokens.json"]
TOKENIZER += ["vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tekken.json"]
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")


@dataclass(frozen=True, slots=True)
class Headers:
    """Tensors whose names, shapes and dtypes are known, but which can't be read. See weights.Stored for the fields."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype | str]
    nbytes: int
    storages: Mapping[str, BlockStorage] = field(default_factory=dict)
    norms_are_whole: bool = False
    lasting: bool = False

    def read(self, name: str) -> Tensor:
        raise NotAModel(f"{shown(name)} is on the hub, and nothing of it but its header is here: load the model")

    def blocks(self, name: str) -> Blocks | None:
        raise NotAModel(f"{shown(name)} is on the hub, and nothing of it but its header is here: load the model")


def read(name: str, *, tokenizer: bool, revision: str | None = None) -> Checkpoint:
    """The checkpoint of a hub id, or of a GGUF file on the hub given as ID/FILE, without its weights. tokenizer:
    whether a repository's tokenizer is fetched too. The header of a GGUF file always holds its tokenizer.

    Raises NotAModel, GatedModel, HubUnreachable, or UnsupportedModel."""
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    with hub.asked(f"{owner}/{repository}" if file else name, revision):
        if file:
            return _of_file(f"{owner}/{repository}", file, revision)
        return _of_repository(name, tokenizer, revision)


def _of_repository(name: str, with_tokenizer: bool, revision: str | None) -> Checkpoint:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    folder = hub.fetch(name, TOKENIZER if with_tokenizer else CONFIG, revision, progress=False)
    if not is_there(folder / "config.json"):
        found = [file for file in HfApi().list_repo_files(name, revision=revision) if file.endswith(".gguf")]
        if len(found) == 1:
            return _of_file(name, found[0], revision)
        holds = f"{len(found)} GGUF files ({one_line(', '.join(found[:4]), 200)})" if found else "no config.json"
        raise NotAModel(f"{name} holds {holds} on the hub: give a language model's id, or {name}/FILE.gguf")
    config = read_config(folder)
    try:
        theirs = HfApi().get_safetensors_metadata(name, revision=revision)
    except NotASafetensorsRepoError:
        raise NotAModel(f"{name} holds no *.safetensors on the hub: Sybil reads weights from nothing else") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # from values that should be numbers
        if isinstance(error, OSError):
            raise
        raise NotAModel(f"{name} has weights with a broken header on the hub ({told(error)}): report it") from None
    return Checkpoint(
        name=name,
        config=config,
        generation=None,
        tokenizer=tokenizers.read(folder, config) if with_tokenizer else None,
        known=understood(config),
        stored=_headers(name, theirs),
        folder=folder,
    )


def _headers(name: str, theirs: Any) -> Headers:
    """The headers of safetensors files, from huggingface_hub's metadata. Every number is checked: raises NotAModel."""
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype | str] = {}
    nbytes = 0
    for file, metadata in theirs.files_metadata.items():
        for tensor, info in metadata.tensors.items():
            if theirs.weight_map.get(tensor, file) != file:
                continue
            numbers, word = [*info.shape, *info.data_offsets], info.dtype
            fits = len(info.shape) <= MOST_SIDES and len(info.data_offsets) == 2 and isinstance(word, str)
            if not fits or not all(type(each) is int and 0 <= each <= MOST_NUMBER for each in numbers):
                raise NotAModel(f"{name} has {shown(tensor)} of {shown(info.shape)} in {shown(word)}: no tensor is so")
            shapes[tensor], dtypes[tensor] = tuple(info.shape), DTYPES.get(word, word)
            nbytes += max(numbers[-1] - numbers[-2], 0)
    return Headers(shapes, dtypes, nbytes)


def _of_file(repository: str, file: str, revision: str | None) -> Checkpoint:
    """The checkpoint of a GGUF file on the hub. Where the file is one part of several, all parts' headers are read."""
    with tempfile.TemporaryDirectory(prefix="sybil-") as scratch:
        path = Path(scratch) / PurePosixPath(file).name
        try:
            contents = _header(repository, file, revision, path)
            part, count = PART.fullmatch(path.name), contents.metadata.get("split.count", 1)
            if part and type(count) is int and 1 < count <= MOST_PARTS:
                for number in range(1, count + 1):
                    other = f"{part[1]}-{number:05d}-of-{count:05d}.gguf"
                    if other != path.name:
                        beside = str(PurePosixPath(file).with_name(other))
                        _header(repository, beside, revision, path.with_name(other))
            found = folders.read(path)
        except SybilError as error:
            raise type(error)(str(error).replace(f"{scratch}/", f"{repository}/")) from None
    stored = found.stored
    assert stored is not None
    headers = Headers(dict(stored.shapes), dict(stored.dtypes), stored.nbytes, dict(stored.storages), True)
    return replace(found, name=f"{repository}/{file}", stored=headers, file=None)


def _header(repository: str, file: str, revision: str | None, path: Path) -> Contents:
    """Fetches the header of a GGUF file, and the few tensors that the config is made from, into a sparse file of the
    same length. Raises NotAModel or UnsupportedModel."""
    from sybil.models.checkpoints.gguf import header  # imports the package gguf, which only GGUF files need
    from sybil.models.checkpoints.gguf.config import UNREAD

    count = FIRST_BYTES
    while True:
        known, size = _range(repository, file, revision, 0, count)
        path.write_bytes(known)
        with path.open("r+b") as whole:
            whole.truncate(size)
        try:
            contents = header.read(path, len(known))
            break
        except header.CutShort:
            if count >= MOST_BYTES or len(known) == size:
                raise NotAModel(
                    f"{repository}/{file} has a header of more than {len(known):,} bytes: download the file"
                ) from None
            count = min(4 * count, MOST_BYTES)
    for name in UNREAD & contents.tensors.keys():
        place = contents.tensors[name]
        numbers, _ = _range(repository, file, revision, place.start, min(place.nbytes, FIRST_BYTES))
        with path.open("r+b") as whole:
            whole.seek(place.start)
            whole.write(numbers)
    return contents


def _range(repository: str, file: str, revision: str | None, start: int, count: int) -> tuple[bytes, int]:
    """At most `count` bytes of a file on the hub, from byte `start` on, and the file's length. Raises NotAModel."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    url = hf_hub_url(repository, file, revision=revision)
    headers = {**build_hf_headers(), "range": f"bytes={start}-{start + count - 1}", "accept-encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=SECONDS) as response:
        hf_raise_for_status(response)
        said = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if response.status_code != 206 or said is None or int(said[1]) != start or int(said[3]) > MOST_FILE:
            raise NotAModel(f"{repository}/{file} can't be read in part there: download the file, and give its path")
        found = bytearray()
        for piece in response.iter_bytes():
            found += piece
            if len(found) >= count:
                break
    return bytes(found[:count]), int(said[3])
