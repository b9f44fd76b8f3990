"""Probes a server with short requests, to find out which protocol it speaks, where its answers hold token ids, and
which parameters it doesn't take."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sybil.errors import EndpointFailed, EndpointRefused
from sybil.losslessness.answers import TEXT, TEXT_ONLY, Answer, AnswerReader, Unreadable
from sybil.losslessness.dialects import DIALECTS, OF_LLAMA, Body, Dialect, Question, optional, without
from sybil.losslessness.samples import Request
from sybil.servers.transport import Asking, Server

PROBE = "a b c"
TOKENS = 4  # that the probe asks for
STOP = "zz"  # letters that every vocabulary has
ELSEWHERE = {400, 404, 405, 415, 422, 501}  # refusals for which another path or other parameters are worth trying
WRONG = {400, 422}  # refusals of a parameter
OWN = "whether the server's own settings change the distribution can't be told"
AGAIN = "the same draws can't be had again"
LOST = {
    "top_k": OWN, "top_p": OWN, "min_p": OWN, "samplers": OWN, "repetition_penalty": OWN, "repeat_penalty": OWN,
    "seed": AGAIN, "sampling_seed": AGAIN,
    "ignore_eos": "an answer may end at the model's own end token where none was asked for",
    "stop": "stop strings aren't tried",
    "stop_token_ids": "no end tokens but the model's own are tried",
}  # fmt: skip
"""What can't be checked if the server doesn't take a parameter. Others lose nothing as long as token ids come."""
FOR_IDS = {"logprobs", "return_token_ids", "return_tokens_as_token_ids", "return_tokens", "verbose"}
USED = {
    "token_ids": {"return_token_ids"},
    "__verbose.tokens": {"return_tokens", "verbose"},
    "tokens": {"return_tokens"},
    "output_ids": set[str](),
}
"""The parameters in FOR_IDS that each list of ids needs. Logprobs stay as the probe had them."""
NOTHING = Answer(tokens=(), way=TEXT, doubt="", reason=None, prompt_count=None, speculation=None, is_llama=False)


@dataclass(frozen=True, slots=True)
class Spoken:
    """A protocol that a server speaks. answer: to the probe. left: parameters that are left out of requests. notes:
    what can't be checked with this server."""

    server: Server
    dialect: Dialect
    answer: Answer = NOTHING
    left: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return (self.server.root if self.dialect.at_root else self.server.url) + self.dialect.path

    @property
    def told(self) -> str:
        """The protocol in a line, for a message."""
        given = "text alone" if self.answer.way == TEXT else f"token ids ({self.answer.way})"
        return f"asked by {self.dialect.name}, {self.url} gives {given}"

    def takes(self, request: Request, own_ends: frozenset[int]) -> bool:
        """Whether a request's stops can be asked for. own_ends: end tokens that the server knows by itself."""
        unasked = "stop_token_ids" in self.left and not own_ends.issuperset(request.eos_token_ids)
        return not unasked and not ("stop" in self.left and request.stop_strings)

    def lacking(self, request: Request) -> str:
        """A filter that the request uses and the server doesn't take; "" if there is none."""
        used = {"top_k": request.top_k, "top_p": request.top_p != 1, "min_p": request.min_p}
        return next((name for name, value in used.items() if value and name in self.left), "")

    def body(self, question: Question) -> Body:
        return without(self.dialect.body(question), set(self.left))

    def begin(self, question: Question) -> Asking:
        return self.server.begin(self.url, self.body(question))


def probe(server: Server, model: str, reader: AnswerReader) -> Spoken:
    """The first protocol whose answers hold token ids, or else the first that the server speaks at all. Where it speaks
    none, raises EndpointFailed with the server's first refusal."""
    prompt = reader.tokenizer.encode(PROBE).ids or [0]
    request = Request(max_new_tokens=TOKENS, temperature=0.0)
    question = Question(
        model=model, prompt=prompt, request=request, seed=0, messages=[{"role": "user", "content": PROBE}]
    )
    failed, found = list[EndpointFailed](), list[Spoken]()
    for dialect in DIALECTS:
        if dialect.by_chat and found:
            break
        try:
            spoken = _tried(server, dialect, question, reader)
            if spoken.answer.is_llama and dialect.path in OF_LLAMA:
                spoken = _tried(server, OF_LLAMA[dialect.path], question, reader)
        except EndpointFailed as failure:
            if not (found or _may_speak_otherwise(failure)):
                raise
            failed.append(failure)
            continue
        found.append(spoken)
        if spoken.answer.way != TEXT:
            break
    if not found:
        raise failed[0]
    best = found[-1] if found[-1].answer.way != TEXT else found[0]
    return _noted(_with_stops(_spared(best), question, reader))


