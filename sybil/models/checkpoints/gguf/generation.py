"""Reads from a GGUF file's metadata its special tokens, end tokens, sampling defaults and chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sybil.errors import NotAModel, shown
from sybil.models.checkpoints.fields import POSITIVE, SHARE, TOKEN_IDS, Kind, or_null, whole
from sybil.models.checkpoints.templates import TEMPLATE_BYTES

CONTROL, USER_DEFINED = 3, 4
"""Values of tokenizer.ggml.token_type: a special token, and another added token. Neither is split when a text is
tokenized."""
NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding"}
"""GGUF's name of each special token, by transformers' name."""
ENDING = ("eos", "eot", "eom")
SEVERAL = "tokenizer.ggml.eos_token_ids"  # in files of Ollama's own
ENDS_OF_TURN = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>"})
END_OF_TEXT = "<|endoftext|>"
_SAMPLING: Mapping[str, tuple[str, Kind]] = {
    "temp": ("temperature", POSITIVE),
    "top_k": ("top_k", whole(1, 2**31 - 1)),
    "top_p": ("top_p", SHARE),
    "min_p": ("min_p", SHARE),
}


def tokens(metadata: Mapping[str, Any], rows: int, where: str) -> list[str]:
    """The texts of all tokens, by id. rows: of the embedding; there must be one for each token. Raises NotAModel."""
    found = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(found, list) or not {*map(type, found)} <= {str}:
        raise NotAModel(f"{where} has no list tokenizer.ggml.tokens of texts: download it again")
    if len(found) != rows:
        raise NotAModel(
            f"{where} has {len(found)} tokens and an embedding of {rows} rows: the two don't belong together, "
            "download it again"
        )
    return found


def special_ids(metadata: Mapping[str, Any], count: int, where: str) -> dict[str, int]:
    """The ids of the special tokens that the file names, by name: bos, eos, eot, ... count: of all tokens.

    Raises NotAModel where an id isn't a token's."""
    kind, found = or_null(whole(0, count - 1)), {}
    for name, theirs in {**NAMED, "eot": "eot", "eom": "eom"}.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        value = metadata.get(key)
        if value not in (None, 0xFFFFFFFF, -1):  # 0xFFFFFFFF and -1 stand for no token
            found[name] = kind.read(where, key, value)
    return found


def generation(
    metadata: Mapping[str, Any], vocabulary: list[str], ids: Mapping[str, int], where: str
) -> dict[str, Any]:
    """The fields that the model's generation_config.json would have. Raises NotAModel.

    A text ends at three kinds of tokens: those that the file names as ends, those whose texts are in ENDS_OF_TURN, and
    <|endoftext|> where it is the file's padding or beginning-of-text token. The last kind is there for instruct models,
    which name another token as the end. The file's sampling numbers are defaults for a caller who samples; they don't
    switch sampling on."""
    ends = {ids[name] for name in ENDING if name in ids}
    several = TOKEN_IDS.read(where, SEVERAL, metadata.get(SEVERAL, []))
    ends |= {index for index in several if index < len(vocabulary)}
    ends |= {ids[name] for name in ("bos", "pad") if name in ids and vocabulary[ids[name]] == END_OF_TEXT}
    types = metadata.get("tokenizer.ggml.token_type")
    if isinstance(types, list):
        ends |= {
            index
            for index, (text, kind) in enumerate(zip(vocabulary, types, strict=False))
            if kind in (CONTROL, USER_DEFINED) and text in ENDS_OF_TURN
        }
    found: dict[str, Any] = {"eos_token_id": sorted(ends)} if ends else {}
    for theirs, (name, kind) in _SAMPLING.items():
        key = f"general.sampling.{theirs}"
        if metadata.get(key):  # 0 stands for no value
            found[name] = kind.read(where, key, metadata[key])
    return found


def chat_template(metadata: Mapping[str, Any], where: str) -> str | None:
    """The file's chat template: the one without a name, or else the one named default; None where it has neither.
    Raises NotAModel where it is no text or too long."""
    for key in ("tokenizer.chat_template", "tokenizer.chat_template.default"):
        found = metadata.get(key)
        if found is None:
            continue
        if not isinstance(found, str) or len(found) > TEMPLATE_BYTES:
            raise NotAModel(
                f"{where} has {key} {shown(found)}, and allowed is a text of {TEMPLATE_BYTES} characters: download it "
                "again"
            )
        return found
    return None
