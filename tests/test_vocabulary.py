"""A tokenizer that is built from a GGUF file's metadata has the ids of transformers' own for its family; what is wrong
with the metadata is said in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import corpus_texts
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CohereTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs
from transformers.tokenization_utils_base import generate_merges

from sybil.errors import NotAModel
from sybil.models.checkpoints.gguf import vocabulary
from sybil.models.checkpoints.gguf.splits import SPLITS

Metadata = dict[str, Any]
END, START, TOOL = "<|endoftext|>", "<|im_start|>", "<tool call>"
SPECIAL = ("<unk>", "<s>", "</s>")
LLAMA_3 = theirs.GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]


def said(model: str, tokens: list[str], **more: Any) -> Metadata:
    """Metadata as llama.cpp's converter writes it."""
    return {"tokenizer.ggml.model": model, **{f"tokenizer.ggml.{name}": value for name, value in more.items()}} | {
        "tokenizer.ggml.tokens": tokens
    }


@cache
def of_bytes() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary of some hundred merges, digits among them, and the tokens that are added after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        [*corpus_texts.texts()[::2], "12 12 123 \n\n\n\n 2026 2026 e\u0301 e\u0301 \u00e9"] * 2, trainer
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def byte_level(pre: str | None, **more: Any) -> Metadata:
    """The same as a GGUF file's metadata, with two special tokens and a plain one."""
    vocab, merges = of_bytes()
    tokens = [*sorted(vocab, key=vocab.__getitem__), END, START, TOOL]
    types = [1] * len(vocab) + [3, 3, 4]
    named = dict(bos_token_id=len(vocab) + 1, eos_token_id=len(vocab))
    cut = {} if pre is None else {"pre": pre}
    return said("gpt2", tokens, merges=[" ".join(pair) for pair in merges], token_type=types, **named, **cut, **more)


def finished(tokenizer: Any) -> Tokenizer:
    """With the same tokens added as a model's folder adds them."""
    tokenizer.add_special_tokens({"additional_special_tokens": [END, START]}, replace_extra_special_tokens=False)
    tokenizer.add_tokens([TOOL])
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def whole() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """With the added tokens, which have their ids then."""
    vocab, merges = of_bytes()
    return {**vocab, END: len(vocab), START: len(vocab) + 1, TOOL: len(vocab) + 2}, merges


def by_class(kind: Any, **more: Any) -> Tokenizer:
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END)
    return finished(kind(*whole(), **names, **more))


def by_parts(*steps: pre_tokenizers.PreTokenizer, regex: bool = False, begins: bool = False, **more: Any) -> Tokenizer:
    """As tokenizer.json has it in the folders of Llama 3 and SmolLM."""
    tokenizer = Tokenizer(models.BPE(*whole(), **more))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, level])
    tokenizer.decoder = decoders.ByteLevel()
    if begins:
        named = [(START, len(whole()[0]) - 2)]
        tokenizer.post_processor = processors.TemplateProcessing(f"{START} $A", special_tokens=named)
    return finished(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END))


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


DIGITS = pre_tokenizers.Digits(individual_digits=True)
BYTE_LEVEL: dict[str, tuple[Callable[[], Metadata], Callable[[], Tokenizer]]] = {
    "gpt2": (lambda: byte_level("gpt-2"), lambda: by_class(GPT2Tokenizer)),
    "gpt2, unnamed": (lambda: byte_level(None), lambda: by_class(GPT2Tokenizer)),
    "neox": (lambda: byte_level("olmo"), lambda: by_class(GPTNeoXTokenizer)),
    "qwen2": (lambda: byte_level("qwen2"), lambda: by_class(Qwen2Tokenizer)),
    "command-r": (
        lambda: byte_level("command-r", add_bos_token=False),
        lambda: by_class(CohereTokenizer, add_bos_token=False),
    ),
    "smollm": (lambda: byte_level("smollm", add_bos_token=False), lambda: by_parts(DIGITS, regex=True)),
    "granite": (lambda: byte_level("refact"), lambda: by_parts(DIGITS, regex=True)),
    "smollm3": (lambda: byte_level("smaug-bpe"), lambda: by_parts(split_by(LLAMA_3))),
    "llama3": (
        lambda: byte_level("llama-bpe"),
        lambda: by_parts(split_by(LLAMA_3), ignore_merges=True, begins=True),
    ),
    "llama3, told not to begin": (
        lambda: byte_level("llama-bpe", add_bos_token=False),
        lambda: by_parts(split_by(LLAMA_3), ignore_merges=True),
    ),
}


