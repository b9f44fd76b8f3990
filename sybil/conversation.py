"""A conversation of several turns, each of which costs its new tokens only."""

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
    """A decoder's chat: messages, and the models' caches, which are kept between turns.

    A turn renders all messages by the model's chat template. Each cache is rolled back to the end of the tokens that it
    shares with them, and reads only the rest. The answer is the one that decoder.generate(messages) gives. Caches grow
    when they need more room. messages: as generate() takes them; they may be changed between turns."""

    def __init__(self, decoder: Decoder, system: str | None = None) -> None:
        """system: what the model is told first. Raises InvalidSetting for a model without a chat template, or one whose
        template takes no system's message."""
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
        self._tokens: list[int] = []  # of the last turn; each cache holds the first `sure` of them
        self._answering: Generator[Step, None, None] | None = None
        self.messages: list[dict[str, Any]] = [*self._system]
        decoder.chat_template.render([*self._system, {"role": "user", "content": "Hello"}])  # refuses it here

    @property
    def context_used(self) -> int:
        """How many tokens of the model's context the conversation takes."""
        return len(self._tokens)

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self._leave()
        self.messages, self._tokens = [*self._system], []

    def ask(self, text: str, **settings: Any) -> Generation:
        """The answer to a user's message. Both are added to messages. settings, errors: as of Decoder.generate. An
        error before the first token leaves messages as they were."""
        steps = list(self.stream(text, **settings))
        tokens = [token for step in steps for token in step.tokens[0]]
        reason = steps[-1].finished[0] or "length"
        lossless = self._decoder.draft is None or not is_lossy(settings.get("rule") or "token")
        return Generation([integers(tokens)], [self._text(tokens, reason)], (reason,), Stats.of(steps), lossless)

    def stream(self, text: str, **settings: Any) -> Generator[Step, None, None]:
        """As ask(), a Step at a time. If the stream is left early, what was answered until then is the assistant's
        message."""
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
        """A round's Step. An exception in the middle of a round drops the caches."""
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
        """An answer's text without its end token, which the template writes itself, and without half a character at an
        early end."""
        assert self._decoder.tokenizer is not None
        text = decode(self._decoder.tokenizer, answer[:-1] if reason == "eos" else answer)
        return text if reason else text.rstrip("\N{REPLACEMENT CHARACTER}")

    def _leave(self) -> None:
        """End an answer that is under way: two answers would write to the same caches."""
        if self._answering is not None:
            self._answering.close()
            self._answering = None


def _shared(one: list[int], other: list[int]) -> int:
    """How many first tokens two lists share."""
    differ = (place for place, (mine, its) in enumerate(zip(one, other, strict=False)) if mine != its)
    return next(differ, min(len(one), len(other)))


class _CacheKeeper:
    """A model whose next cache is its last one, rolled back to the first `sure` tokens, and larger where it must be."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.vocab_size, self.context, self.device = model.vocab_size, model.context, model.device
        self.drop()

    def __getattr__(self, name: str) -> Any:
        """Attributes that only some models have."""
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
        """After a round all tokens in the cache are sure."""
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
