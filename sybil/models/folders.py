"""Reads a Checkpoint from a folder, a GGUF file or a hub id. objects.py makes one from a model object."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from sybil.arguments import described
from sybil.errors import InvalidSetting, NotAModel, SybilError, one_line, shown, told
from sybil.models.checkpoints import hub, ollama, templates, tokenizers
from sybil.models.checkpoints.families import understand, understood
from sybil.models.checkpoints.fields import Fields
from sybil.models.checkpoints.files import is_there, read_config, read_json
from sybil.models.checkpoints.gguf import names
from sybil.models.checkpoints.safetensors import Folder
from sybil.models.checkpoints.sources import Family
from sybil.models.checkpoints.weights import Stored
from sybil.models.shape import Shape

if TYPE_CHECKING:
    from torch.nn import Module

EMBEDDED, PACKAGED = "embedded:", "packaged:"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that is known of a model before it is built.

    name: as the user gave it. generation: the fields of generation_config.json, None where there is none. known: the
    family and shape, None where Sybil's own forward doesn't know the model. stored: the tensors by name, None for a
    model object that runs as it is. folder, file, model: the folder, the GGUF file or the model object that the
    checkpoint comes from; the other two are None. special_tokens: the texts of bos_token, eos_token and so on, which a
    chat template may name; None where only the config's ids tell them. unknown: where known is None, why Sybil's own
    forward doesn't run the model. adapter: the name of the adapter that is merged into `stored`, and not into the files
    of the folder; None where there is none."""

    name: str
    config: Mapping[str, Any]
    generation: Mapping[str, Any] | None
    tokenizer: Tokenizer | None
    known: tuple[Family, Shape] | None
    stored: Stored | None
    folder: Path | None = None
    file: Path | None = None
    model: Module | None = None
    chat_template: str | None = None
    special_tokens: Mapping[str, str] | None = None
    unknown: str = "Sybil has no forward for its config"
    adapter: str | None = None


def read(source: str | Path, revision: str | None = None, progress: bool | None = None) -> Checkpoint:
    """The checkpoint of a folder, a GGUF file, an embedded pair's model or a hub id.

    revision: of a hub id. progress: see sybil.progress. Raises the errors of sybil.errors."""
    folder = locate(source, revision, progress)
    if not folder.is_dir():
        return _of_file(str(source), folder)
    config, generation = read_config(folder), folder / "generation_config.json"
    known, stored = _understood(str(source), config), Folder(folder)
    defaults = read_json(generation) if is_there(generation) else None
    _check_end_tokens(config, defaults or {})
    return Checkpoint(
        name=str(source),
        config=config,
        generation=defaults,
        tokenizer=tokenizers.read(folder, config),
        known=known,
        stored=stored,
        folder=folder,
        chat_template=templates.read(folder),
        special_tokens=templates.special_tokens(folder, config),
    )


def _of_file(name: str, file: Path) -> Checkpoint:
    """The checkpoint of a GGUF file."""
    from sybil.models.checkpoints.gguf import generation, parts, vocabulary, weights
    from sybil.models.checkpoints.gguf.config import config as config_of

    contents, where = parts.read(file), str(file)
    config = config_of(contents, where)
    known = _known(where, config)
    tokens = generation.tokens(contents.metadata, config["vocab_size"], where)
    ids = generation.special_ids(contents.metadata, len(tokens), where)
    return Checkpoint(
        name=name,
        config=config | {f"{each}_token_id": ids.get(each) for each in ("bos", "eos", "pad")},
        generation=generation.generation(contents.metadata, tokens, ids, where),
        tokenizer=vocabulary.read(contents.metadata, where),
        known=known,
        stored=weights.stored(contents, known, where),
        file=file,
        chat_template=generation.chat_template(contents.metadata, where),
        special_tokens={f"{each}_token": tokens[ids[each]] for each in generation.NAMED if each in ids},
    )


def _known(where: str, config: Mapping[str, Any]) -> tuple[Family, Shape]:
    """The family and shape of a GGUF file. Raises an error of sybil.errors where Sybil's own forward doesn't know the
    model, because no other forward runs GGUF files."""
    try:
        family, shape = understand(config)
    except SybilError as error:
        raise type(error)(f"{where}: {str(error).replace('config.json', 'its metadata')}") from None
    return replace(family, transposed=False, interleaved=False), shape  # ggml arranges products' weights as torch does