@cache
def of_pieces() -> tuple[str, ...]:
    """SentencePiece's kind: pieces of words, the frequent first, and then letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    tokenizer.train_from_iterator(corpus_texts.texts()[::2], trainers.BpeTrainer(vocab_size=1400, show_progress=False))
    vocab = tokenizer.get_vocab()
    pieces = sorted(vocab, key=vocab.__getitem__)
    return (*(piece for piece in pieces if len(piece) > 1), *(piece for piece in pieces if len(piece) == 1))


def sentencepiece(score: Callable[[int], float] = lambda place: -float(place), **more: Any) -> Metadata:
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *of_pieces(), START, TOOL]
    pieces = len(of_pieces())
    scores = [0.0] * 259 + [score(place) for place in range(pieces)] + [-1000.0] * 2
    types = [2, 3, 3] + [6] * 256 + [1] * pieces + [3, 4]
    named = dict(bos_token_id=1, eos_token_id=2, unknown_token_id=0)
    return said("llama", tokens, scores=scores, token_type=types, **named, **more)


def gemma() -> Metadata:
    """Gemma's own: runs of white space and tags are added tokens, and stand before the pieces."""
    runs = ["\n", "\n\n", "\n\n\n", "  ", "   ", "    ", "<td>", "</td>", "<tool call>"]
    pieces = [piece for piece in of_pieces() if piece not in ("▁▁", "▁▁▁", "▁▁▁▁", "\n", "\n\n", "\n\n\n")]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *runs, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokens += ["\t", "\t\t"] if "\t" not in pieces else []
    added = 5 + len(runs)
    scores = [-1000.0] * added + [0.0] * 256 + [-float(place) for place in range(len(tokens) - added - 256)]
    types = [3] * 5 + [4] * len(runs) + [6] * 256 + [1] * (len(tokens) - added - 256)
    named = dict(bos_token_id=2, eos_token_id=1, unknown_token_id=3, padding_token_id=0, add_space_prefix=False)
    metadata = said("llama", tokens, scores=scores, token_type=types, **named, add_bos_token=True)
    return {**metadata, "general.architecture": "gemma3"}


def by_transformers(metadata: Metadata, kind: Any = None, **more: Any) -> Tokenizer:
    """What transformers makes of the file: its class, the merges from the scores, the tokens that it marks."""
    told = {name: metadata.get(f"tokenizer.{key}") for key, name in theirs.GGUF_TOKENIZER_MAPPING["tokenizer"].items()}
    told = {name: value for name, value in told.items() if value is not None}
    if kind is None:
        backend, _ = theirs.convert_gguf_tokenizer(metadata.get("general.architecture", "llama"), told)
    else:
        vocab = {token: index for index, token in enumerate(told["tokens"])}
        merges = generate_merges(vocab, dict(zip(told["tokens"], told["scores"], strict=True)))
        backend = theirs.add_gguf_special_tokens(kind(vocab=vocab, merges=merges, **more), told).backend_tokenizer
    tokens = told["tokens"]
    named = {f"{name}_token": tokens[told[f"{name}_token_id"]] for name in ("bos", "eos", "unk")}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, **named, add_bos_token=metadata.get("tokenizer.ggml.add_bos_token", True)
    )
    fast.update_post_processor()
    tokenizer: Tokenizer = fast.backend_tokenizer
    return tokenizer


