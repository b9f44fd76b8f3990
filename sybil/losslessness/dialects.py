"""The protocols that servers speak, and the body of a request in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sybil.losslessness.samples import Request

Body = dict[str, Any]
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt. prompt: its token ids. messages: for chat endpoints, those from which the template makes the ids."""

    model: str
    prompt: Sequence[int]
    request: Request
    seed: int
    messages: Messages = ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """A protocol. name: in messages. path: appended to the URL, or with at_root to the server's root. body: makes the
    body of a request for a question. by_chat: whether the protocol takes messages in place of token ids."""

    name: str
    path: str
    body: Callable[[Question], Body]
    at_root: bool = False
    by_chat: bool = False


def _drawn(question: Question) -> Body:
    """The parameters that have the same name in all protocols."""
    request = question.request
    return dict(temperature=request.temperature, top_p=request.top_p, min_p=request.min_p)


def _openai(question: Question) -> Body:
    """OpenAI's parameters, and the further ones of vLLM, SGLang and llama.cpp. Every parameter is given, because the
    servers take a missing one from the model's own generation settings."""
    request = question.request
    return dict(
        model=question.model,
        max_tokens=request.max_new_tokens,
        seed=question.seed,
        **_drawn(question),
        top_k=request.top_k or -1,
        repetition_penalty=1.0,
        ignore_eos=not request.eos_token_ids,
        **({"stop": list(request.stop_strings)} if request.stop_strings else {}),
        **({"stop_token_ids": list(request.eos_token_ids)} if request.eos_token_ids else {}),
        # requests for token ids: of vLLM and SGLang, of older vLLM, of llama.cpp
        return_token_ids=True,
        return_tokens_as_token_ids=True,
        return_tokens=True,
        verbose=True,
    )


def _completions(question: Question) -> Body:
    return dict(prompt=list(question.prompt), logprobs=1, **_openai(question))


def _chat(question: Question) -> Body:
    return dict(messages=[dict(each) for each in question.messages], logprobs=True, **_openai(question))


def _llama(question: Question) -> Body:
    """llama.cpp's parameters. Its filters run in the order of `samplers`, and those that aren't named don't run. By
    default the temperature is the last, which draws from another distribution. ignore_eos isn't used, because it takes
    the end tokens from the distribution. llama.cpp knows no stop_token_ids."""
    request = question.request
    return dict(
        prompt=list(question.prompt),
        seed=question.seed,
        **_drawn(question),
        top_k=request.top_k,
        samplers=["temperature", "top_k", "top_p", "min_p"],
        repeat_penalty=1.0,
        return_tokens=True,
        **({"stop": list(request.stop_strings)} if request.stop_strings else {}),
    )


def _llama_openai(question: Question) -> Body:
    return dict(model=question.model, max_tokens=question.request.max_new_tokens, logprobs=1, verbose=True,
                **_llama(question))  # fmt: skip


def _llama_own(question: Question) -> Body:
    return dict(n_predict=question.request.max_new_tokens, **_llama(question))


def _llama_chat(question: Question) -> Body:
    asked = _llama_openai(question) | dict(messages=[dict(each) for each in question.messages], logprobs=True)
    return {name: value for name, value in asked.items() if name != "prompt"}


def _sglang(question: Question) -> Body:
    request = question.request
    return dict(
        input_ids=list(question.prompt),
        sampling_params=dict(
            max_new_tokens=request.max_new_tokens,
            sampling_seed=question.seed,
            **_drawn(question),
            top_k=request.top_k or -1,
            repetition_penalty=1.0,
            ignore_eos=not request.eos_token_ids,
            **({"stop": list(request.stop_strings)} if request.stop_strings else {}),
            **({"stop_token_ids": list(request.eos_token_ids)} if request.eos_token_ids else {}),
        ),
    )


DIALECTS = (
    Dialect("OpenAI's completions", "/completions", _completions),
    Dialect("llama.cpp's own protocol", "/completion", _llama_own, at_root=True),
    Dialect("SGLang's own protocol", "/generate", _sglang, at_root=True),
    Dialect("OpenAI's chat", "/chat/completions", _chat, by_chat=True),
)
"""All protocols, in the order in which they are tried."""
OF_LLAMA = {
    "/completions": Dialect("llama.cpp's completions", "/completions", _llama_openai),
    "/chat/completions": Dialect("llama.cpp's chat", "/chat/completions", _llama_chat, by_chat=True),
}
"""The protocol for a path, once an answer has shown that llama.cpp serves it."""
NEEDED = {"model", "prompt", "messages", "input_ids", "sampling_params", "max_tokens", "n_predict", "max_new_tokens",
          "temperature"}  # fmt: skip
"""The parameters that every request needs."""


def optional(body: Body) -> set[str]:
    """The parameters of a body that a request doesn't need."""
    return {*body, *body.get("sampling_params", {})} - NEEDED


def without(body: Body, left: set[str]) -> Body:
    """A body without these parameters."""
    kept = {name: value for name, value in body.items() if name not in left}
    if "sampling_params" in kept:
        kept["sampling_params"] = without(kept["sampling_params"], left)
    return kept