def _check_end_tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> None:
    """Raises NotAModel where eos_token_id, in either file, isn't a token id or a list of them."""
    for source in (Fields(generation, where="generation_config.json"), Fields(config)):
        source.get("eos_token_id")


def _understood(name: str, config: Mapping[str, Any]) -> tuple[Family, Shape] | None:
    try:
        return understood(config)
    except SybilError as error:
        raise type(error)(f"{name}: {error}") from None


def plain(tokenizer: Any) -> Tokenizer | None:
    """A copy of a tokenizer that neither truncates nor pads, whatever its file or its owner has set; None for None.

    Raises InvalidSetting unless it is one of transformers' fast tokenizers or a tokenizers.Tokenizer."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise InvalidSetting(
            f"tokenizer is {described(tokenizer)}: give a fast one, as AutoTokenizer.from_pretrained(folder) does, "
            "or a tokenizers.Tokenizer"
        )
    copy: Tokenizer = Tokenizer.from_str(backend.to_str())
    copy.encode_special_tokens = backend.encode_special_tokens  # to_str() leaves this out
    copy.no_truncation()
    copy.no_padding()
    return copy


def embedded_folder(name: str) -> Path:
    """Where a model of Sybil's embedded pairs lies. name: its folder below sybil/embedded."""
    return Path(str(resources.files("sybil"))) / "embedded" / name


def packaged_file(name: str) -> Path | None:
    """Where the file of a name packaged:package/file lies; None where the package isn't installed or lacks the file.

    The package isn't imported, because importing it would run its code."""
    package, _, file = name.removeprefix(PACKAGED).partition("/")
    found = importlib.util.find_spec(package)
    places = found.submodule_search_locations if found else None
    return next((path for place in places or () if (path := Path(place) / file).is_file()), None)


def locate(source: str | Path, revision: str | None = None, progress: bool | None = None) -> Path:
    """The local folder or GGUF file of a source: an embedded pair's model, a package's file, a path, a local Ollama's
    model, or a hub id, which is fetched where it isn't cached. revision: of a hub id. progress: see sybil.progress.

    Raises NotAModel, GatedModel or HubUnreachable, and InvalidSetting where a revision is given and the source is no
    hub id."""
    name, found = str(source), here(source)
    if found is None:
        return hub.fetch(name, hub.MODEL_FILES, revision, progress)
    if revision is not None:
        raise InvalidSetting(
            f"revision is {shown(revision)} and {one_line(name, 80)} is no hub id: what lies on this machine has no "
            "revisions, leave revision out"
        )
    return found


def here(source: str | Path) -> Path | None:
    """Where a source lies on this machine; None for a hub id. Raises NotAModel where it is neither on this machine nor
    a hub id."""
    name = str(source)
    if name.startswith(EMBEDDED):
        return embedded_folder(name.removeprefix(EMBEDDED))
    if name.startswith(ollama.PREFIX):
        return ollama.file(name.removeprefix(ollama.PREFIX))
    if name.startswith(PACKAGED):
        path = packaged_file(name)
        if path is None:
            raise NotAModel(f"{name} is in no installed package: install it, or give a folder or a file")
        return path
    try:
        folder = Path(source).expanduser()
        is_folder, is_there = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:  # the name is too long for a file's, or a home doesn't exist
        raise NotAModel(
            f"{one_line(name, 80)} can't be looked for ({told(error)}): give a Hugging Face model folder, a GGUF file, "
            "a hub id, or a pair's name"
        ) from None
    if is_folder:
        return names.within(folder) or folder
    if names.is_one(folder):
        return folder
    if (
        is_there
        or folder.suffix == ".gguf"
        or isinstance(source, Path)
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
    ):
        raise NotAModel(
            f"{source} {'is no folder and no GGUF file' if is_there else 'does not exist'}: give a Hugging Face "
            "model folder, a GGUF file, a hub id, or a pair's name"
        )
    if ":" in name:
        raise NotAModel(
            f"{one_line(name, 80)} is no pair, and no hub id has a colon: give {ollama.PREFIX}{one_line(name, 80)} for "
            "a model of the local Ollama, or a pair's name"
        )
    return None
