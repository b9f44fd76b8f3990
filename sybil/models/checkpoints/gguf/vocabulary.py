"""A GGUF file's tokenizer, built from its metadata by the library `tokenizers`.

Its ids are those of the model's own tokenizer. Two kinds are read. Byte-level BPE (`gpt2`: GPT-2, Llama 3, Qwen) cuts a
text into words as splits.py says. The merges of SentencePiece's BPE (`llama`: Llama 2, Mistral, Gemma) follow from the
tokens' scores. Remarks on transformers in this file hold for 5.23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sybil.errors import NotAModel, shown
from sybil.models.checkpoints.fields import TRUTH, Kind, whole
from sybil.models.checkpoints.gguf.generation import CONTROL, USER_DEFINED
from sybil.models.checkpoints.gguf.splits import GPT_2, SPLITS
from sybil.models.checkpoints.tokenizers import MOST_IDS, PROBE
from sybil.text import tokenizing

UNKNOWN = 2  # a value of tokenizer.ggml.token_type, like CONTROL and USER_DEFINED
LONGEST_TOKEN = 1 << 12  # characters
MOST_LETTERS = 1 << 23  # of all tokens together: each is a place where a token might be cut in two
MERGES_A_TOKEN = 16  # Llama 2 and Gemma have 2
SPACE = "▁"


@dataclass(frozen=True, slots=True)
class _VocabularyKeys:
    """The keys tokenizer.ggml.* of a file. Each value is checked when it is read."""

    values: Mapping[str, Any]
    where: str

    def get(self, name: str, kind: Kind) -> Any:
        """The value of a key, or None where the key is left out. Raises NotAModel where the value isn't allowed."""
        key = f"tokenizer.ggml.{name}"
        return kind.read(self.where, key, self.values[key]) if key in self.values else None

    def column(self, name: str, types: set[type], like: int | None = None) -> list[Any] | None:
        """The list of a key, or None where the key is left out. types: of its entries. like: how many entries it must
        have; None: any number. Raises NotAModel."""
        key, words = f"tokenizer.ggml.{name}", " or ".join(sorted(each.__name__ for each in types))
        if key not in self.values:
            return None
        values = self.values[key]
        if not isinstance(values, list) or not {*map(type, values)} <= types:
            odd = values if not isinstance(values, list) else next(each for each in values if type(each) not in types)
            raise self.wrong(f"{key} with {shown(odd)}, and allowed is a list of {words}")
        if like is not None and len(values) != like:
            raise self.wrong(f"{key} of {len(values)} entries and {like} tokens")
        return values

    def wrong(self, what: str) -> NotAModel:
        """The error that says what the file has."""
        return NotAModel(f"{self.where} has {what}: download the file again or convert the model anew")


_WORD = Kind("a word", lambda value: value if isinstance(value, str) else None)


def read(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes. It neither truncates nor pads.

    metadata: plain Python values by key. where: the file's name in messages. Raises NotAModel."""
    keys = _VocabularyKeys(metadata, where)
    model = keys.get("model", _WORD)
    if model not in ("gpt2", "llama"):
        raise NotAModel(
            f"{where} has tokenizer.ggml.model {shown(model)}, and read are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece BPE): use the model's folder of safetensors, whose tokenizer transformers reads"
        )
    tokens = _tokens(keys)
    types = _types(keys, len(tokens))
    named = {name: keys.get(f"{name}_token_id", whole(0, len(tokens) - 1)) for name in _NAMED}
    with tokenizing(f"{where} holds no tokenizer"):
        if model == "gpt2":
            tokenizer, begins = _byte_level(keys, tokens)
        else:
            tokenizer, begins = _sentencepiece(keys, tokens, types, named["unknown"]), True
        _add(tokenizer, tokens, types, named)
        tokenizer.post_processor = _around(keys, tokens, begins, named)
        tokenizer.decode(tokenizer.encode(PROBE).ids)  # a panic shows itself before the weights are read
    return tokenizer


_NAMED = ("bos", "eos", "unknown", "padding")


def _tokens(keys: _VocabularyKeys) -> list[str]:
    """The texts of all tokens, by id. Raises NotAModel where two are the same."""
    tokens = keys.column("tokens", {str})
    if not tokens:
        raise keys.wrong("no tokenizer.ggml.tokens")
    if len(tokens) > MOST_IDS:
        raise keys.wrong(f"{len(tokens)} tokens, and allowed are {MOST_IDS}")
    longest = max(tokens, key=len)
    if len(longest) > LONGEST_TOKEN or sum(map(len, tokens)) > MOST_LETTERS:
        raise keys.wrong(
            f"a token {shown(longest)} of {len(longest)} characters among {sum(map(len, tokens))}, and allowed are "
            f"{LONGEST_TOKEN} in one and {MOST_LETTERS} in all"
        )
    if len({*tokens}) != len(tokens):
        first: dict[str, int] = {}
        again = next(i for i, token in enumerate(tokens) if first.setdefault(token, i) != i)
        raise keys.wrong(f"the token {shown(tokens[again])} twice, as {first[tokens[again]]} and as {again}")
    return tokens


def _types(keys: _VocabularyKeys, count: int) -> list[int]:
    types = keys.column("token_type", {int}, count) or [1] * count
    if not {*types} <= {*range(7)}:
        odd = next(each for each in types if each not in range(7))
        raise keys.wrong(f"tokenizer.ggml.token_type with {shown(odd)}, and allowed are 0 to 6")
    return types


def _byte_level(keys: _VocabularyKeys, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """(the tokenizer; whether the beginning-of-text token is put before a text where the file doesn't say). Without
    tokenizer.ggml.pre a text is cut as by GPT-2, as in transformers."""
    name = keys.get("pre", _WORD)
    if name is not None and name not in SPLITS:
        raise NotAModel(
            f"{keys.where} has tokenizer.ggml.pre {shown(name)}, and known are {', '.join(sorted(SPLITS))}: use the "
            "model's folder of safetensors, whose tokenizer.json says how it cuts a text"
        )
    split = GPT_2 if name is None else SPLITS[name]
    ids = {token: index for index, token in enumerate(tokens)}
    merges = _listed(keys, ids)
    if merges is None:
        raise keys.wrong("no tokenizer.ggml.merges, which a 'gpt2' vocabulary needs")
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=split.whole))
    normalizer = split.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = split.pre_tokenizer(), decoders.ByteLevel()
    return tokenizer, split.begins


