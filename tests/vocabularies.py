"""Small tokenizers, one of every kind that decodes in its own way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ("<|im_end|>", "<s>")
ADDED = ("<think>", "ab ")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["ab", "stop", "sto", "op", "p", "pped", "é", "n", "\n", "\n\n", "User", ":", ".", " ", "  ", "日", "�"]


def _finished(tokenizer: Tokenizer) -> Tokenizer:
    """Add special tokens, which decoding skips, and other added tokens."""
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(list(ADDED))
    return tokenizer


def _of(vocabulary: Sequence[str], decoder: decoders.Decoder, unknown: str | None = None) -> Tokenizer:
    words = dict.fromkeys([*([unknown] if unknown else []), *LETTERS, *vocabulary])
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoder
    return _finished(tokenizer)


def bytes_alone() -> Tokenizer:
    """A token for each byte, so every character beyond ASCII is split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_level(pieces: Sequence[str] = PIECES) -> Tokenizer:
    """GPT-2's kind: all bytes, and tokens of several bytes, which may begin and end inside a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [level.pre_tokenize_str(piece)[0][0] for piece in pieces]
    halves = [word[:cut] for word in words for cut in range(1, len(word))] + [word[1:] for word in words]
    vocabulary = dict.fromkeys(filter(None, [*alphabet, *words, *halves, "日", words[0] + words[-1]]))
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = level
    tokenizer.decoder = decoders.ByteLevel()
    return _finished(tokenizer)


def _metaspace(pieces: Sequence[str]) -> list[str]:
    return [piece.replace(" ", "▁") for piece in pieces] + ["▁", "▁▁", "▁ab", "▁stop", "p▁", "s▁t"]


def byte_fallback(pieces: Sequence[str] = PIECES, strip: bool = True) -> Tokenizer:
    """Llama's kind: metaspace, a token for each byte, and a space cut off the text's beginning."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    return _of([f"<0x{byte:02X}>" for byte in range(256)] + _metaspace(pieces), decoders.Sequence(steps), "<unk>")


def sentencepiece(pieces: Sequence[str] = PIECES) -> Tokenizer:
    """T5's kind: metaspace alone."""
    return _of(_metaspace(pieces), decoders.Metaspace(), "<unk>")


def wordpiece(pieces: Sequence[str] = PIECES, cleanup: bool = True) -> Tokenizer:
    """BERT's kind."""
    vocabulary = [*(f"##{piece}" for piece in pieces), *(f"##{letter}" for letter in LETTERS), "'s", "n't", "##"]
    words = dict.fromkeys(["[UNK]", *LETTERS, *pieces, *vocabulary])
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    return _finished(tokenizer)


def suffixed(pieces: Sequence[str] = PIECES) -> Tokenizer:
    """GPT's and CLIP's kind."""
    return _of([*pieces, *(f"{piece}</w>" for piece in pieces), "x</w>y", "</w>", "a</w></w>"], decoders.BPEDecoder())


def ctc(pieces: Sequence[str] = PIECES) -> Tokenizer:
    """Wav2Vec2's kind: a token that comes twice counts once."""
    return _of([*pieces, "<pad>", "|"], decoders.CTC())


def letters_alone(pieces: Sequence[str] = ()) -> Tokenizer:
    return _of(pieces, decoders.Fuse())


def without_decoder(pieces: Sequence[str] = PIECES) -> Tokenizer:
    """Words without a decoder: any two are joined by a space."""
    words = dict.fromkeys([*LETTERS, *pieces, "abcdef"])
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="a"))
    return _finished(tokenizer)


def few_letters() -> Tokenizer:
    """A tokenizer without the letters that transformers puts before a token to find out what the token adds."""
    tokenizer = Tokenizer(models.WordLevel({"xyz": 0, "##st": 1, "op": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def odd() -> Tokenizer:
    """A decoder that may change text from long before: it joins the tokens first, and replaces then."""
    return _of(PIECES, decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "<>")]))


def stripped() -> Tokenizer:
    """A decoder that strips both sides of each token, and then of the text."""
    steps = [decoders.Strip("p", 1, 0), decoders.Fuse(), decoders.Strip(" ", 2, 0)]
    return _of(PIECES, decoders.Sequence(steps))


def replaced() -> Tokenizer:
    return _of(PIECES, decoders.Sequence([decoders.Replace("st", ""), decoders.WordPiece(), decoders.Fuse()]))


MAKERS: dict[str, Callable[[Sequence[str]], Tokenizer]] = {
    "byte-level": byte_level,
    "byte fallback": byte_fallback,
    "metaspace": sentencepiece,
    "wordpiece": wordpiece,
    "suffix": suffixed,
    "ctc": ctc,
    "letters": letters_alone,
    "no decoder": without_decoder,
}
KINDS = {
    "byte-level": byte_level(),
    "byte fallback": byte_fallback(),
    "byte fallback, unstripped": byte_fallback(strip=False),
    "metaspace": sentencepiece(),
    "wordpiece": wordpiece(),
    "wordpiece, no clean-up": wordpiece(cleanup=False),
    "suffix": suffixed(),
    "ctc": ctc(),
    "letters": letters_alone(),
    "no decoder": without_decoder(),
    "stripped": stripped(),
    "replaced": replaced(),
}
STREAMED = {**KINDS, "few letters": few_letters(), "odd": odd()}


CORPUS = [
    "The stop sign stood at the corner, and nobody stopped. Don't stop the stopping of the stopped!",
    "def main(arguments):\n    return [each for each in arguments if each]\n\n\n    # 12345 of 678",
    "naïve café, déjà vu; 日本語のテキスト, 日本 and 中文文本; 😀😀 smile 😁 😂   spaces    and\ttabs\r\n",
    "international internationalization of nations, national and irrational rationales",
] * 3


def _trained_byte_level() -> Tokenizer:
    """GPT-2's kind with merges that are trained here, and words cut by its regular expression."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)  # type: ignore[call-arg]
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finished(tokenizer)


def _trained_sentencepiece(prefix: bool = False) -> Tokenizer:
    """Llama's kind, or Gemma's, which puts no space before a text: merges over whole texts, and a token for each
    byte."""
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False, max_token_length=16)  # type: ignore[call-arg]
    learned.train_from_iterator(CORPUS, trainer)
    state = json.loads(learned.to_str())["model"]
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(state["vocab"], key=state["vocab"].get)]
    ids, merges = {word: token for token, word in enumerate(words)}, [(left, right) for left, right in state["merges"]]
    tokenizer = Tokenizer(models.BPE(ids, merges, byte_fallback=True, unk_token="<unk>"))
    spaces, steps = normalizers.Replace(" ", "▁"), [decoders.Replace("▁", " "), decoders.ByteFallback()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    ending = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Fuse(), *ending])
    return _finished(tokenizer)


def turned(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokens under other ids: the last comes first."""
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {word: len(vocabulary) - 1 - token for word, token in vocabulary.items()}
    return Tokenizer.from_str(json.dumps(state))


TRAINED: dict[str, Callable[[], Tokenizer]] = {
    "trained byte-level": _trained_byte_level,
    "trained byte fallback": _trained_sentencepiece,
    "trained byte fallback with a space": lambda: _trained_sentencepiece(prefix=True),
}
