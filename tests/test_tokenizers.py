"""Token ids are those of transformers' AutoTokenizer for every folder, or the folder is refused; so is what breaks."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import gpt2, greedy, letters, save, save_tokenizer, sybil
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    Qwen2Tokenizer,
)

from sybil import Decoder
from sybil.errors import InvalidSetting, NotAModel
from sybil.loading import load
from sybil.models.checkpoints import tokenizers
from sybil.models.checkpoints.autotokenizer import _QWEN
from sybil.models.folders import plain
from sybil.text import TextStream, decode, encode

END = "<|endoftext|>"
TEXTS = (
    "ab a b", "  ab 12 123\n\tab", f"<s>ab</s> {END}x", f"{END} ab", "<extra>ab <tool>b [NEW]", "é e\u0301 漢 ab",
    "<|padding|> ab", "[CLS]ab[SEP]",
)  # fmt: skip
MERGES = [("a", "b"), ("Ġ", "a"), ("1", "2")]


def byte_level(**options: Any) -> Tokenizer:
    """Bytes, three merges, an end token after them."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"".join(pair): len(vocabulary) + index for index, pair in enumerate(MERGES)}
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES, **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([END, "<|padding|>"])
    return tokenizer


def split_by(pattern: str) -> Tokenizer:
    """As Llama 3 and Qwen have it."""
    tokenizer = byte_level()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return tokenizer


def composed(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2's hub folders have it."""
    tokenizer = Tokenizer(
        models.BPE(PIECES, [("a", "b"), ("▁", "ab")], byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -1.0), ("a", -2.0), ("b", -2.5), ("▁ab", -3.1)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


_LLAMA = _QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
PIECES = {
    piece: index
    for index, piece in enumerate(
        ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ab12", "ab", "▁ab", "<pad>", "<mask>"]
    )
}
BYTES = byte_level().get_vocab(with_added_tokens=False)
WORDS = {
    word: index for index, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "a", "##b", "ab", "1"])
}
SPM = [("a", "b"), ("▁", "ab")]
SAVED: dict[str, tuple[str, Callable[[], Any]]] = {  # a model_type, and what transformers saves
    "gpt2": ("gpt2", lambda: GPT2Tokenizer(BYTES | {END: 259}, MERGES)),
    "opt": ("opt", lambda: GPT2Tokenizer(BYTES | {END: 259}, MERGES, bos_token="</s>", add_prefix_space=True)),
    "neox": ("gpt_neox", lambda: GPTNeoXTokenizer(BYTES | {END: 259, "<|padding|>": 260}, MERGES)),
    "qwen2": ("qwen2", lambda: Qwen2Tokenizer(BYTES, MERGES)),
    "qwen3": ("qwen3", lambda: Qwen2Tokenizer(BYTES, MERGES)),
    "llama": ("llama", lambda: LlamaTokenizer(PIECES, SPM)),
    "mistral": ("mistral", lambda: LlamaTokenizer(PIECES, SPM, legacy=True)),
    "gemma": ("gemma", lambda: GemmaTokenizer(PIECES, SPM)),
    "bert": ("gpt2", lambda: BertTokenizer(WORDS)),
}
LAID: dict[str, tuple[str, dict[str, Any], Callable[[], Tokenizer]]] = {  # and tokenizer_config.json, as on the hub
    "gpt2 hub": ("gpt2", {"model_max_length": 1024}, byte_level),
    "opt hub": ("opt", {"tokenizer_class": "GPT2Tokenizer", "errors": "replace", "add_bos_token": True}, byte_level),
    "pythia hub": ("gpt_neox", {"tokenizer_class": "GPTNeoXTokenizer"}, lambda: composed(byte_level())),
    "qwen2 hub": ("qwen2", {"tokenizer_class": "Qwen2Tokenizer"}, lambda: composed(split_by(_QWEN))),
    "qwen3 hub": ("qwen3", {"bos_token": None}, lambda: composed(split_by(_QWEN))),
    "llama 3 hub": ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}, lambda: split_by(_LLAMA)),
    "deepseek hub": ("llama", {"tokenizer_class": "LlamaTokenizerFast"}, lambda: split_by(_QWEN)),
    "mistral hub": ("mistral", {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}, byte_fallback),
    "phi3 hub": ("phi3", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, byte_fallback),
    "llama 2 hub": ("llama", {"tokenizer_class": "LlamaTokenizer", "legacy": False}, byte_fallback),
    "smollm hub": ("llama", {"tokenizer_class": "GPT2Tokenizer"}, byte_level),
    "unigram": ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}, unigram),
    "one's own": ("gpt2", {}, letters),
}  # fmt: skip
NEW = {
    "content": "[NEW]",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": False,
}
Files = dict[str, dict[str, Any]]


