"""A server under judgement, in any of the protocols that it speaks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy

from tokenizers import Tokenizer

from sybil.arguments import integer
from sybil.errors import EndpointFailed, EndpointLost
from sybil.losslessness import counters
from sybil.losslessness.answers import Answer, AnswerReader
from sybil.losslessness.dialects import Messages, Question
from sybil.losslessness.probing import probe, read
from sybil.losslessness.samples import Request, Sample, Subject
from sybil.losslessness.speculation import Speculation
from sybil.losslessness.subjects import derived
from sybil.servers.transport import Asking, Server

MOST_AT_ONCE = 256
PATIENCE, PAUSE = 60.0, 1.0  # seconds: how long to wait for a lost server, and the pause between tries


class EndpointSubject:
    """A server as a decoder under judgement: one request for each sequence, `concurrency` of them at once. model: None
    for a server that has only one.

    The constructor probes the server. `spoken` is the protocol that was found, and `notes` say what the server doesn't
    take. Prompts are sent as token ids. Where only a chat endpoint gives tokens (by_chat), `messages` must hold the
    messages from which the target's chat template makes each prompt. A server that is lost on the way is asked again
    for a minute. Raises EndpointFailed for any other failure."""

    def __init__(
        self,
        server: Server,
        model: str | None,
        tokenizer: Tokenizer,
        eos_token_ids: frozenset[int] = frozenset(),
        concurrency: int = 1,
    ) -> None:
        self.concurrency = integer("concurrency", concurrency, least=1, most=MOST_AT_ONCE)
        self.eos_token_ids = eos_token_ids  # the model's own end tokens, which a server knows without being told
        self.server, self.tokenizer, self.reader = server, tokenizer, AnswerReader(tokenizer)
        self.model = model or self._only_model()
        self.name = f"{server.shown(self.model)} at {server.url}"
        self.messages: Mapping[tuple[int, ...], Messages] = {}
        self.spoken = probe(server, self.model, self.reader)
        self.notes = list(self.spoken.notes)
        self._before = None if self.spoken.answer.speculation else counters.counted(server)

    @property
    def by_chat(self) -> bool:
        return self.spoken.dialect.by_chat

    @property
    def speculation(self) -> Speculation | None:
        """The tokens drafted and accepted since this object was made, by the server's counts over all its clients. None
        where the server's answers have the counts themselves, or nothing has."""
        before = self._before
        now = None if before is None else counters.counted(self.server)
        return None if before is None or now is None else counters.since(before, now)

    def takes(self, request: Request) -> bool:
        """Whether the server can be asked for the request's stops."""
        return self.spoken.takes(request, self.eos_token_ids)

    def widths(self) -> dict[str, Subject]:
        """The same server with one request at a time, if several run at once."""
        if self.concurrency == 1:
            return {}
        alone = copy(self)
        alone.concurrency = 1
        return {"one answer at a time": alone}

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int = 0) -> Iterator[Sample]:
        return self.several(prompts, [request] * len(prompts), seed, first)

    def several(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[Request], seed: int, first: int = 0
    ) -> Iterator[Sample]:
        """As sample(), but each prompt has its own request."""
        for request in dict.fromkeys(requests):
            lacking = self.spoken.lacking(request)
            if lacking:
                value = getattr(request, lacking)
                raise EndpointFailed(f"{self.spoken.url} doesn't take {lacking}, which is {value:g}: leave it out")
        questions = (
            self._question(prompt, request, derived(seed, index))
            for index, (prompt, request) in enumerate(zip(prompts, requests, strict=True), start=first)
        )
        for prompt, request, answer in zip(prompts, requests, self._answers(questions), strict=True):
            doubt = answer.doubt or self._doubt_of_prompt(prompt, answer) or self._doubt_of_end(answer, request)
            yield Sample(tuple(prompt), answer.tokens, None, doubt, answer.speculation)

    def _question(self, prompt: Sequence[int], request: Request, seed: int) -> Question:
        messages = self.messages.get(tuple(prompt), ())
        if self.by_chat and not messages:
            raise EndpointFailed(f"{self.spoken.url} takes messages, and a prompt has none: give prompts as messages")
        return Question(model=self.model, prompt=prompt, request=request, seed=seed, messages=messages)

    def _answers(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """The answers in order. Requests for the next ones are under way meanwhile."""
        waiting: deque[tuple[Question, Asking]] = deque()
        try:
            for question in questions:
                waiting.append((question, self.spoken.begin(question)))
                if len(waiting) == self.concurrency:
                    yield self._answer(*waiting[0])
                    waiting.popleft()
            while waiting:
                yield self._answer(*waiting[0])
                waiting.popleft()
        finally:
            for _, asking in waiting:
                asking.end()

    def _answer(self, question: Question, asking: Asking) -> Answer:
        """The server's answer. A lost server is asked again, because it has answered before: the probe at least."""
        ends = None
        while True:
            try:
                return read(self.spoken, asking, self.reader)
            except EndpointLost:
                now = time.monotonic()
                ends = now + PATIENCE if ends is None else ends
                if now >= ends:
                    raise
            time.sleep(PAUSE)
            asking = self.spoken.begin(question)

    def _doubt_of_prompt(self, prompt: Sequence[int], answer: Answer) -> str:
        """Why the server may have read another prompt: it may put a token before the prompt, or use its own chat
        template."""
        if answer.prompt_count in (None, len(prompt)):
            return ""
        return f"the server counts {answer.prompt_count} tokens in a prompt of {len(prompt)}: it was asked another one"

    def _doubt_of_end(self, answer: Answer, request: Request) -> str:
        """Why the end of an answer is in doubt. Servers may leave out the end token or the stop string, end at an end
        token that wasn't asked for, cut an answer off, or not know stop_token_ids, which aren't in OpenAI's protocol. A
        server that knows stop_token_ids, by its probe, and continues after one is at fault, not in doubt."""
        tokens, reason = answer.tokens, answer.reason
        unasked = set(request.eos_token_ids) - self.eos_token_ids
        if "stop_token_ids" in self.spoken.left and unasked & set(tokens[:-1]):
            return "the server went on after a token of stop_token_ids, which it may not know"
        if reason != "stop" and len(tokens) < request.max_new_tokens:
            said = repr(self.server.shown(reason, 40)) if isinstance(reason, str) else f"a {type(reason).__name__}"
            return f"the server cut an answer off (finish_reason {said})"
        if reason != "stop" or (tokens and tokens[-1] in request.eos_token_ids):
            return ""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        if any(string in text for string in request.stop_strings):
            return ""
        special = self.tokenizer.get_added_tokens_decoder().get(tokens[-1]) if tokens else None
        if special is not None:
            return (
                f"the server ended at {self.server.shown(special.content, 40)!r} (token id {tokens[-1]}), which isn't "
                "among the target's end tokens: name it with --eos if it is one"
            )
        return "the server says that it stopped, and what stopped it isn't among the tokens that it gave"

    def _only_model(self) -> str:
        served = self.server.ask("/models").get("data")
        models = [each for each in served if isinstance(each, dict)] if isinstance(served, list) else []
        names = [name for each in models if isinstance(name := each.get("id"), str) and name]
        if len(names) != 1:
            listed = self.server.shown(", ".join(names[:8]) or "none")
            raise EndpointFailed(
                f"{self.server.url}/models names {len(names)} models ({listed}): choose one with --model"
            )
        return names[0]
