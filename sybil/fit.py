"""Do a target and a draft fit each other? The one place where vocabularies are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from sybil.errors import VocabularyMismatch
from sybil.models.folders import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PADDED_TO, PADDING = 64, 1024  # logits are padded to a multiple of the one, by less than the other


def differing_tokens(one: Tokenizer, other: Tokenizer) -> int:
    """How many entries (text and id) only one of two vocabularies has; 0 where they are the same."""
    return len(one.get_vocab(with_added_tokens=True).items() ^ other.get_vocab(with_added_tokens=True).items())


def check_vocabularies(target: Checkpoint, draft: Checkpoint, sizes: tuple[int, int]) -> None:
    """Same tokens, or VocabularyMismatch. Padding beyond a shared tokenizer is no difference.

    sizes: how many logits the target's and the draft's model have."""
    if target.tokenizer is None or draft.tokenizer is None:
        return check_sizes((target.name, draft.name), sizes)
    differing = differing_tokens(target.tokenizer, draft.tokenizer)
    if differing:
        raise VocabularyMismatch(
            f"target {target.name} has {target.tokenizer.get_vocab_size()} tokens and draft {draft.name} "
            f"{draft.tokenizer.get_vocab_size()}, {differing} of them not the same: choose a draft with the target's "
            "tokenizer"
        )
    return None


def check_sizes(names: tuple[str, str], sizes: tuple[int, int]) -> None:
    """For models whose tokens nobody knows: as many logits, or one's padded to the other's, or VocabularyMismatch."""
    surplus = max(sizes) - min(sizes)
    if surplus and (max(sizes) % PADDED_TO or surplus >= PADDING):
        raise VocabularyMismatch(
            f"target {names[0]} has {sizes[0]} tokens and draft {names[1]} {sizes[1]}: choose a draft with the "
            "target's tokenizer, or say that it is shared with sybil.load(..., tokenizer=)"
        )


def check_assisted(target: PreTrainedModel, draft: PreTrainedModel, name: str) -> None:
    """Raises VocabularyMismatch for a draft, of that name, which transformers' assisted generation refuses though we
    take it: the same tokens with other padding."""
    sizes = [int(model.config.get_text_config().vocab_size) for model in (target, draft)]
    if sizes[0] != sizes[1]:
        raise VocabularyMismatch(
            f"the target has logits for {sizes[0]} tokens and draft {name} for {sizes[1]}, which transformers' "
            "assisted generation refuses: choose a pair of equal sizes"
        )