def with_setting(name: str, value: Any) -> Callable[[Files, Tokenizer], None]:
    def change(content: Files, held: Tokenizer) -> None:
        content["tokenizer_config.json"][name] = value

    return change


def with_added_file(content: Files, held: Tokenizer) -> None:
    content["added_tokens.json"] = {"[NEW]": max(held.get_vocab().values()) + 1}


def with_special_map(content: Files, held: Tokenizer) -> None:
    content["special_tokens_map.json"] = {"eos_token": "<extra>", "additional_special_tokens": ["<tool>"]}


def with_listed(more: Mapping[str, Any], beyond: int = 1) -> Callable[[Files, Tokenizer], None]:
    """added_tokens_decoder of tokenizer_config.json, and one more."""

    def change(content: Files, held: Tokenizer) -> None:
        names = ("content", "lstrip", "rstrip", "normalized", "single_word", "special")
        listed = {
            str(index): {name: getattr(token, name) for name in names}
            for index, token in held.get_added_tokens_decoder().items()
        }
        if more:
            listed[str(max(held.get_vocab().values()) + beyond)] = dict(more)
        content["tokenizer_config.json"]["added_tokens_decoder"] = listed

    return change


def without_settings(content: Files, held: Tokenizer) -> None:
    del content["tokenizer_config.json"]


CHANGES: dict[str, Callable[[Files, Tokenizer], None]] = {
    "as it is": lambda content, held: None,
    "no settings": without_settings,
    "added_tokens.json": with_added_file,
    "special_tokens_map.json": with_special_map,
    "listed": with_listed({}),
    "one more listed": with_listed(NEW),
    "one more special listed": with_listed(NEW | {"special": True, "lstrip": True}),
    "a hole": with_listed(NEW, 4),
    "extra_special_tokens": with_setting("extra_special_tokens", ["<tool>", {**NEW, "__type": "AddedToken"}]),
    "additional_special_tokens": with_setting("additional_special_tokens", ["<tool>"]),
    "named": with_setting("extra_special_tokens", {"image_token": "<extra>"}),
    "image_token": with_setting("image_token", "<extra>"),
    "bos_token": with_setting("bos_token", "<extra>"),
    "a common word": with_setting("sep_token", "ab"),
    "pad_token": with_setting("pad_token", END),
    "no unk_token": with_setting("unk_token", None),
    "add_bos_token": with_setting("add_bos_token", True),
    "add_eos_token": with_setting("add_eos_token", True),
    "add_prefix_space": with_setting("add_prefix_space", True),
    "legacy": with_setting("legacy", True),
    "split_special_tokens": with_setting("split_special_tokens", True),
    "another class": with_setting("tokenizer_class", "GemmaTokenizer"),
    "no such class": with_setting("tokenizer_class", "NoSuchTokenizer"),
    "unknown": with_setting("some_setting", 1),
    "bos_token is no token": with_setting("bos_token", 5),
    "remote code": with_setting("auto_map", {"AutoTokenizer": ["x.Slow", "x.Fast"]}),
}  # fmt: skip


def lay(folder: Path, kind: str) -> dict[str, Any]:
    """A folder's tokenizer, and the config.json that is returned."""
    folder.mkdir()
    if kind in SAVED:
        family, make = SAVED[kind]
        make().save_pretrained(folder)
    else:
        family, settings, build = LAID[kind]
        build().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": family}
    (folder / "config.json").write_text(json.dumps(config))
    return config


