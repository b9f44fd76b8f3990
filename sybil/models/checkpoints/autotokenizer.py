"""Whether transformers' AutoTokenizer would change a folder's tokenizer.json, told without importing transformers.

AutoTokenizer either uses tokenizer.json as it is, or builds the class that tokenizer_config.json or config.json names
from the vocabulary in tokenizer.json. Then it adds the tokens that other files name. This module describes its classes
as of transformers 5.23, and tests compare the ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sybil.models.checkpoints.files import is_there, read_json

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UNCHANGING = {
    *("tokenizer_class", "backend", "name_or_path", "is_local", "local_files_only", "special_tokens_map_file"),
    *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "model_max_length", "max_length"),
    *("clean_up_tokenization_spaces", "spaces_between_special_tokens", "chat_template", "processor_class", "errors"),
    *("padding_side", "truncation_side", "truncation_strategy", "stride", "pad_to_multiple_of", "pad_token_type_id"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens", "trim_offsets", "legacy"),
    *("sp_model_kwargs", "use_default_system_prompt", "model_input_names", "response_schema", "response_template"),
}
"""Fields of tokenizer_config.json that change no ids, or whose effect is checked below."""


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """A byte-level class of transformers that rebuilds its tokenizer. tokens: special tokens that the class names by
    itself. pattern: splits a text first. keeps_processor: whether tokenizer.json's post-processor stays. adds_again:
    whether the tokens that the settings name are added once more, as plain tokens."""

    normalizer: normalizers.Normalizer | None
    tokens: Mapping[str, str]
    pattern: str = ""
    keeps_processor: bool = True
    adds_again: bool = False

    def pre_tokenizer(self, add_prefix_space: bool) -> pre_tokenizers.PreTokenizer:
        """How the class splits a text before bytes are merged."""
        if not self.pattern:
            return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        split = pre_tokenizers.Split(Regex(self.pattern), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space, use_regex=False)])


_END = "<|endoftext|>"
_REBUILT = {
    "GPT2Tokenizer": _Rebuilt(None, dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END)),
    "GPTNeoXTokenizer": _Rebuilt(
        normalizers.NFC(),
        {**dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END), "pad_token": "<|padding|>"},
        keeps_processor=False,
    ),
    "Qwen2Tokenizer": _Rebuilt(
        normalizers.NFC(),
        dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END),
        pattern=_QWEN,
        adds_again=True,
    ),
}
_AS_IT_LIES = "TokenizersBackend"
_REGISTERED = {
    "gpt2": "GPT2Tokenizer", "opt": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer", "qwen3": "Qwen2Tokenizer",
    "llama": None, "mistral": _AS_IT_LIES, "phi3": _AS_IT_LIES, "qwen2": "Qwen2Tokenizer",
}  # fmt: skip
"""AutoTokenizer's class by model_type, for the families that Sybil runs without transformers."""


