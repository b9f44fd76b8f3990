"""A conversation of several turns, of which each costs its new tokens only."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from torch import Tensor

from sybil.decoding import Decoder
from sybil.errors import InvalidSetting
from sybil.inputs import prompts_of
from sybil.models import Cache, Model
from sybil.results import FinishReason, Generation, Stats, Step
from sybil.text import decode
from sybil.transfer import integers


class Conversation:
    """A decoder's chat: messages, and the models' caches, which are kept between turns.

    A turn renders all messages by the model's chat template. As far as its tokens are those in a cache, that is rolled
    back to their end and reads the rest alone; the answer is the one that decoder.generate(messages) gives. Where the
    caches need more room they grow. messages: as generate() takes them; change them at will between turns."""

    def __init__(self, decoder: Decoder, system: str | None = None) -> None:
        """system: what the model is told first. Raises InvalidSetting for a model without a chat template, or one whose
        template takes no system's message."""
        if decoder.chat_template is None or decoder.tokenizer is None:
            raise InvalidSetting("the model has no chat template, so it can't chat: take an instruct model")
        self._kept = [_Kept(model) for model in decoder.models]
        target, *others = self._kept
        self._decoder = Decoder(
            target,
            None if decoder.draft is None else decoder.draft.over(*others),
            decoder.tokenizer,
            decoder.eos_token_ids,
            decoder.defaults,
            decoder.chat_template,
        )
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._tokens: list[int] = []  # those of the last turn, which the caches hold up to where each is sure
        self._answering: Generator[Step, None, None] | None = None
        self.messages: list[dict[str, Any]] = [*self._system]
        decoder.chat_template.render([*self._system, {"role": "user", "content": "Hello"}])  # or it is said at once

    @property
    def context_used(self) -> int:
        """How many tokens the last turn left behind, of the model's context."""
        return len(self._tokens)

    def reset(self) -> None:
        """Begin anew: nothing has been said but the system's message."""
        self._leave()
        self.messages, self._tokens = [*self._system], []

    def ask(self, text: str, **settings: Any) -> Generation:
        """The answer to a user's message, which both become messages. settings, errors: as of Decoder.generate; after
        an error the message has not been said."""
        steps = list(self.stream(text, **settings))
        tokens = [token for step in steps for token in step.tokens[0]]
        reason = steps[-1].finished[0] or "length"
        return Generation([integers(tokens)], [self._text(tokens, reason)], (reason,), Stats.of(steps))

    def stream(self, text: str, **settings: Any) -> Generator[Step, None, None]:
        """ask(), a Step at a time. Left early, what was answered until then is the assistant's message."""
        self._leave()
        messages = [*self.messages, {"role": "user", "content": text}]
        decoder = self._decoder
        (prompt,) = prompts_of([messages], decoder.tokenizer, decoder.target, decoder.chat_template)
        shared = _shared(self._tokens, prompt[:-1])
        for kept in self._kept:
            kept.sure = min(kept.sure, shared)
        self._tokens = prompt
        self._answering = self._answer(decoder.stream([prompt], **settings), messages)
        return self._answering

    def _answer(self, rounds: Iterator[Step], messages: list[dict[str, Any]]) -> Generator[Step, None, None]:
        prompt, answer = self._tokens, list[int]()
        reason: FinishReason | None = None
        try:
            while (step := self._next(rounds)) is not None:
                answer += step.tokens[0]
                (reason,) = step.finished
                self._tokens = prompt + answer
                yield step
        finally:
            if answer:
                self.messages = [*messages, {"role": "assistant", "content": self._text(answer, reason)}]

    def _next(self, rounds: Iterator[Step]) -> Step | None:
        """A round; whatever breaks it off in the middle leaves nothing sure in the caches."""
        try:
            step = next(rounds, None)
        except BaseException:
            for kept in self._kept:
                kept.drop()
            raise
        for kept in self._kept:
            kept.note()
        return step

    def _text(self, answer: list[int], reason: FinishReason | None) -> str:
        """Without the token that ends it, which the template writes itself, or half a character where it was left."""
        assert self._decoder.tokenizer is not None
        text = decode(self._decoder.tokenizer, answer[:-1] if reason == "eos" else answer)
        return text if reason else text.rstrip("\N{REPLACEMENT CHARACTER}")

    def _leave(self) -> None:
        """End an answer that is under way: two would write to the same caches."""
        if self._answering is not None:
            self._answering.close()
            self._answering = None


def _shared(one: list[int], other: list[int]) -> int:
    """How many tokens two lists begin with alike."""
    differ = (place for place, (mine, its) in enumerate(zip(one, other, strict=False)) if mine != its)
    return next(differ, min(len(one), len(other)))


class _Kept:
    """A model whose next cache is its last one, rolled back to the first `sure` tokens, and larger where it must be."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.vocab_size, self.context, self.device = model.vocab_size, model.context, model.device
        self.drop()

    def __getattr__(self, name: str) -> Any:
        """What else is known of some models."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)

    @property
    def weight_bytes(self) -> int:
        return self._model.weight_bytes

    def drop(self) -> None:
        """Keep nothing."""
        self._cache: Any = None
        self._room, self.sure = 0, 0

    def note(self) -> None:
        """What is in the cache now is sure: a round is over."""
        self.sure = 0 if self._cache is None else int(self._cache.lengths[0])

    def new_cache(self, batch: int, capacity: int) -> Any:
        if batch != 1:
            raise InvalidSetting(f"num_return_sequences is {batch}: a conversation has one answer a turn")
        if self._cache is None or self._room < capacity:
            room = max(capacity, min(2 * self._room, self.context))
            cache = self._model.new_cache(batch, room)
            if self._cache is not None:
                cache.take_over(self._cache)
            self._cache, self._room = cache, room
        self._cache.lengths = integers([self.sure])
        return self._cache

    def forward(self, tokens: Tensor, cache: Cache) -> Tensor:
        return self._model.forward(tokens, cache)

    def prefill(self, tokens: Tensor, cache: Cache) -> None:
        self._model.prefill(tokens, cache)
