"""A server that speaks OpenAI's completions protocol, as a decoder under judgement."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from http.client import HTTPException
from typing import Any

from tokenizers import Tokenizer

from sybil.errors import EndpointFailed
from sybil.losslessness.samples import Request, Sample
from sybil.losslessness.subjects import derived

TOKEN_ID = "token_id:"  # what vLLM writes in place of a token's text
TEXT_ONLY = "the server gave text, not tokens; re-tokenised text may not be the tokens drawn"


class EndpointSubject:
    """One request a sequence. url: up to /v1; model None: the only one served. OPENAI_API_KEY is sent where it is set.

    Prompts go out as token ids. Tokens come back as ids (vLLM's return_token_ids), from the texts of logprobs, or
    by tokenising the text again, which leaves a doubt."""

    def __init__(
        self,
        url: str,
        model: str | None,
        tokenizer: Tokenizer,
        eos_token_ids: frozenset[int] = frozenset(),
        timeout: float = 120.0,
    ) -> None:
        self.eos_token_ids = eos_token_ids  # the model's own, which a server knows without being told
        self.url, self.tokenizer, self.timeout = url.rstrip("/"), tokenizer, timeout
        if not self.url.startswith(("http://", "https://")):
            raise EndpointFailed(f"endpoint is {url!r}: give a URL such as http://127.0.0.1:8000/v1")
        self.model = model or self._only_model()
        self.name = f"{self.model} at {self.url}"

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        for index, prompt in enumerate(prompts):
            answer = self._ask("/completions", self._body(prompt, request, derived(seed, index)))
            choices = answer.get("choices")
            if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
                raise EndpointFailed(
                    f"{self.url}/completions answered without choices ({_shown(answer)}): "
                    "check that the URL is that of an OpenAI-compatible server"
                )
            tokens, doubt = self._tokens(choices[0], answer.get("usage"))
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
        if isinstance(ids, list) and all(type(each) is int for each in ids):
            return ids, ""
        logprobs = choice.get("logprobs")
        pieces = logprobs.get("tokens") if isinstance(logprobs, dict) else None
        if isinstance(pieces, list) and pieces:
            found = [self._id(piece) for piece in pieces]
            known = [each for each in found if each is not None]
            if len(known) == len(found):
                return known, ""
        text = choice.get("text")
        if not isinstance(text, str):
            raise EndpointFailed(
                f"{self.url}/completions answered with neither tokens nor text ({_shown(choice)}): "
                "check that it serves /completions, not chat"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            return [], "the server gave text, not tokens, and the text holds half a character"
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        if self.tokenizer.decode(tokens, skip_special_tokens=False) != text:
            return tokens, "the server gave text, not tokens, and the text doesn't survive being tokenised again"
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if isinstance(count, int) and count != len(tokens):
            return tokens, f"the server gave text, which tokenises to {len(tokens)} tokens where it counts {count}"
        return tokens, TEXT_ONLY

    def _id(self, piece: Any) -> int | None:
        """The token that a text of logprobs stands for; None where it isn't one token's alone."""
        if not isinstance(piece, str):
            return None
        if piece.startswith(TOKEN_ID) and piece.removeprefix(TOKEN_ID).isdecimal():
            return int(piece.removeprefix(TOKEN_ID))
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
            return f"the server cut an answer off (finish_reason {reason!r})"
        if reason != "stop" or (tokens and tokens[-1] in request.eos_token_ids):
            return ""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        if any(string in text for string in request.stop_strings):
            return ""
        return "the server says that it stopped, and what stopped it isn't among the tokens that it gave"

    def _only_model(self) -> str:
        served = self._ask("/models").get("data")
        models = [each for each in served if isinstance(each, dict)] if isinstance(served, list) else []
        names = [str(each["id"]) for each in models if "id" in each]
        if len(names) != 1:
            raise EndpointFailed(
                f"{self.url}/models names {len(names)} models ({', '.join(names[:8]) or 'none'}): "
                "choose one with --model"
            )
        return names[0]

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers with; GET without a body."""
        url = self.url + path
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=self.timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise EndpointFailed(
                f"{url} answered {error.code} {error.reason}: {_message(error.read())}: see the server's log"
            ) from None
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a URL that is none
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise EndpointFailed(f"{url} can't be reached ({reason}): start the server, or check --endpoint") from error
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise EndpointFailed(
                f"{url} answered no JSON object ({content[:60].decode(errors='replace')!r}): "
                "check that the URL is that of an OpenAI-compatible server, up to /v1"
            )
        return answer


def _message(content: bytes) -> str:
    """The first line of what a server says of its refusal."""
    try:
        answer = json.loads(content)
        error = answer.get("error", answer)
        text = error.get("message", "") if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        text = content.decode(errors="replace")
    return (str(text).strip() or "no message").split("\n")[0][:200]


def _shown(answer: Mapping[str, Any]) -> str:
    return f"its keys: {', '.join(map(str, answer)) or 'none'}"
