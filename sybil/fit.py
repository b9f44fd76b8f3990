"""Do a target and a draft fit each other?"""

from __future__ import annotations

from tokenizers import Tokenizer

from sybil.errors import VocabularyMismatch
from sybil.models.folders import Checkpoint


def differing_tokens(one: Tokenizer, other: Tokenizer) -> int:
    """How many entries (text and id) only one of two vocabularies has; 0 where they are the same."""
    return len(one.get_vocab(with_added_tokens=True).items() ^ other.get_vocab(with_added_tokens=True).items())


def check_vocabularies(target: Checkpoint, draft: Checkpoint, sizes: tuple[int, int]) -> None:
    """Same tokens, or VocabularyMismatch. Padding beyond a shared tokenizer is no difference.

    sizes: how many logits the target's and the draft's model have."""
    if target.tokenizer is not None and draft.tokenizer is not None:
        differing = differing_tokens(target.tokenizer, draft.tokenizer)
        sizes = target.tokenizer.get_vocab_size(), draft.tokenizer.get_vocab_size()
    else:
        differing = abs(sizes[0] - sizes[1])
    if differing:
        raise VocabularyMismatch(
            f"target {target.name} has {sizes[0]} tokens and draft {draft.name} {sizes[1]}, "
            f"{differing} of them not the same: choose a draft with the target's tokenizer"
        )