def rewrite(folder: Path, change: Callable[[Files, Tokenizer], None]) -> None:
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    content = {name: json.loads((folder / name).read_text()) for name in names if (folder / name).exists()}
    change(content, Tokenizer.from_file(str(folder / "tokenizer.json")))
    for name in names:
        (folder / name).unlink(missing_ok=True)
        if name in content:
            (folder / name).write_text(json.dumps(content[name]))


def ids(tokenize: Callable[[str], Any], text: str) -> list[int] | str:
    """Of a tokenizer of either library."""
    try:
        encoded = tokenize(text)
        return list(encoded.ids if hasattr(encoded, "ids") else encoded.input_ids)
    except Exception as error:  # a letter that a tokenizer has no token for, by the same words
        return str(error)


@pytest.mark.parametrize("kind", [*SAVED, *LAID])
def test_ids_are_auto_tokenizer_s(kind: str, tmp_path: Path) -> None:
    compared = 0
    for name, change in CHANGES.items():
        folder = tmp_path / name
        config = lay(folder, kind)
        rewrite(folder, change)
        try:
            theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception:
            with pytest.raises(NotAModel) as refused:
                tokenizers.read(folder, config)
            assert "\n" not in str(refused.value)
            continue
        ours = tokenizers.read(folder, config)
        for text in TEXTS:
            assert ids(ours.encode, text) == ids(theirs, text), (name, text)
        assert ours.get_vocab(with_added_tokens=True) == theirs.get_vocab(), name
        compared += 1
    assert compared > len(CHANGES) / 2


ORDINARY = (
    "gpt2", "opt", "neox", "qwen3", "gpt2 hub", "opt hub", "pythia hub", "qwen2 hub", "qwen3 hub", "llama 3 hub",
    "deepseek hub", "mistral hub", "phi3 hub", "smollm hub", "unigram",
)  # fmt: skip


@pytest.mark.parametrize("kind", ORDINARY)
def test_transformers_is_not_asked_for_ordinary_folders(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "_by_transformers", lambda *_: pytest.fail("transformers was asked"))
    config = lay(tmp_path / "0", kind)
    tokenizers.read(tmp_path / "0", config)
    rewrite(tmp_path / "0", with_listed({}))
    tokenizers.read(tmp_path / "0", config)