def tied(place: int) -> float:
    """Scores of which many are the same."""
    return -float(place // 7)


SENTENCEPIECE: dict[str, tuple[Callable[[], Metadata], Callable[[], Tokenizer]]] = {
    "llama2": (sentencepiece, lambda: by_transformers(sentencepiece(), LlamaTokenizer)),
    "llama2 by its file": (sentencepiece, lambda: by_transformers(sentencepiece())),
    "equal scores": (lambda: sentencepiece(tied), lambda: by_transformers(sentencepiece(tied))),
    "no beginning": (
        lambda: sentencepiece(add_bos_token=False),
        lambda: by_transformers(sentencepiece(add_bos_token=False)),
    ),
    "no space before": (
        lambda: sentencepiece(add_space_prefix=False),
        lambda: by_transformers(sentencepiece(), LlamaTokenizer, add_prefix_space=False),
    ),
    "phi3": (
        lambda: {**sentencepiece(), "general.architecture": "phi3"},
        lambda: by_transformers({**sentencepiece(), "general.architecture": "phi3"}),
    ),
    "gemma": (gemma, lambda: by_transformers(gemma())),
}
FAMILIES = BYTE_LEVEL | SENTENCEPIECE


@cache
def pair_of(family: str) -> tuple[Tokenizer, Tokenizer]:
    """Ours, theirs."""
    metadata, reference = FAMILIES[family]
    return vocabulary.read(metadata(), "model.gguf"), reference()


def differing(ours: Tokenizer, reference: Tokenizer, texts: list[str]) -> list[str]:
    """The texts whose ids aren't the same, or aren't the same text again."""
    ids = [[each.ids for each in tokenizer.encode_batch(texts)] for tokenizer in (ours, reference)]
    again = [
        [tokenizer.decode_batch(ids[1], skip_special_tokens=skip) for skip in (True, False)]
        for tokenizer in (ours, reference)
    ]
    ours_all, theirs_all = (list(zip(ids[side], *again[side], strict=True)) for side in (0, 1))
    return [text for text, one, other in zip(texts, ours_all, theirs_all, strict=True) if one != other]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_texts_are_transformers_own(family: str) -> None:
    texts = corpus_texts.texts([END, START, TOOL, *SPECIAL, "<td>", "<bos>", "\n\n", "    "])
    assert len(texts) > 2000
    assert differing(*pair_of(family), texts) == []


@given(st.text(st.one_of(st.characters(), st.sampled_from(" \n\t▁'1aé")), max_size=30))
def test_ids_of_any_text_are_transformers_own(text: str) -> None:
    for family in FAMILIES:
        assert not differing(*pair_of(family), [text]), family


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_merges_stand_in_transformers_order(family: str) -> None:
    ours, reference = (json.loads(each.to_str())["model"]["merges"] for each in pair_of(family))
    assert ours == reference


@pytest.mark.parametrize("family", ["smollm", "qwen2", "llama3", "no space before", "gemma"])
def test_the_texts_tell_one_family_from_another(family: str) -> None:
    plain = pair_of("gpt2" if family in BYTE_LEVEL else "llama2")[0]
    assert len(differing(pair_of(family)[0], plain, corpus_texts.texts())) > 50


def test_the_texts_tell_scores_from_others() -> None:
    backwards = vocabulary.read(sentencepiece(float), "a")
    assert len(differing(backwards, pair_of("llama2")[0], corpus_texts.texts())) > 50


def test_patterns_are_those_that_transformers_knows() -> None:
    known = {name: pattern for name, pattern in theirs.GGUF_PRE_TOKENIZER_SPLITS.items() if name in SPLITS}
    assert {name: SPLITS[name].pattern for name in known} == known
    assert {name for name, split in SPLITS.items() if split.pattern} <= known.keys()


def test_nothing_is_cut_or_padded() -> None:
    for family in ("gpt2", "llama2"):
        ours = pair_of(family)[0]
        assert ours.truncation is None
        assert ours.padding is None


def test_what_stands_around_a_text() -> None:
    end = sentencepiece(add_eos_token=True)
    assert vocabulary.read(end, "a").encode("").ids == [1, 2]
    assert vocabulary.read(end, "a").encode("x", add_special_tokens=False).ids[0] not in (1, 2)
    unnamed = {key: value for key, value in end.items() if "bos" not in key and "eos" not in key}
    assert vocabulary.read(unnamed, "a").encode("").ids == []


def test_named_tokens_are_special_whatever_their_type() -> None:
    metadata = byte_level("gpt-2")
    metadata["tokenizer.ggml.token_type"] = [1] * len(metadata["tokenizer.ggml.tokens"])
    tokenizer = vocabulary.read(metadata, "a")
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    assert added == {START, END}


def without(name: str) -> Callable[[Metadata], None]:
    return lambda metadata: metadata.pop(f"tokenizer.ggml.{name}") and None


def put(name: str, value: Any) -> Callable[[Metadata], None]:
    return lambda metadata: metadata.update({f"tokenizer.ggml.{name}": value})


def changed(name: str, change: Callable[[list[Any]], Any]) -> Callable[[Metadata], None]:
    """A list of the file's with something done to it."""

    def spoil(metadata: Metadata) -> None:
        values = list(metadata[f"tokenizer.ggml.{name}"])
        change(values)
        metadata[f"tokenizer.ggml.{name}"] = values

    return spoil


BROKEN: dict[str, tuple[Callable[[], Metadata], Callable[[Metadata], None], str]] = {
    "no model": (sentencepiece, without("model"), r"tokenizer.ggml.model None, and read are 'gpt2'"),
    "model t5": (sentencepiece, put("model", "t5"), r"tokenizer.ggml.model 't5', and read are 'gpt2'"),
    "model a number": (sentencepiece, put("model", 3), r"tokenizer.ggml.model 3, and allowed is a word"),
    "pre unknown": (lambda: byte_level("gpt-2"), put("pre", "poro-chat"), r"pre 'poro-chat', and known are command-r"),
    "pre a list": (lambda: byte_level("gpt-2"), put("pre", ["qwen2"]), r"pre \['qwen2'\], and allowed is a word"),
    "no tokens": (sentencepiece, without("tokens"), "no tokenizer.ggml.tokens"),
    "empty tokens": (sentencepiece, put("tokens", []), "no tokenizer.ggml.tokens"),
    "tokens a word": (sentencepiece, put("tokens", "abc"), "tokens with 'abc', and allowed is a list of str"),
    "a token of bytes": (sentencepiece, changed("tokens", lambda v: v.append(b"x")), "tokens with b'x'"),
    "a token twice": (sentencepiece, changed("tokens", lambda v: v.append("<s>")), "'<s>' twice, as 1 and as"),
    "a token too long": (sentencepiece, changed("tokens", lambda v: v.append("x" * 5000)), "of 5000 characters"),
    "half a character": (sentencepiece, changed("tokens", lambda v: v.__setitem__(300, "\ud800")), "no tokenizer"),
    "a type too many": (sentencepiece, changed("token_type", lambda v: v.append(1)), r"token_type of \d+ entries and"),
    "a type of 9": (sentencepiece, changed("token_type", lambda v: v.__setitem__(0, 9)), "token_type with 9, and"),
    "a type true": (sentencepiece, changed("token_type", lambda v: v.__setitem__(0, True)), "token_type with True"),
    "no scores": (sentencepiece, without("scores"), "no tokenizer.ggml.scores"),
    "a score too few": (sentencepiece, changed("scores", lambda v: v.pop()), r"scores of \d+ entries and \d+ tokens"),
    "a score NaN": (sentencepiece, changed("scores", lambda v: v.__setitem__(5, math.nan)), "isn't finite"),
    "a score a word": (sentencepiece, changed("scores", lambda v: v.__setitem__(5, "x")), "scores with 'x'"),
    "no merges": (lambda: byte_level("gpt-2"), without("merges"), "no tokenizer.ggml.merges"),
    "a merge of one": (lambda: byte_level("gpt-2"), changed("merges", lambda v: v.append("ab")), "the merge 'ab'"),
    "a merge of none": (lambda: byte_level("gpt-2"), changed("merges", lambda v: v.append("q zzz")), "'q zzz'"),
    "a merge of three": (lambda: byte_level("gpt-2"), changed("merges", lambda v: v.append("a b c")), "'a b c'"),
    "a merge without result": (
        lambda: byte_level("gpt-2"), changed("merges", lambda v: v.append(f"{END} a")), "the merge '<|endoftext|> a'",
    ),
    "bos beyond the end": (sentencepiece, put("bos_token_id", 10**6), "bos_token_id 1000000, and allowed is a whole"),
    "eos below zero": (sentencepiece, put("eos_token_id", -1), "eos_token_id -1, and allowed is a whole number from 0"),
    "unknown a word": (sentencepiece, put("unknown_token_id", "0"), "unknown_token_id '0', and allowed is"),
    "add_bos a number": (sentencepiece, put("add_bos_token", 1), "add_bos_token 1, and allowed is true or false"),
    "prefix a word": (sentencepiece, put("add_space_prefix", "no"), "add_space_prefix 'no', and allowed is true"),
    "alike in Gemma": (gemma, changed("tokens", lambda v: v.__setitem__(-1, "▁▁")), "alike when a space is ▁"),
    "too many merges": (
        lambda: said("llama", ["a" * n for n in range(1, 200)], scores=[0.0] * 199), lambda metadata: None,
        "in more than 3184 ways",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_one_line(case: str) -> None:
    make, spoil, message = BROKEN[case]
    metadata = make()
    spoil(metadata)
    with pytest.raises(NotAModel, match=message) as error:
        vocabulary.read(metadata, "some/model.gguf")
    assert str(error.value).startswith("some/model.gguf ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 300), st.floats(), st.text(max_size=8), st.lists(st.text(max_size=3)),
    st.sampled_from(["gpt2", "llama", "▁", " ", "a b"]),
)  # fmt: skip


@given(st.data())
def test_spoilt_metadata_is_read_or_refused(data: st.DataObject) -> None:
    small = said(
        "llama",
        [*SPECIAL, *"▁abc", "ab", "  ", "", "\ud7ff"],
        scores=[0.0] * 11, token_type=[2, 3, 3] + [1] * 5 + [3] * 3, merges=["a b"], bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    metadata: Metadata = {**small, "general.architecture": data.draw(st.sampled_from(["llama", "gemma2", "phi3"]))}
    metadata["tokenizer.ggml.model"] = data.draw(st.sampled_from(["gpt2", "llama"]))
    for _ in range(data.draw(st.integers(0, 3))):
        key = data.draw(st.sampled_from(sorted(metadata)))
        value = metadata[key]
        if isinstance(value, list) and value and data.draw(st.booleans()):
            metadata[key] = [*value]
            metadata[key][data.draw(st.integers(0, len(value) - 1))] = data.draw(ODD)
        elif data.draw(st.booleans()):
            metadata[key] = data.draw(ODD)
        else:
            del metadata[key]
    try:
        tokenizer = vocabulary.read(metadata, "a.gguf")
    except NotAModel as error:
        said_of_it = str(error)
    else:
        said_of_it = ""
        assert all(0 <= index < 11 for index in tokenizer.encode("ab  <s> abc\n▁▁").ids)
    assert "\n" not in said_of_it


def test_an_empty_token_keeps_its_id() -> None:
    metadata: Mapping[str, Any] = said("llama", ["<unk>", "", "a", "▁"], scores=[0.0] * 4, token_type=[2, 3, 1, 1])
    assert vocabulary.read(metadata, "a").encode("a").ids == [3, 2]
