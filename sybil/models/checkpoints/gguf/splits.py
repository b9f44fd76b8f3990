"""The ways in which byte-level tokenizers cut a text into words before they merge bytes.

A GGUF file names its way in `tokenizer.ggml.pre`. The names are llama.cpp's. What each stands for is taken from the
tokenizer.json of the models of that name. transformers 5.23 reads GGUF files differently in three points: it cuts
`smollm`, `refact`, `starcoder` and `command-r` as GPT-2, where a digit isn't a word by itself; it leaves NFC out; and
it merges the bytes of words that are tokens already."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
_QWEN_2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
_QWEN_35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = r"[^\r\n\p{L}\p{N}]?" + _UPPER  # capitals and then small letters: camelCase is two words
_TEKKEN = rf"{_WORD}*{_LOWER}+|{_WORD}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
_GPT_4O = (
    rf"{_WORD}*{_LOWER}+{_CONTRACTIONS}?|{_WORD}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
)


@dataclass(frozen=True, slots=True)
class Split:
    """One way to cut a text into words.

    pattern: a regular expression for a word; GPT-2's where it is empty. digits: whether each digit is a word by itself.
    composes: whether the text is brought to NFC first. whole: whether a word that is a token is taken as it is, and not
    merged from its bytes. begins: whether the beginning-of-text token is put before a text, where the file doesn't
    say."""

    pattern: str = ""
    digits: bool = False
    composes: bool = False
    whole: bool = False
    begins: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """What is done to a text before it is cut; None for nothing."""
        return normalizers.NFC() if self.composes else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """What cuts a text into words, and writes each byte of a word as the letter that stands for it."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.pattern))
        return pre_tokenizers.Sequence(steps)


GPT_2 = Split()
SPLITS = {
    **dict.fromkeys(("default", "gpt2", "gpt-2", "phi-2", "granite-docling"), GPT_2),
    **dict.fromkeys(("olmo", "mpt"), Split(composes=True)),
    **dict.fromkeys(("smollm", "refact", "starcoder"), Split(digits=True)),
    "command-r": Split(digits=True, composes=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), Split(_LLAMA_3, whole=True, begins=True)),
    **dict.fromkeys(("falcon3", "falcon-h1", "pixtral", "lfm2"), Split(_LLAMA_3, whole=True)),
    **dict.fromkeys(("smaug-bpe", "dbrx"), Split(_LLAMA_3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Split(_QWEN_2, composes=True)),
    "qwen35": Split(_QWEN_35, composes=True),
    "tekken": Split(_TEKKEN, whole=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Split(_GPT_4O)),
}
