"""Compares the tokens of a target and a draft, and chooses how the draft drafts where the tokens differ. Vocabularies
are compared in this file only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer

from sybil.defaults import Defaults
from sybil.drafting import DrafterFactory, DraftHybrid, DraftIntersection, DraftModel, DraftNarrowed, DraftStrings
from sybil.drafting.narrowed import Narrowed
from sybil.drafting.reader import RetokenizingReader
from sybil.drafting.surfaces import Vocabulary, share_of
from sybil.drafting.vocabulary import Intersection
from sybil.errors import InvalidSetting, NotAModel, VocabularyMismatch
from sybil.models import Model
from sybil.models.folders import Checkpoint, embedded_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAID = 0.95
"""Token-level intersection is chosen where the draft's vocabulary has at least this share of an English text's
tokens."""
SAMPLE = "prompts/english.jsonl"
DRAFT_TOKENS = "draft_tokens"
"""The key in the config.json of a draft that `sybil distill` made. Its value lists the target's tokens that the draft
knows, ascending. The draft's token i is the i-th target token of the list, and the draft's last token stands for all
other target tokens."""
PADDED_TO, PADDING = 64, 1024  # logits are padded to a multiple of PADDED_TO, by fewer than PADDING


def differing_tokens(one: Tokenizer, other: Tokenizer) -> int:
    """How many entries (text and id) are in only one of two vocabularies; 0 where the vocabularies are the same."""
    return len(_entries(one) ^ _entries(other))


def _entries(tokenizer: Tokenizer) -> set[tuple[str, int]]:
    """Every token's text and id. A GGUF file has a token for each row of its embedding. The rows that no text uses are
    called [PAD0], [PAD1], ... by their ids; they are padding and are left out."""
    found = tokenizer.get_vocab(with_added_tokens=True).items()
    return {(text, token) for text, token in found if text != f"[PAD{token}]"}


def drafter(target: Checkpoint, draft: Checkpoint, model: Model, drafting: Model) -> DrafterFactory:
    """The factory of drafters by which the model `drafting`, of the checkpoint `draft`, drafts for `model`.

    Two vocabularies count as the same where they differ in padding alone. Where they differ in more, and the draft's
    vocabulary has at least the share SAID of an English text's tokens, the draft draws among the tokens that both have.
    It can't propose any other token, so where the share is smaller the draft writes text, which is encoded again in the
    target's tokens. Raises VocabularyMismatch."""
    if target.tokenizer is None or draft.tokenizer is None:
        check_sizes((target.name, draft.name), (model.vocab_size, drafting.vocab_size))
    known = known_tokens(draft.config, draft.name)
    if known is not None:
        _check_known(known, (target, draft), (model.vocab_size, drafting.vocab_size))
        return DraftNarrowed(Narrowed(drafting, known, model.vocab_size))
    found = relation(target, draft)
    if found.vocabularies is None:
        return DraftModel(drafting)
    theirs, own = found.vocabularies
    if found.way == "intersection":
        return DraftIntersection(Intersection(drafting, theirs, own, model))
    return DraftStrings(RetokenizingReader(drafting, theirs, own, model.context))


@dataclass(frozen=True, slots=True)
class Relation:
    """How a draft's tokens compare with a target's.

    way: how the draft drafts where the tokens differ in more than padding; None where they don't. share: the share of
    an English text's tokens that the draft's vocabulary has. vocabularies: the target's and the draft's, where they
    differ."""

    way: Literal["intersection", "strings"] | None
    share: float
    vocabularies: tuple[Vocabulary, Vocabulary] | None = None


def relation(target: Checkpoint, draft: Checkpoint) -> Relation:
    """Compares the two tokenizers. Where one of them isn't known, the tokens count as the same. Raises
    VocabularyMismatch where the vocabularies share no token of an English text."""
    if same_tokens(target, draft):
        return Relation(None, 1.0)
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
    return Relation("intersection" if share >= SAID else "strings", share, (theirs, own))


def known_tokens(config: Mapping[str, Any], name: str) -> list[int] | None:
    """The target's tokens that a distilled draft knows, from its config; None for any other model. Raises NotAModel."""
    known = config.get(DRAFT_TOKENS)
    if known is None:
        return None
    ids = known if isinstance(known, list) and known and all(type(each) is int for each in known) else []
    if not ids or ids[0] < 0 or any(one >= other for one, other in pairwise(ids)):
        raise NotAModel(f"{name} has {DRAFT_TOKENS} that are no ascending token ids: mend config.json or distill again")
    return ids