def read(spoken: Spoken, asking: Asking, reader: AnswerReader) -> Answer:
    """A server's answer. Raises EndpointFailed where the reply holds none."""
    try:
        return reader.read(asking.answer())
    except Unreadable as none:
        keys = f" (its keys: {spoken.server.shown(none.keys)})" if none.keys else ""
        raise _NoAnswer(f"{spoken.url} answered {none.how}{keys}: {none.remedy}") from None


class _NoAnswer(EndpointFailed):
    """The answer isn't one of this protocol."""


def _may_speak_otherwise(failure: EndpointFailed) -> bool:
    """Whether it is worth asking a server that failed in this way in another protocol."""
    return failure.status in ELSEWHERE if isinstance(failure, EndpointRefused) else isinstance(failure, _NoAnswer)


def _tried(server: Server, dialect: Dialect, question: Question, reader: AnswerReader) -> Spoken:
    """The server in one protocol, without the parameters that it refuses. A refusal may name them; otherwise they are
    found one by one."""
    everything, left, one_by_one = _parameters(dialect, question), set[str](), False
    while True:
        spoken = Spoken(server, dialect, left=frozenset(left))
        try:
            return replace(spoken, answer=read(spoken, spoken.begin(question), reader))
        except EndpointRefused as refusal:
            if refusal.status not in WRONG:
                raise
            named = {name for name in everything - left if re.search(rf"\b{name}\b", refusal.said)}
            if named:
                left |= named
                continue
            least = Spoken(server, dialect, left=frozenset(everything))
            if one_by_one or left == everything or not _asked(least, question, reader):
                raise
            one_by_one = True
            alone = {name: replace(least, left=least.left - {name}) for name in everything}
            left = {name for name, spoken in alone.items() if not _asked(spoken, question, reader)}


def _parameters(dialect: Dialect, question: Question) -> set[str]:
    """All parameters that a request doesn't need, stops included."""
    request = replace(question.request, eos_token_ids=(0,), stop_strings=("x",))
    return optional(dialect.body(replace(question, request=request)))


def _asked(spoken: Spoken, question: Question, reader: AnswerReader) -> Answer | None:
    """The answer; None where the server refuses the question."""
    try:
        return read(spoken, spoken.begin(question), reader)
    except EndpointRefused as refusal:
        if refusal.status in WRONG:
            return None
        raise


def _spared(spoken: Spoken) -> Spoken:
    """The same without the parameters that cost the server time and bring no further ids."""
    used = USED.get(spoken.answer.way)
    return spoken if used is None else replace(spoken, left=spoken.left | (FOR_IDS - used))


def _with_stops(spoken: Spoken, question: Question, reader: AnswerReader) -> Spoken:
    """The same with the stops that the server knows. It is asked to end at the probe's first token: if it doesn't, it
    doesn't know stop_token_ids. That token follows the prompt directly, so no drafted block can be in the way. Where
    llama.cpp answers with logprobs only, the tokens of a stop string can't be cut off with certainty."""
    left, first = set(spoken.left), spoken.answer.tokens[:1]
    if "stop_token_ids" not in _parameters(spoken.dialect, question):
        left.add("stop_token_ids")
    elif "stop_token_ids" not in left:
        ending = replace(question, request=replace(question.request, eos_token_ids=first))
        ended = _asked(spoken, ending, reader) if first else None
        if ended is None or len(ended.tokens) > 1:
            left.add("stop_token_ids")
    stopping = replace(question, request=replace(question.request, stop_strings=(STOP,)))
    guessed = spoken.answer.is_llama and spoken.answer.way == "logprobs"
    if "stop" not in left and (guessed or _asked(spoken, stopping, reader) is None):
        left.add("stop")
    return replace(spoken, left=frozenset(left))


def _noted(spoken: Spoken) -> Spoken:
    """The same with notes on what can't be checked or tried."""
    notes = [TEXT_ONLY] if spoken.answer.way == TEXT else []
    for lost in dict.fromkeys(LOST.values()):
        names = sorted(name for name in spoken.left if LOST.get(name) == lost)
        if names:
            notes.append(f"the server doesn't take {', '.join(names)}: {lost}")
    return replace(spoken, notes=tuple(notes))
