"""A server that speaks OpenAI's completions protocol, as a decoder under judgement."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, NoReturn

from tokenizers import Tokenizer

from sybil.errors import EndpointFailed
from sybil.losslessness.child import LARGEST_ID, MOST_TOKENS
from sybil.losslessness.samples import Request, Sample
from sybil.losslessness.subjects import derived
from sybil.losslessness.transport import Server

TOKEN_ID = "token_id:"  # what vLLM writes in place of a token's text
TOKEN = re.compile(f"{TOKEN_ID}[0-9]{{1,10}}")
TEXT_ONLY = "the server gave text, not tokens; re-tokenised text may not be the tokens drawn"
SEE = "see the server's log"


class EndpointSubject:
    """One request a sequence. model None: the only one that the server has.

    Prompts go out as token ids. Tokens come back as ids (vLLM's return_token_ids), from the texts of logprobs, or
    by tokenising the text again, which leaves a doubt. Raises EndpointFailed for whatever else comes back."""

    def __init__(
        self, server: Server, model: str | None, tokenizer: Tokenizer, eos_token_ids: frozenset[int] = frozenset()
    ) -> None:
        self.eos_token_ids = eos_token_ids  # the model's own, which a server knows without being told
        self.server, self.tokenizer = server, tokenizer
        self.model = model or self._only_model()
        self.name = f"{server.shown(self.model)} at {server.url}"

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        for index, prompt in enumerate(prompts):
            answer = self.server.ask("/completions", self._body(prompt, request, derived(seed, index)))
            choices = answer.get("choices")
            if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
                self._fail(
                    f"without choices ({self._keys(answer)})",
                    "check that the URL is that of an OpenAI-compatible server",
                )
            tokens, doubt = self._tokens(choices[0], answer.get("usage"))
            if len(tokens) > MOST_TOKENS:
                self._fail(f"with more than {MOST_TOKENS} tokens to {request.max_new_tokens} asked for", SEE)
            doubt = doubt or self._doubt_of_end(tokens, choices[0].get("finish_reason"), request)
            yield Sample(tuple(prompt), tuple(tokens), None, doubt)

    def _body(self, prompt: Sequence[int], request: Request, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = dict(
            model=self.model,
            prompt=list(prompt),
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=seed,
            logprobs=1,
            # what follows is vLLM's, in part SGLang's too
            return_token_ids=True,
            return_tokens_as_token_ids=True,
            ignore_eos=not request.eos_token_ids,
            # what is left out they fill in from the model's own generation_config
            top_k=request.top_k or -1,
            min_p=request.min_p,
            repetition_penalty=1.0,
        )
        stops = dict(
            stop=list(request.stop_strings),
            stop_token_ids=list(request.eos_token_ids),
        )
        return body | {name: value for name, value in stops.items() if value}

    def _tokens(self, choice: Mapping[str, Any], usage: Any) -> tuple[list[int], str]:
        """The new tokens, and what makes them doubtful."""
        ids = choice.get("token_ids")
        if isinstance(ids, list) and all(_is_id(each) for each in ids):
            return ids, ""
        if ids is not None:
            self._fail(f"with token_ids that are no list of integers from 0 to {LARGEST_ID}", SEE)
        logprobs = choice.get("logprobs")
        pieces = logprobs.get("tokens") if isinstance(logprobs, dict) else None
        if isinstance(pieces, list) and pieces:
            found = [self._id(piece) for piece in pieces]
            known = [each for each in found if each is not None]
            if len(known) == len(found):
                return known, ""
        text = choice.get("text")
        if not isinstance(text, str):
            self._fail(
                f"with neither tokens nor text ({self._keys(choice)})", "check that it serves /completions, not chat"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            return [], "the server gave text, not tokens, and the text holds half a character"
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        if self.tokenizer.decode(tokens, skip_special_tokens=False) != text:
            return tokens, "the server gave text, not tokens, and the text doesn't survive being tokenised again"
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if _is_id(count) and count != len(tokens):
            return tokens, f"the server gave text, which tokenises to {len(tokens)} tokens where it counts {count}"
        return tokens, TEXT_ONLY

    def _id(self, piece: Any) -> int | None:
        """The token that a text of logprobs stands for; None where it isn't one token's alone."""
        if not isinstance(piece, str):
            return None
        if TOKEN.fullmatch(piece):
            number = int(piece.removeprefix(TOKEN_ID))
            return number if _is_id(number) else None
        return self._ids_by_text.get(piece)

    @cached_property
    def _ids_by_text(self) -> dict[str, int | None]:
        """None for the texts that several tokens share."""
        ids: dict[str, int | None] = {}
        for token in range(self.tokenizer.get_vocab_size()):
            text = self.tokenizer.decode([token], skip_special_tokens=False)
            ids[text] = None if text in ids else token
        return ids

    def _doubt_of_end(self, tokens: Sequence[int], reason: Any, request: Request) -> str:
        """Servers may leave out the end token and the stop string, end at an end token that nobody asked for, cut an
        answer off, or not know stop_token_ids, which are no part of the protocol."""
        unasked = set(request.eos_token_ids) - self.eos_token_ids
        if unasked & set(tokens[:-1]):
            return "the server went on after a token of stop_token_ids, which it may not know"
        if reason != "stop" and len(tokens) < request.max_new_tokens:
            said = repr(self.server.shown(reason, 40)) if isinstance(reason, str) else f"a {type(reason).__name__}"
            return f"the server cut an answer off (finish_reason {said})"
        if reason != "stop" or (tokens and tokens[-1] in request.eos_token_ids):
            return ""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        if any(string in text for string in request.stop_strings):
            return ""
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

    def _keys(self, answer: Mapping[str, Any]) -> str:
        return f"its keys: {self.server.shown(', '.join(islice(answer, 8)) or 'none')}"

    def _fail(self, how: str, remedy: str) -> NoReturn:
        raise EndpointFailed(f"{self.server.url}/completions answered {how}: {remedy}")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_ID