def test_the_embedded_pair_does_without_transformers() -> None:
    program = (
        "import sys, sybil\n"
        "out = sybil.load('stdlib').generate('def main(', max_new_tokens=4)\n"
        "assert out.text[0] and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def spelt(**parts: Any) -> dict[str, Any]:
    """The letters' tokenizer.json with other parts."""
    whole: dict[str, Any] = json.loads(letters().to_str())
    model = whole["model"] | parts.pop("model", {})
    return whole | {"model": model} | parts


def charsmap(*numbers: int, length: int | None = None) -> dict[str, str]:
    """SentencePiece's map of characters, whose trie is of these numbers; length: what it says of itself, in bytes."""
    size = 4 * len(numbers) if length is None else length
    blob = struct.pack(f"<{1 + len(numbers)}I", size, *numbers) + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


BREAKING: dict[str, dict[str, Any]] = {  # in Rust, at loading or with any text
    "a merge shorter than its prefix": spelt(model={"merges": ["a b"], "continuing_subword_prefix": "longer"}),
    "pieces of no letter": spelt(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "a template of a token that it lacks": spelt(
        post_processor={
            "type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{"SpecialToken": {"id": "<zz>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        }
    ),
    "a template of two texts": spelt(
        post_processor={
            "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {},
            "single": [{"Sequence": {"id": "B", "type_id": 0}}],
        }
    ),
    "more letters off the end than there are": spelt(decoder={"type": "Strip", "content": "e", "start": 1, "stop": 9}),
    "an unknown piece that isn't there": spelt(
        model={"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0], ["b", -2.0]], "byte_fallback": False}
    ),
    "a map of no characters": spelt(normalizer=charsmap(0)),
    "a map that is no base64": spelt(normalizer={"type": "Precompiled", "precompiled_charsmap": "A"}),
    "a map that is missing": spelt(normalizer={"type": "Precompiled"}),
    "a map that asks for 4 GB": spelt(normalizer=charsmap(0, length=2**32 - 4)),
    "such a map further in": spelt(normalizer={"type": "Sequence", "normalizers": [charsmap(0, length=2**32 - 4)]}),
    "an id beyond all memory": spelt(model={"vocab": {"a": 2**32 - 1, "b": 0}}),
    "a negative id": spelt(model={"vocab": {"a": -1, "b": 0}}),
    "a vocabulary that is none": spelt(model={"vocab": 5}),
    "no model": {"version": "1.0"},
    "a regular expression that is none": spelt(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(gpt2(), tmp_path / "model")


def one_line(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says of itself; a panic of Rust's has put its own words before."""
    capfd.readouterr()
    assert sybil("generate", *arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("sybil: ")]
    assert len(lines) == 1
    assert "unforeseen" not in lines[0]
    return lines[0]


@pytest.mark.parametrize("name", BREAKING)
def test_a_tokenizer_that_breaks_the_library(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(BREAKING[name]))
    assert "tokenizer.json" in one_line(capfd, "abc", "--target", folder)


def test_what_is_checked_stands_behind_a_twin_as_well(folder: Path) -> None:
    text = json.dumps(spelt(normalizer={"type": "NFC"}))
    twin = f'{{"normalizer": {json.dumps(charsmap(0, length=2**32 - 4))}, {text[1:]}'
    (folder / "tokenizer.json").write_text(twin)
    with pytest.raises(NotAModel, match="cut short"):
        load(folder)


def test_a_text_that_breaks_the_library(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(spelt(normalizer=charsmap(*[0] * 235))))
    decoder = load(folder, dtype="float64")
    decoder.generate("abc", max_new_tokens=1)
    with pytest.raises(NotAModel, match="can't encode the text"):
        decoder.generate("a \U0001f600", max_new_tokens=1)
    assert "can't encode the text" in one_line(capfd, "a \U0001f600", "--target", folder)


def test_tokens_that_break_the_library(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    [last] = load(folder, dtype="float64").generate("cab", max_new_tokens=1).tokens[0].tolist()
    nothing = {"type": "Replace", "pattern": {"String": letters().id_to_token(last)}, "content": ""}
    strip = {"type": "Strip", "content": " ", "start": 0, "stop": 1}
    spoilt = spelt(decoder={"type": "Sequence", "decoders": [nothing, strip]})
    (folder / "tokenizer.json").write_text(json.dumps(spoilt))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for give_up in (
        lambda: decode(tokenizer, [last]),
        lambda: TextStream(tokenizer).push([last]),
        lambda: Decoder(load(folder).target, None, tokenizer).generate("cab", max_new_tokens=1),
    ):
        with pytest.raises(NotAModel, match="can't decode the tokens"):
            give_up()
    arguments = ("cab", "--target", folder, "--dtype", "float64", "--max-new-tokens", 1)
    assert "can't decode the tokens" in one_line(capfd, *arguments)


def test_ids_beyond_the_model_s_vocabulary_and_ids_with_holes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    holes = {"a": 1, "b": 5, "c": 30, "d": 31, "e": 4000}
    save_tokenizer(Tokenizer(models.WordLevel(holes, unk_token="a")), folder)
    decoder = load(folder, dtype="float64")
    for text in ("d", "e"):
        with pytest.raises(InvalidSetting, match=f"from {holes[text]} to {holes[text]}"):
            decoder.generate(text)
        assert "the target's vocabulary is 0 to 30" in one_line(capfd, text, "--target", folder)
    out = decoder.generate("c", max_new_tokens=4, eos_token_id=[])
    assert out.tokens[0].tolist() == greedy(gpt2(), torch.tensor([30]), 4)
    assert out.text == [decoder.tokenizer.decode(out.tokens[0].tolist())]  # type: ignore[union-attr]


def test_a_tokenizer_that_splits_special_tokens_is_copied_so() -> None:
    tokenizer = byte_level()
    tokenizer.encode_special_tokens = True
    assert plain(tokenizer).encode(f"{END}ab").ids == tokenizer.encode(f"{END}ab").ids  # type: ignore[union-attr]
    assert len(encode(tokenizer, END)) > 1
