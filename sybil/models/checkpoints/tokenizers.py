"""A folder's tokenizer, whose token ids are those of transformers' AutoTokenizer.

AutoTokenizer takes tokenizer.json as it lies, or builds the class that tokenizer_config.json or config.json names anew
from the vocabulary in it, and adds the tokens that other files name. Where nothing of this changes an id,
tokenizer.json is read without importing transformers; elsewhere transformers reads the folder. What is said here of
its classes is so in transformers 5.23.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sybil.errors import NotAModel, shown
from sybil.models.checkpoints.files import check_folder, is_there, parsed, read_json, read_text
from sybil.text import tokenizing

TOKENIZER_BYTES = 128 << 20
MOST_IDS = 1 << 24
SLOW_TOKENIZERS = ("vocab.json", "tokenizer.model", "spiece.model", "vocab.txt", "tekken.json")
PROBE = "A probe: 1 é\n\t<s> 漢字"
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
"""Fields of tokenizer_config.json that change no id, or whose change is looked for below."""


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """A byte-level class of transformers that builds its tokenizer anew. tokens: those it names by itself; pattern: by
    which it splits a text first; keeps_processor: whether what tokenizer.json puts around a text stays; adds_again:
    whether the tokens that are named are added once more, as plain ones."""

    normalizer: normalizers.Normalizer | None
    tokens: Mapping[str, str]
    pattern: str = ""
    keeps_processor: bool = True
    adds_again: bool = False

    def pre_tokenizer(self, add_prefix_space: bool) -> pre_tokenizers.PreTokenizer:
        """How it cuts a text before bytes are merged."""
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
"""AutoTokenizer's class by model_type, for the families whose models don't need transformers either."""


def read(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a folder with that config.json, which neither cuts nor pads. Raises NotAModel."""
    path = folder / "tokenizer.json"
    if is_there(path):
        text = read_text(path, TOKENIZER_BYTES)
        parsed(path, text, _check_charsmap)
        with tokenizing(f"{path} is no tokenizer"):
            tokenizer = Tokenizer.from_str(text)
            if not _is_taken_as_it_lies(folder, config, text, tokenizer):
                tokenizer = _by_transformers(folder)
    elif any(is_there(folder / name) for name in SLOW_TOKENIZERS):  # without any, transformers makes an empty one up
        tokenizer = _by_transformers(folder)
    else:
        raise NotAModel(f"{folder} holds no tokenizer.json: save its fast tokenizer beside the weights")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= MOST_IDS:
        raise NotAModel(
            f"{path} has a token id {largest}, and allowed is at most {MOST_IDS - 1}: export the model again"
        )
    with tokenizing(f"{path} is no tokenizer"):  # a panic that shows itself is shown before the weights are read
        tokenizer.decode(_probed(lambda: tokenizer.encode(PROBE).ids) or [])
    return tokenizer


def _probed(encode: Callable[[], list[int]]) -> list[int] | None:
    """The probe's ids; None where the tokenizer has none for some of its letters, which others may not need."""
    try:
        return list(encode())
    except Exception:
        return None


def _check_charsmap(part: dict[str, Any]) -> dict[str, Any]:
    """A part of tokenizer.json. SentencePiece's map of characters must be as long as its first four bytes say, for so
    much memory is taken before it is read; raises ValueError."""
    if "precompiled_charsmap" in part:
        value = part["precompiled_charsmap"]
        blob = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
        if len(blob) < 4 or int.from_bytes(blob[:4], "little") > len(blob) - 4:
            raise ValueError(f"precompiled_charsmap {shown(value)} is cut short")
    return part


def _by_transformers(folder: Path) -> Tokenizer:
    check_folder(folder)
    with tokenizing(f"{folder} holds no tokenizer that transformers can read"):
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        ids = _probed(lambda: theirs(PROBE).input_ids)
        tokenizer: Tokenizer = theirs.backend_tokenizer
        tokenizer.encode_special_tokens = theirs.split_special_tokens
        if _probed(lambda: tokenizer.encode(PROBE).ids) != ids:
            raise NotAModel(f"{folder} has a {type(theirs).__name__}, which is no fast tokenizer: save its fast one")
    return tokenizer


