"""A conversation's turns: the tokens of a fresh generation on the same messages, at the cost of the new ones only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import fixed, foreign, gpt2, in_sybil, letters, llama, perturbed

from sybil import Conversation, Decoder
from sybil.chat import ChatTemplate
from sybil.drafting import DraftLookup, DraftModel, DraftSelf
from sybil.errors import InvalidSetting, PromptTooLong
from sybil.models import Model
from sybil.text import encode

TEMPLATE = ChatTemplate(
    "{% for m in messages %}{{ {'user': 'A', 'assistant': 'B', 'system': ' '}[m.role] ~ m.content ~ 'C' }}{% endfor %}"
    "{% if add_generation_prompt %}B{% endif %}"
)
END = 30  # 'C'
TURNS = ("abc", "hello there", "q", "what now", "xyz")


MODELS: dict[str, Callable[[], Any]] = {
    "native": lambda: in_sybil(copy.deepcopy(gpt2(context=512)).float()),
    "operators": lambda: in_sybil(llama(context=512)),
    "fixed shapes": lambda: fixed(gpt2(context=512)),
    "transformers": lambda: foreign(gpt2(context=512)),
}
DRAFTS: dict[str, Callable[[Model], Any]] = {
    "none": lambda model: None,
    "itself": DraftModel,
    "model": lambda model: DraftModel(in_sybil(perturbed(gpt2(context=512), 0.05))),
    "lookup": lambda model: DraftLookup(),
    "in the target's cache": DraftSelf,
}


def decoder(model: str = "operators", draft: str = "none", template: ChatTemplate | None = TEMPLATE) -> Decoder:
    target = MODELS[model]()
    return Decoder(target, DRAFTS[draft](target), letters(), frozenset({END}), {}, template)


def messages_of(conversation: Conversation, text: str) -> list[dict[str, str]]:
    return [*conversation.messages, {"role": "user", "content": text}]


def fresh(of: Decoder, messages: list[dict[str, str]], **settings: Any) -> list[int]:
    tokens: list[int] = of.generate(messages, **settings).tokens[0].tolist()
    return tokens


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_every_turn_is_a_fresh_generation(model: str, draft: str) -> None:
    of = decoder(model, draft)
    conversation = Conversation(of, system="be kind")
    for number, text in enumerate(TURNS):
        messages = messages_of(conversation, text)
        wanted = fresh(of, messages, max_new_tokens=30)
        before = conversation.context_used
        out = conversation.ask(text, max_new_tokens=30)
        assert out.tokens[0].tolist() == wanted
        prompt = len(encode(letters(), TEMPLATE.render(messages)))
        # all but the last token of a turn is in the cache; its end token, where it was cut, is new
        held = before - 1 if number else 0
        assert out.stats.prefilled == prompt - held
        assert conversation.context_used == prompt + len(wanted)
        assert conversation.messages[-1] == {
            "role": "assistant",
            "content": letters().decode([token for token in wanted if token != END]),
        }


@pytest.mark.parametrize("draft", DRAFTS)
def test_sampled_turns_are_the_same_too(draft: str) -> None:
    """From the caches' words of earlier turns, for a seed."""
    of = decoder("native", draft)
    conversation = Conversation(of)
    for seed, text in enumerate(TURNS):
        asked = {"do_sample": True, "temperature": 0.8, "seed": seed, "max_new_tokens": 20}
        wanted = fresh(of, messages_of(conversation, text), **asked)
        assert conversation.ask(text, **asked).tokens[0].tolist() == wanted


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_an_answer_left_early_and_a_past_that_changes(model: str, draft: str) -> None:
    of = decoder(model, draft)
    conversation = Conversation(of)
    stream = conversation.stream("abc", max_new_tokens=40)
    said = [*next(stream).tokens[0], *next(stream).tokens[0]]
    stream.close()
    assert conversation.messages[-1]["content"] == letters().decode(said)
    wanted = fresh(of, messages_of(conversation, "go on"), max_new_tokens=30)
    assert conversation.ask("go on", max_new_tokens=30).tokens[0].tolist() == wanted

    conversation.messages[1]["content"] = letters().decode(said)[:1] + "zz"  # a rollback into the middle
    wanted = fresh(of, messages_of(conversation, "and"), max_new_tokens=30)
    out = conversation.ask("and", max_new_tokens=30)
    assert out.tokens[0].tolist() == wanted
    assert out.stats.prefilled == len(encode(letters(), TEMPLATE.render(conversation.messages[:-1]))) - 7

    conversation.reset()
    out = conversation.ask("and", max_new_tokens=30)
    assert out.tokens[0].tolist() == fresh(of, [{"role": "user", "content": "and"}], max_new_tokens=30)