def check_target(checkpoint: Checkpoint) -> None:
    """Raises InvalidSetting for a distilled draft given as target: it knows only some of another model's tokens, and
    can't generate text by itself."""
    if known_tokens(checkpoint.config, checkpoint.name) is not None:
        raise InvalidSetting(
            f"target is {checkpoint.name}, a draft that knows some of another model's tokens: give it as draft, beside "
            "the target that its README.md names"
        )


def _check_known(known: list[int], checkpoints: tuple[Checkpoint, Checkpoint], sizes: tuple[int, int]) -> None:
    """Raises VocabularyMismatch for a draft that was distilled for another target. known: the target tokens that it
    knows. checkpoints: the target's and the draft's. sizes: the numbers of logits of both."""
    target, draft = checkpoints
    if not same_tokens(target, draft):
        raise VocabularyMismatch(
            f"draft {draft.name} was distilled for a target with another tokenizer than {target.name} has: distill one "
            "for this target"
        )
    if known[-1] >= sizes[0] or len(known) + 1 != sizes[1]:
        raise VocabularyMismatch(
            f"draft {draft.name} has {sizes[1]} tokens and knows {len(known)} of its target's, up to {known[-1]}, and "
            f"target {target.name} has {sizes[0]}: distill it again"
        )


def way_of(draft: DrafterFactory | None) -> str | None:
    """How a draft with other tokens than the target's drafts: "intersection", "strings" or "commonest"; None for a
    draft with the target's tokens."""
    if isinstance(draft, DraftHybrid):
        return way_of(draft.other)
    return draft.way if isinstance(draft, DraftIntersection | DraftStrings | DraftNarrowed) else None


def same_tokens(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two models have the same tokens; true where one of the tokenizers isn't known."""
    return one.tokenizer is None or other.tokenizer is None or not differing_tokens(one.tokenizer, other.tokenizer)


def _vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    ends = Defaults.of(checkpoint.generation, checkpoint.config, checkpoint.name).end_tokens
    assert checkpoint.tokenizer is not None
    return Vocabulary(checkpoint.tokenizer, sorted(ends))


def _sample() -> str:
    """The text whose tokens are counted: English from conversations and newspapers, and code."""
    lines = embedded_folder(SAMPLE).read_text(encoding="utf-8").splitlines()
    return "\n".join(said["content"] for line in lines for said in json.loads(line)["messages"])


def check_sizes(names: tuple[str, str], sizes: tuple[int, int]) -> None:
    """Raises VocabularyMismatch where two models can't have the same tokens by the numbers of their logits: the numbers
    differ by more than padding. It is for models of which one's tokenizer isn't known. names, sizes: the target's and
    the draft's."""
    surplus = max(sizes) - min(sizes)
    if surplus and (max(sizes) % PADDED_TO or surplus >= PADDING):
        raise VocabularyMismatch(
            f"target {names[0]} has {sizes[0]} tokens and draft {names[1]} {sizes[1]}: choose a draft with the "
            "target's tokenizer, or say that it is shared with sybil.load(..., tokenizer=)"
        )


def logits_of(model: PreTrainedModel) -> int:
    """The number of tokens that a transformers model has logits for."""
    return int(model.config.get_text_config().vocab_size)


def check_assisted(target: PreTrainedModel, draft: PreTrainedModel, name: str) -> None:
    """Raises VocabularyMismatch for a draft that Sybil accepts and transformers' assisted generation refuses: one with
    the target's tokens and other padding. name: the draft's."""
    sizes = logits_of(target), logits_of(draft)
    if sizes[0] != sizes[1]:
        raise VocabularyMismatch(
            f"the target has logits for {sizes[0]} tokens and draft {name} for {sizes[1]}, which transformers' "
            "assisted generation refuses: choose a pair of equal sizes"
        )


def check_universal(target: PreTrainedModel, draft: PreTrainedModel, name: str) -> None:
    """Raises VocabularyMismatch for a draft that transformers mistakes for one with the target's tokens: transformers
    refuses a second tokenizer for such a draft. name: the draft's."""
    sizes = logits_of(target), logits_of(draft)
    if sizes[0] == sizes[1]:
        raise VocabularyMismatch(
            f"the target and draft {name} have logits for {sizes[0]} tokens each, which transformers takes for one "
            "tokenizer, and refuses a second: judge decoder assisted, or choose a draft of another size"
        )