def takes_as_it_lies(folder: Path, config: Mapping[str, Any], content: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    """Whether AutoTokenizer's ids are surely those of tokenizer.json alone. content, tokenizer: of tokenizer.json."""
    settings, specials, added = (
        read_json(folder / name) if is_there(folder / name) else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    if "added_tokens_decoder" in settings:  # AutoTokenizer reads no older files then
        specials, added = {}, {}
    if is_there(folder / "tekken.json") or settings.get("split_special_tokens"):
        return False
    if any(name not in _UNCHANGING and not name.endswith("_token") for name in settings):
        return False
    kind = _class(config, settings.get("tokenizer_class") or config.get("tokenizer_class"), content)
    rebuilt = _REBUILT.get(kind or "")
    if kind != _AS_IT_LIES and not rebuilt:
        return False
    try:
        named = {*_named({**(rebuilt.tokens if rebuilt else {}), **settings, **specials})}
        listed = {int(i): AddedToken(**token) for i, token in settings.get("added_tokens_decoder", {}).items()}
    except (AttributeError, TypeError, ValueError):
        return False
    held = tokenizer.get_added_tokens_decoder()
    ways = {token.content: repr(token) for token in held.values()}  # a token's text, and how texts are searched for it
    if named - ways.keys() or any(ways.get(token.content) != repr(token) for token in listed.values()):
        return False
    if any(token not in ways or tokenizer.token_to_id(token) != index for token, index in added.items()):
        return False
    if rebuilt is None:
        return True
    if "added_tokens_decoder" in settings and {i: str(token) for i, token in listed.items()} != {
        i: str(token) for i, token in held.items()
    }:
        return False
    vocabulary = content["model"]["vocab"]
    return _cuts_so(tokenizer, vocabulary, rebuilt, settings) and _numbers_so(tokenizer, vocabulary, rebuilt, named)


def class_tokens(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, str]:
    """The special tokens that the class of a folder's tokenizer has if the files name none. settings:
    tokenizer_config.json. Empty for a class that this module doesn't describe."""
    kind = _class(config, settings.get("tokenizer_class") or config.get("tokenizer_class"), {})
    return _REBUILT[kind].tokens if kind in _REBUILT else {}


def _class(config: Mapping[str, Any], named: Any, content: Mapping[str, Any]) -> str | None:
    """The class that AutoTokenizer chooses for the folder; None if only transformers can tell."""
    kind = config.get("model_type")
    if kind not in _REGISTERED or "model_name" in config or not isinstance(named, str | None):
        return None
    registered = _REGISTERED[kind]
    if kind == "qwen2" or registered == _AS_IT_LIES:  # whatever the files say
        return registered
    if named in (_AS_IT_LIES, "PreTrainedTokenizerFast"):
        return _AS_IT_LIES
    named = (named or "").removesuffix("Fast")
    if kind == "llama" and named == "LlamaTokenizer":
        parts = [content.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
        return _AS_IT_LIES if '"ByteLevel"' in json.dumps(parts) else None
    return named or registered or _AS_IT_LIES


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    """The tokens that settings name. Raises TypeError where one is no token."""
    for name, value in settings.items():
        if name in ("additional_special_tokens", "extra_special_tokens"):
            values = value.values() if isinstance(value, dict) else value or ()
        else:
            values = [value] if name.endswith("_token") and value is not None and not name.startswith("add_") else ()
        for token in values:
            token = token["content"] if isinstance(token, dict) else token
            if not isinstance(token, str):
                raise TypeError
            yield token


def _cuts_so(
    tokenizer: Tokenizer, vocabulary: Mapping[str, int], rebuilt: _Rebuilt, settings: Mapping[str, Any]
) -> bool:
    """Whether the class splits and merges texts as tokenizer.json says."""
    model, add_prefix_space = tokenizer.model, settings.get("add_prefix_space", False)
    if add_prefix_space is None and rebuilt.pattern:  # only Qwen2's class takes null
        add_prefix_space = False
    if not isinstance(model, models.BPE) or not isinstance(add_prefix_space, bool):
        return False
    odd = model.dropout, model.continuing_subword_prefix, model.end_of_word_suffix, model.fuse_unk, model.byte_fallback
    every_byte = {*pre_tokenizers.ByteLevel.alphabet()} <= vocabulary.keys()
    return (
        not any(odd)
        and not model.ignore_merges
        and (every_byte or not model.unk_token)
        and isinstance(tokenizer.decoder, decoders.ByteLevel)
        and _state(tokenizer.normalizer) == _state(rebuilt.normalizer)
        and _state(tokenizer.pre_tokenizer) == _state(rebuilt.pre_tokenizer(add_prefix_space))
        and (rebuilt.keeps_processor or not tokenizer.num_special_tokens_to_add(False))
    )


def _numbers_so(tokenizer: Tokenizer, vocabulary: Mapping[str, int], rebuilt: _Rebuilt, named: set[str]) -> bool:
    """Whether the added tokens keep their ids and options when the class adds them again, in the order of their ids."""
    added = tokenizer.get_added_tokens_decoder()
    new = sorted(i for i, token in added.items() if token.content not in vocabulary)
    kept = {
        token.content
        for token in added.values()
        if token.special
        and (not rebuilt.adds_again or repr(token) == repr(AddedToken(token.content, special=True, normalized=False)))
    }
    return (
        named <= kept
        and sorted(vocabulary.values()) == [*range(len(vocabulary))]
        and new == [*range(len(vocabulary), len(vocabulary) + len(new))]
        and all(vocabulary.get(token.content, i) == i for i, token in added.items())
    )


def _state(part: Any) -> Any:
    """A part of a tokenizer in JSON, without the options that only change offsets."""
    return json.loads(part.__getstate__(), object_hook=lambda each: {**each, "trim_offsets": None}) if part else None