def test_the_caches_grow_by_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the room of the first turn nothing is read again."""
    of, made = decoder("native", "itself"), []
    new_cache = of.target.new_cache
    monkeypatch.setattr(of.target, "new_cache", lambda batch, room: made.append(room) or new_cache(batch, room))
    conversation = Conversation(of)
    read = [conversation.ask("a" * 20, max_new_tokens=8).stats.prefilled for _ in range(12)]
    assert set(read[1:]) <= {23, 24, 25}  # what a turn adds, and the end of the one before
    assert made == sorted(made)
    assert 2 < len(made) / 2 < 6  # target and draft
    made.clear()
    conversation.ask("a", max_new_tokens=8)
    assert made == []


def test_a_round_broken_off_leaves_nothing_to_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does at any place: what was written then isn't known, so it is read again."""
    of = decoder("operators", "model")
    conversation = Conversation(of)
    stream = conversation.stream("abc", max_new_tokens=40)
    said = list(next(stream).tokens[0])
    with monkeypatch.context() as patched:
        patched.setattr(type(of.target), "_finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert conversation.messages == [
        {"role": "user", "content": "abc"},
        {"role": "assistant", "content": letters().decode(said)},
    ]
    wanted = fresh(of, messages_of(conversation, "go on"), max_new_tokens=30)
    out = conversation.ask("go on", max_new_tokens=30)
    assert out.tokens[0].tolist() == wanted
    assert out.stats.prefilled == len("AabcCB") + len(said) + len("CAgo onCB")


def interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_one_answer_at_a_time() -> None:
    of = decoder()
    conversation = Conversation(of)
    first = conversation.stream("abc", max_new_tokens=40)
    next(first)
    second = conversation.stream("hello", max_new_tokens=40)
    assert next(first, None) is None
    assert len(conversation.messages) == 2
    next(second)
    conversation.reset()
    assert next(second, None) is None
    assert conversation.messages == []


def test_what_cannot_be_asked_is_not_said() -> None:
    conversation = Conversation(decoder(), system="hi")
    said = [{"role": "system", "content": "hi"}]
    with pytest.raises(InvalidSetting, match="num_return_sequences is 2"):
        conversation.ask("abc", num_return_sequences=2)
    with pytest.raises(InvalidSetting, match="gamma"):
        conversation.ask("abc", gamma=0)
    with pytest.raises(PromptTooLong, match="context is 512"):
        conversation.ask("a" * 600)
    assert conversation.messages == said
    conversation.ask("abc", max_new_tokens=3)
    assert [each["role"] for each in conversation.messages] == ["system", "user", "assistant"]
    with pytest.raises(InvalidSetting, match="no chat template"):
        Conversation(decoder(template=None))


def test_the_context_fills_up() -> None:
    conversation = Conversation(decoder())
    asked = {"max_new_tokens": 60, "eos_token_id": []}
    reasons = [conversation.ask("a" * 50, **asked).finish_reasons[0] for _ in range(4)]
    assert reasons == ["length"] * 4
    assert conversation.ask("a" * 1, **asked).finish_reasons[0] == "context"
    assert conversation.context_used == 512
    with pytest.raises(PromptTooLong):
        conversation.ask("a", **asked)


def test_a_cache_trusted_too_far_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    of = decoder("native")
    conversation = Conversation(of)
    conversation.ask("abc", max_new_tokens=20)
    conversation.messages[0]["content"] = "xyz"
    wanted = fresh(of, messages_of(conversation, "q"), max_new_tokens=30)
    monkeypatch.setattr("sybil.conversation._shared", lambda one, other: min(len(one), len(other)))
    assert conversation.ask("q", max_new_tokens=30).tokens[0].tolist() != wanted


def test_a_conversation_can_be_copied() -> None:
    conversation = Conversation(decoder("native", "model"))
    conversation.ask("abc", max_new_tokens=10)
    conversation._answering = None
    other = copy.deepcopy(conversation)
    outs = [each.ask("hello", max_new_tokens=20) for each in (conversation, other)]
    assert torch.equal(outs[0].tokens[0], outs[1].tokens[0])
    assert outs[0].stats.prefilled == outs[1].stats.prefilled