def _is_taken_as_it_lies(folder: Path, config: Mapping[str, Any], text: str, tokenizer: Tokenizer) -> bool:
    """Whether AutoTokenizer's ids are sure to be those of tokenizer.json alone; text: that file's."""
    settings, specials, added = (
        read_json(folder / name) if is_there(folder / name) else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    if is_there(folder / "tekken.json") or settings.get("split_special_tokens"):
        return False
    if any(name not in _UNCHANGING and not name.endswith("_token") for name in settings):
        return False
    kind = _class(config, settings.get("tokenizer_class") or config.get("tokenizer_class"), text)
    rebuilt = _REBUILT.get(kind or "")
    if kind != _AS_IT_LIES and not rebuilt:
        return False

    held = {token.content: repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    if "added_tokens_decoder" in settings:
        specials, added = {}, {}
    try:
        named = [*_named({**(rebuilt.tokens if rebuilt else {}), **settings, **specials})]
        theirs = {int(i): AddedToken(**token) for i, token in settings.get("added_tokens_decoder", {}).items()}
    except (AttributeError, TypeError, ValueError):
        return False
    if {*named, *added} - held.keys() or any(held.get(each.content) != repr(each) for each in theirs.values()):
        return False
    if any(tokenizer.token_to_id(token) != index for token, index in added.items()):
        return False
    return not rebuilt or _is_built_so(tokenizer, rebuilt, settings, named, theirs)


def _class(config: Mapping[str, Any], named: Any, text: str) -> str | None:
    """The class that AutoTokenizer chooses for the folder; None where transformers has to be asked."""
    kind = config.get("model_type")
    if kind not in _REGISTERED or "model_name" in config or not isinstance(named, str | None):
        return None
    registered = _REGISTERED[kind]
    if kind == "qwen2" or registered == _AS_IT_LIES:  # whatever a file says
        return registered
    if named in (_AS_IT_LIES, "PreTrainedTokenizerFast"):
        return _AS_IT_LIES
    named = (named or "").removesuffix("Fast")
    if kind == "llama" and named == "LlamaTokenizer":
        return _AS_IT_LIES if '"ByteLevel"' in text else None
    return named or registered or _AS_IT_LIES


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    """The tokens that settings name; raises TypeError where one is no token."""
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


def _is_built_so(
    tokenizer: Tokenizer,
    rebuilt: _Rebuilt,
    settings: Mapping[str, Any],
    named: list[str],
    theirs: Mapping[int, AddedToken],
) -> bool:
    """Whether what the class builds of the vocabulary is what tokenizer.json holds."""
    model, vocabulary = tokenizer.model, tokenizer.get_vocab(with_added_tokens=False)
    if not isinstance(model, models.BPE) or not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return False
    odd = model.dropout, model.continuing_subword_prefix, model.end_of_word_suffix, model.fuse_unk, model.byte_fallback
    if (
        any(odd)
        or model.ignore_merges
        or (model.unk_token and not {*pre_tokenizers.ByteLevel.alphabet()} <= {*vocabulary})
    ):
        return False
    add_prefix_space = settings.get("add_prefix_space", False)
    if not isinstance(add_prefix_space, bool):
        return False
    pre_tokenizer = rebuilt.pre_tokenizer(add_prefix_space)
    if _state(tokenizer.pre_tokenizer) != _state(pre_tokenizer) or _state(tokenizer.normalizer) != _state(
        rebuilt.normalizer
    ):
        return False
    if not rebuilt.keeps_processor and tokenizer.num_special_tokens_to_add(False):
        return False

    added = tokenizer.get_added_tokens_decoder()
    if theirs and {i: repr(token) for i, token in theirs.items()} != {i: repr(token) for i, token in added.items()}:
        return False
    if "added_tokens_decoder" in settings and not theirs and added:
        return False
    plain = {each: repr(AddedToken(each, special=True, normalized=False)) for each in named}
    kept = {
        t.content for t in added.values() if t.special and not (rebuilt.adds_again and repr(t) != plain.get(t.content))
    }
    new = sorted(i for i, token in added.items() if token.content not in vocabulary)  # they are numbered anew, in order
    return (
        {*named} <= kept
        and sorted(vocabulary.values()) == [*range(len(vocabulary))]
        and new == [*range(len(vocabulary), len(vocabulary) + len(new))]
        and all(vocabulary.get(token.content, i) == i for i, token in added.items())
    )


def _state(part: Any) -> Any:
    """A part of a tokenizer in JSON, without what only changes offsets."""
    return json.loads(part.__getstate__(), object_hook=lambda each: {**each, "trim_offsets": None}) if part else None
