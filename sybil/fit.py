"""Do a target and a draft fit each other, and by which way? The one place where vocabularies are compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from sybil.defaults import Defaults
from sybil.drafting import DrafterFactory, DraftIntersection, DraftModel, DraftStrings
from sybil.drafting.reader import Reader
from sybil.drafting.surfaces import Vocabulary, share_of
from sybil.drafting.vocabulary import Intersection
from sybil.errors import VocabularyMismatch
from sybil.models import Model
from sybil.models.folders import Checkpoint, embedded_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAID = 0.95
"""Of a text's tokens, the share that both vocabularies must have for the draft to draw among those alone."""
SAMPLE = "prompts/english.jsonl"
PADDED_TO, PADDING = 64, 1024  # logits are padded to a multiple of the one, by less than the other


def differing_tokens(one: Tokenizer, other: Tokenizer) -> int:
    """How many entries (text and id) only one of two vocabularies has; 0 where they are the same."""
    return len(one.get_vocab(with_added_tokens=True).items() ^ other.get_vocab(with_added_tokens=True).items())


def drafter(target: Checkpoint, draft: Checkpoint, model: Model, drafting: Model) -> DrafterFactory:
    """What drafts with the one model for the other. Raises VocabularyMismatch.

    Padding beyond a shared tokenizer is no difference. With two tokenizers it is the intersection of both vocabularies
    where they share SAID of what is said, for at each place that they don't share the draft is bound to be wrong.
    Elsewhere the draft's text is encoded again."""
    if target.tokenizer is None or draft.tokenizer is None:
        check_sizes((target.name, draft.name), (model.vocab_size, drafting.vocab_size))
    if same_tokens(target, draft):
        return DraftModel(drafting)
    assert target.tokenizer is not None
    assert draft.tokenizer is not None
    theirs, own = (_vocabulary(each) for each in (target, draft))
    share = share_of(theirs, own, _sample())
    if not share:
        raise VocabularyMismatch(
            f"target {target.name} has {target.tokenizer.get_vocab_size()} tokens and draft {draft.name} "
            f"{draft.tokenizer.get_vocab_size()}, and they share none that an English text is made of: choose a draft "
            "whose tokenizer writes the same letters, or draft='lookup'"
        )
    if share >= SAID:
        return DraftIntersection(Intersection(drafting, theirs, own, model))
    return DraftStrings(Reader(drafting, theirs, own, model.context))


def way_of(draft: DrafterFactory | None) -> str | None:
    """By which way a draft with another tokenizer drafts; None for any other."""
    return draft.way if isinstance(draft, DraftIntersection | DraftStrings) else None


def same_tokens(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two models share a tokenizer, as far as theirs are known."""
    return one.tokenizer is None or other.tokenizer is None or not differing_tokens(one.tokenizer, other.tokenizer)


def _vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    ends = Defaults.of(checkpoint.generation, checkpoint.config, checkpoint.name).end_tokens
    assert checkpoint.tokenizer is not None
    return Vocabulary(checkpoint.tokenizer, sorted(ends))


def _sample() -> str:
    """What is said: English, a conversation's and a newspaper's, and code."""
    lines = embedded_folder(SAMPLE).read_text(encoding="utf-8").splitlines()
    return "\n".join(said["content"] for line in lines for said in json.loads(line)["messages"])


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
