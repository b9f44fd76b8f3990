"""A conversation of several turns. In each turn the models read only the tokens that are new."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from torch import Tensor

from sybil.decoding import Decoder
from sybil.errors import InvalidSetting
from sybil.inputs import prompts_of
from sybil.lossy import is_lossy
from sybil.models import Cache, Model
from sybil.results import FinishReason, Generation, Stats, Step
from sybil.text import decode
from sybil.transfer import integers


class Conversation:
    """A chat with a decoder: the messages, and the models' KV caches, which are kept between turns.

    Each turn renders all messages by the model's chat template. Each cache is rolled back to the longest prefix that it
    shares with the rendered tokens, and its model reads only the rest. The answer is the one that
    decoder.generate(messages) gives. Caches grow when they need more room.

    messages: a list of messages as generate() takes them. A caller may change it between turns."""

    def __init__(self, decoder: Decoder, system: str | None = None) -> None:
        """system: the text of the system message; None for a conversation without one.

        Raises InvalidSetting for a model without a chat template, and for a system message that the template
        refuses."""
        if decoder.chat_template is None or decoder.tokenizer is None:
            raise InvalidSetting("the model has no chat template, so it can't chat: take an instruct model")
        self._kept = [_CacheKeeper(model) for model in decoder.models]
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
        self._tokens: list[int] = []  # the last turn's; each cache holds the first `sure` of them
        self._answering: Generator[Step, None, None] | None = None
        self.messages: list[dict[str, Any]] = [*self._system]
        # raises InvalidSetting where the template refuses a system message
        decoder.chat_template.render([*self._system, {"role": "user", "content": "Hello"}])

    @property
    def context_used(self) -> int:
        """How many tokens of the model's context the conversation occupies."""
        return len(self._tokens)

    def reset(self) -> None:
        """Forget all messages but the system message."""
        self._leave()
        self.messages, self._tokens = [*self._system], []

    def ask(self, text: str, **settings: Any) -> Generation:
        """The answer to a user's message. The message and the answer are added to `messages`. settings: as
        Decoder.generate takes them.

        Raises the errors of Decoder.generate. An error before the first token leaves `messages` as it was."""
        steps = list(self.stream(text, **settings))
        tokens = [token for step in steps for token in step.tokens[0]]
        reason = steps[-1].finished[0] or "length"
        lossless = self._decoder.draft is None or not is_lossy(settings.get("rule") or "token")
        return Generation([integers(tokens)], [self._text(tokens, reason)], (reason,), Stats.of(steps), lossless)

    def stream(self, text: str, **settings: Any) -> Generator[Step, None, None]:
        """The same as ask(), but yields a Step after each round. If the caller leaves the stream early, the part of the
        answer that was generated until then becomes the assistant's message."""
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
        """The next round's Step; None at the end. An exception in the middle of a round drops the caches."""
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
        """An answer's text. It leaves out the end token, which the template writes itself, and an incomplete character
        where the answer ended early."""
        assert self._decoder.tokenizer is not None
        text = decode(self._decoder.tokenizer, answer[:-1] if reason == "eos" else answer)
        return text if reason else text.rstrip("\N{REPLACEMENT CHARACTER}")

    def _leave(self) -> None:
        """End an answer that is under way, because two answers would write to the same caches."""
        if self._answering is not None:
            self._answering.close()
            self._answering = None


def _shared(one: list[int], other: list[int]) -> int:
    """The length of the longest common prefix of two lists."""
    differ = (place for place, (mine, its) in enumerate(zip(one, other, strict=False)) if mine != its)
    return next(differ, min(len(one), len(other)))


class _CacheKeeper:
    """A model that reuses its cache: new_cache() gives the last cache again, rolled back to its first `sure` tokens,
    and made larger where that is needed."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.vocab_size, self.context, self.device = model.vocab_size, model.context, model.device
        self.drop()

    def __getattr__(self, name: str) -> Any:
        """Passes on the attributes that only some models have."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)

    @property
    def weight_bytes(self) -> int:
        return self._model.weight_bytes

    def drop(self) -> None:
        """Forget the cache."""
        self._cache: Any = None
        self._room, self.sure = 0, 0

    def note(self) -> None:
        """Called after a round: all tokens in the cache are sure then."""
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
