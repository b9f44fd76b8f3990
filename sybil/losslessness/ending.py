"""Does a sequence end where plain decoding would, and which requests put an end inside a known one?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer

from sybil.losslessness.samples import Request
from sybil.stopping import Stops

Tokens = tuple[int, ...]


def fault(tokens: Tokens, request: Request, tokenizer: Tokenizer | None) -> str:
    """What is wrong with the end of tokens, judged by what they say themselves; "" where nothing is."""
    kept, reason = _keep(tokens, request, tokenizer)
    count, limit = len(tokens), request.max_new_tokens
    if reason is not None and kept < count:
        return f"goes on for {count - kept} tokens after its {reason}"
    if count > limit:
        return f"has {count} tokens where {limit} are the limit"
    if reason is None and count < limit:
        return f"ends after {count} of {limit} tokens without a reason"
    return ""


def end(path: Tokens, request: Request, tokenizer: Tokenizer | None) -> int:
    """How many tokens of a longer greedy sequence are said under request."""
    return min(_keep(path, request, tokenizer)[0], request.max_new_tokens)


def inside(
    prompt: Tokens, path: Tokens, greedily: Request, tokenizer: Tokenizer | None, choice: np.random.Generator
) -> list[Request]:
    """Greedy requests that end inside path (two tokens at least): by a token of it, by a limit and, where there is
    a tokenizer and the text has a fit one, by a string."""
    free = replace(greedily, eos_token_ids=(), stop_strings=())
    firsts = [index for index, token in enumerate(path[:-1]) if token not in path[:index]]
    requests = [
        replace(free, eos_token_ids=(path[int(choice.choice(firsts))],)),
        replace(free, max_new_tokens=int(choice.integers(1, len(path)))),
    ]
    text = tokenizer.decode(list(path), skip_special_tokens=True) if tokenizer else ""
    for _ in range(8 if text else 0):  # a string may be blank, half a character, or complete at the path's end only
        start = int(choice.integers(len(text)))
        string = text[start : start + int(choice.integers(1, 5))]
        request = replace(free, stop_strings=(string,))
        kept = end(path, request, tokenizer)
        if tokenizer and string.strip() and "\ufffd" not in string and kept < len(path):
            before, said = tokenizer.decode([*prompt, *path[: kept - 1]]), tokenizer.decode(list(path[:kept]))
            # some stop at one that begins in the prompt, some look for it in the text as it is decoded
            if string not in before and string in said:
                return [*requests, request]
    return requests


def in_words(request: Request) -> str:
    """The stop that inside() put there."""
    if request.eos_token_ids:
        return f"end token {request.eos_token_ids[0]}"
    if request.stop_strings:
        return f"stop string {request.stop_strings[0]!r}"
    return f"max_new_tokens {request.max_new_tokens}"


def _keep(tokens: Tokens, request: Request, tokenizer: Tokenizer | None) -> tuple[int, str | None]:
    stops = Stops(frozenset(request.eos_token_ids), request.stop_strings, (), tokenizer)
    kept, reason = stops.keep((), (), tokens)
    return kept, {"eos": "end token", "stop_string": "stop string"}.get(reason or "")
