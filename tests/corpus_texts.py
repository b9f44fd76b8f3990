"""Texts of every kind that a tokenizer meets: code, prose, many scripts, odd white space, special tokens. They are
always the same: they are made of Python's own sources and of what is written here."""

# ruff: noqa: RUF001 - letters that look like others are what is wanted here

from __future__ import annotations

import argparse
import difflib
import random
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

WORDS = (
    *("The", "quick", "don't", "I'LL", "we've", "HTTPServer", "camelCase", "snake_case", "naïve", "Übergröße", "x"),
    *("中文字符", "你好，世界！", "東京タワー", "ひらがな", "カタカナ", "한국어", "العربية", "עברית"),
    *("हिन्दी", "ไทย", "Ελληνικά", "русский", "é", "e\u0301", "Å", "A\u030a", "ﬁ"),
    *("①②", "½", "٣٤", "Ⅷ", "0", "7", "42", "12345", "3.14", "1e-9", "0x1F", "2026"),
    *(
        "👍",
        "👍🏽",
        "👩\u200d👩\u200d👧\u200d👦",
        "🏳️\u200d🌈",
        "🇩🇪",
        "☺️",
        "…",
        "—",
        "«»",
        "“”",
        "!!!",
        "?!",
        "->",
        "==",
    ),
    *("{}", "();", "</p>", "\\n", "\u200b", "\u200d", "\ufeff", "\x00", "\x07", "\x1b[0m", "\x7f", "\u202e"),
    *("\ufffd", "\U0010ffff", "\u2581", "▁▁", "Ġ"),
)
BLANKS = (
    *(" ", " ", " ", " ", "  ", "   ", " " * 17, "\t", "\t\t", "\n", "\n\n", "\r\n", " \n ", ""),
    *("\u00a0", "\u3000", "\u2028", "\v", "\f"),
)
WRITTEN = (
    *("", " ", "  ", "\n", "\n\n\n", "\t", " x", "x ", "  x  ", "\u00a0", "a\u00a0b", "\r", "\r\n\r\n", "\n x", " \n"),
    *("1", "12", "123", "1234", " 1", "  1", "\t\t12", "1 2 3", "1,234.56", "２０２６", "x1y22z333", "²³", "10%"),
    *("-5", "(1)", "x\n\n1. y", "it's", "IT'S", "it’s", "'s", "'", "''", "we'll've", "l'été", "O'Neil", "'tis"),
    *("▁", "▁▁▁", " ▁ ", "<0x0A>", "<0xE4>", "<unk>", "<s>", "</s>", "< s >", "<|endoftext|>", "<|", "|>", "<s"),
    *(
        "[UNK]",
        "日本語とEnglishの混在123。",
        "ＦＵＬＬ　ＷＩＤＴＨ",
        "a" * 300,
        "ab" * 200,
        " " * 100,
        "\n" * 40,
        "=" * 90,
    ),
    *("\u0301", "\u0301\u0301e", "Ελλάδα και ΟΔΥΣΣΕΎΣ", "İstanbul ıI", "ǅ ǆ", "ſt ﬀ", "한글 ㅎㅏㄴ"),
    *("क्षत्रिय", "สวัสดีครับ", "שָׁלוֹם", "السَّلامُ عَلَيْكُم"),
    *("def f(x):\n    return x + 1\n", "if (a && b) { c[0] = 'd'; }\n", "SELECT * FROM t WHERE a=1;--", "\\frac{1}{2}"),
    *("http://example.org/a?b=c&d=%20#e", "user@example.org", "C:\\Users\\x", "~/.config", "#!/bin/sh\n"),
    *("rock 'n' roll", "<table><td>1</td></table>"),
)


@cache
def _code() -> tuple[str, ...]:
    """Lines of Python, unchanged, and pieces of twenty lines."""
    lines = [
        line
        for module in (argparse, textwrap, difflib)
        for line in Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
    ]
    return (*lines[:2500:2], *("\n".join(lines[start : start + 20]) for start in range(0, 2000, 20)))


@cache
def _prose() -> tuple[str, ...]:
    """Paragraphs of documentation."""
    documents = [module.__doc__ or "" for module in (argparse, difflib, unicodedata, random)]
    return tuple(part for document in documents for part in document.split("\n\n"))


def _mixed(rng: random.Random, words: Sequence[str]) -> Iterator[str]:
    for _ in range(900):
        text = "".join(rng.choice(words) + rng.choice(BLANKS) for _ in range(rng.randrange(1, 12)))
        yield unicodedata.normalize(rng.choice(("NFC", "NFD")), text) if rng.random() < 0.5 else text


def plain() -> list[str]:
    """Prose and code as people write them, without oddities."""
    return [*_prose(), *_code()]


def texts(specials: Sequence[str] = ()) -> list[str]:
    """More than two thousand texts. specials: tokens of a vocabulary that some texts contain."""
    rng = random.Random(2026)
    named = [form for token in specials for form in (token, f"a{token}b", f" {token} ", f"{token}{token}\n{token}")]
    mixed = [*_mixed(rng, WORDS), *_mixed(rng, [*WORDS, *specials[:40] * 2])][: 1800 if specials else 900]
    return [*WRITTEN, *named[:400], *mixed, *plain()]
