"""The ids of real models' GGUF files are transformers' own, on thousands of texts, and so is what ids decode to."""

from __future__ import annotations

from pathlib import Path

import corpus_texts
import pytest
from real import gemma_file, smollm2_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sybil.models.checkpoints.gguf import parts, vocabulary

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def differing(ours: Tokenizer, reference: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    """The texts whose ids aren't the same, with or without the tokens around them, or aren't the same text again."""

    def told(text: str) -> bool:
        ids = reference(text).input_ids
        bare = reference(text, add_special_tokens=False).input_ids
        return (
            ours.encode(text).ids == ids
            and ours.encode(text, add_special_tokens=False).ids == bare
            and all(
                ours.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)
                for skip in (True, False)
            )
        )

    return [text for text in texts if not told(text)]


def both(file: Path) -> tuple[Tokenizer, PreTrainedTokenizerBase, list[str]]:
    """Ours, theirs, and texts with many of the tokens in them that are looked for first."""
    ours = vocabulary.read(parts.read(file).metadata, file.name)
    added = [token.content for _, token in sorted(ours.get_added_tokens_decoder().items())]
    return (
        ours,
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name),
        corpus_texts.texts([*added[:60], *added[60::100], *added[-20:]]),
    )


def test_gemma() -> None:
    ours, theirs, texts = both(gemma_file())
    assert len(texts) > 3000
    assert ours.encode("a").ids[0] == ours.token_to_id("<bos>")
    assert differing(ours, theirs, texts) == []


def test_smollm2() -> None:
    """The file says `smollm`, whose tokenizer.json makes every digit a word. transformers 5 cuts as GPT-2 all the same,
    a folder as well as a GGUF file; transformers 4 didn't. Texts differ where several blanks stand before a number."""
    ours, theirs, texts = both(smollm2_file())
    assert len(texts) > 3000
    without = [text for text in texts if not any(map(str.isnumeric, text))]
    assert len(without) > 2000
    assert differing(ours, theirs, [*corpus_texts.plain(), *without]) == []
    backend = theirs.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), backend.pre_tokenizer])
    assert differing(ours, theirs, texts) == []