def _listed(keys: _VocabularyKeys, ids: Mapping[str, int]) -> list[tuple[str, str]] | None:
    """The merges that the file lists, or None where it lists none. A merge is two tokens that together make a third."""
    lines = keys.column("merges", {str})
    if lines is None:
        return None
    merges = []
    for line in lines:
        left, _, right = line.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise keys.wrong(f"the merge {shown(line)} in tokenizer.ggml.merges, of which not every part is a token")
        merges.append((left, right))
    return merges


def _sentencepiece(keys: _VocabularyKeys, tokens: list[str], types: list[int], unknown: int | None) -> Tokenizer:
    """A tokenizer like transformers' LlamaTokenizer, its GemmaTokenizer for a Gemma, or Phi 3's tokenizer.json.
    unknown: the id of the unknown token, where the file names one."""
    architecture = str(keys.values.get("general.architecture"))
    is_gemma = architecture.startswith("gemma")
    if is_gemma:  # Gemma's files write a token of spaces as spaces; here it is a piece that is merged like any other
        tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise keys.wrong(f"tokens that are alike when a space is {SPACE}")
    if unknown is None and UNKNOWN in types:
        unknown = types.index(UNKNOWN)
    merges = _listed(keys, ids)
    if merges is None:
        merges = _made(keys, tokens, ids, _ranks(keys, len(tokens), is_gemma))
    name = None if unknown is None else tokens[unknown]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=name, fuse_unk=True, byte_fallback=True))
    prefix = keys.get("add_space_prefix", TRUTH) is not False and not is_gemma
    if is_gemma:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif prefix and architecture == "phi3":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first" if prefix else "never", split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _ranks(keys: _VocabularyKeys, count: int, in_order: bool) -> Sequence[float]:
    """A rank for each token. Merges that make a token of a lower rank come first. in_order: whether the ranks are the
    order of the tokens and not their scores, as in Gemma, whose added tokens all have the same score."""
    scores = keys.column("scores", {float, int}, count)
    if in_order:
        return range(count)
    if scores is None:
        raise keys.wrong("no tokenizer.ggml.scores, which a 'llama' vocabulary needs")
    if not all(map(math.isfinite, scores)):
        raise keys.wrong("tokenizer.ggml.scores with a number that isn't finite")
    return [-score for score in scores]


def _made(
    keys: _VocabularyKeys, tokens: list[str], ids: Mapping[str, int], ranks: Sequence[float]
) -> list[tuple[str, str]]:
    """Every pair of tokens that together make a third token, by the rank of the third. Pairs that make the same token
    are in the order of the left part's length, the longest first."""
    pairs = (
        (left, right)
        for token in [tokens[index] for index in sorted(ids.values(), key=ranks.__getitem__)]
        for cut in range(len(token) - 1, 0, -1)
        if (left := token[:cut]) in ids and (right := token[cut:]) in ids
    )
    most = MERGES_A_TOKEN * len(tokens)
    merges = [*islice(pairs, most + 1)]
    if len(merges) > most:
        raise keys.wrong(f"tokens that two others make in more than {most} ways, as in no vocabulary")
    if len({*ranks}) < len(tokens):  # where all ranks differ, the merges are in order already
        merges.sort(key=lambda pair: (ranks[ids[pair[0] + pair[1]]], -len(pair[0]), -len(pair[1])))
    return merges


def _add(tokenizer: Tokenizer, tokens: list[str], types: list[int], named: Mapping[str, int | None]) -> None:
    """Adds to the tokenizer the tokens that it looks for in a text before it cuts the text. Control tokens and those
    that the file names, such as bos, are special."""
    control = [index for index, kind in enumerate(types) if kind == CONTROL]
    users = [index for index, kind in enumerate(types) if kind == USER_DEFINED]
    others = {index for index in named.values() if index is not None} - {*control, *users}
    for indices, special in ([*control, *sorted(others)], True), (users, False):
        written = [tokens[index] for index in indices if tokenizer.token_to_id(tokens[index]) == index]
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special) for token in written])


def _around(
    keys: _VocabularyKeys, tokens: list[str], begins: bool, named: Mapping[str, int | None]
) -> processors.TemplateProcessing:
    """What puts special tokens before and after a text. begins: whether the beginning-of-text token is put before it
    where the file doesn't say."""
    says = keys.get("add_bos_token", TRUTH)
    first = named["bos"] if (begins if says is None else says) else None
    last = named["eos"] if keys.get("add_eos_token", TRUTH) else None
    before, after = ([] if index is None else [name] for name, index in (("bos", first), ("eos", last)))
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{name}:1" for name in before), "$B:1", *(f"{name}:1" for name in after)],
        special_tokens=[
            {"id": name, "ids": [index], "tokens": [tokens[index]]}
            for name, index in (("bos", first), ("eos", last))
            if index is not None
        ],
    )
