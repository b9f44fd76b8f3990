"""Reads a folder's tokenizer, with the same token ids as transformers' AutoTokenizer. transformers is imported only
where the ids may differ from those of tokenizer.json alone."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sybil.errors import NotAModel, shown
from sybil.models.checkpoints.autotokenizer import takes_as_it_lies
from sybil.models.checkpoints.files import check_folder, is_there, parsed, read_text
from sybil.text import tokenizing

TOKENIZER_BYTES = 128 << 20
MOST_IDS = 1 << 24
SLOW_TOKENIZERS = ("vocab.json", "tokenizer.model", "spiece.model", "vocab.txt", "tekken.json")
PROBE = "A probe: 1 é\n\t<s> 漢字"


def read(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a folder, which neither truncates nor pads. config: the folder's. Raises NotAModel."""
    path = folder / "tokenizer.json"
    if is_there(path):
        text = read_text(path, TOKENIZER_BYTES)
        content = parsed(path, text, _check_charsmap)
        with tokenizing(f"{path} is no tokenizer"):
            tokenizer = Tokenizer.from_str(text)
            if not takes_as_it_lies(folder, config, content, tokenizer):
                tokenizer = _by_transformers(folder, config)
    elif any(is_there(folder / name) for name in SLOW_TOKENIZERS):  # without any, transformers makes an empty one up
        tokenizer = _by_transformers(folder, config)
    else:
        raise NotAModel(f"{folder} holds no tokenizer.json: save its fast tokenizer beside the weights")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= MOST_IDS:
        raise NotAModel(
            f"{path} has a token id {largest}, and allowed is at most {MOST_IDS - 1}: export the model again"
        )
    with tokenizing(f"{path} is no tokenizer"):  # a panic prints its text: better before the weights are read
        tokenizer.decode(_probed(lambda: tokenizer.encode(PROBE).ids) or [])
    return tokenizer


def _as_far_as_it_matters(config: Mapping[str, Any]) -> Any:
    """transformers' config with only the fields that AutoTokenizer reads. The model's fields are left out: they may be
    wrong."""
    from transformers import AutoConfig, PreTrainedConfig

    try:
        theirs = AutoConfig.for_model(config.get("model_type"))
    except (ValueError, KeyError):
        theirs = PreTrainedConfig()
    for name in ("tokenizer_class", "model_name"):
        if name in config:
            setattr(theirs, name, config[name])
    return theirs


@contextmanager
def quiet() -> Iterator[None]:
    """A context without transformers' warnings, because Sybil reports a broken folder in one line of its own."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _probed(encode: Callable[[], list[int]]) -> list[int] | None:
    """The probe's ids; None where the tokenizer has no ids for some of the probe's letters, which is no fault."""
    try:
        return list(encode())
    except Exception:
        return None


def _check_charsmap(part: dict[str, Any]) -> dict[str, Any]:
    """Checks and returns a part of tokenizer.json. SentencePiece's character map must be as long as its first four
    bytes say, because its reader allocates that much memory first. Raises ValueError."""
    if "precompiled_charsmap" in part:
        value = part["precompiled_charsmap"]
        blob = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
        if len(blob) < 4 or int.from_bytes(blob[:4], "little") > len(blob) - 4:
            raise ValueError(f"precompiled_charsmap {shown(value)} is cut short")
    return part


def _by_transformers(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    check_folder(folder)
    with tokenizing(f"{folder} holds no tokenizer that transformers can read"), quiet():
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(folder, config=_as_far_as_it_matters(config), trust_remote_code=False)
        ids = _probed(lambda: theirs(PROBE).input_ids)
        tokenizer: Tokenizer = theirs.backend_tokenizer
        tokenizer.encode_special_tokens = theirs.split_special_tokens
        if _probed(lambda: tokenizer.encode(PROBE).ids) != ids:
            raise NotAModel(f"{folder} has a {type(theirs).__name__}, which is no fast tokenizer: save its fast one")
    return tokenizer
