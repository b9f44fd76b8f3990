"""Checks whether a sequence ends where plain decoding would end it, and makes requests that end inside a known one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from sybil.errors import InvalidSetting, one_line
from sybil.losslessness.samples import Request
from sybil.stopping import Stops

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class End:
    """How a sequence ends. fault: what is wrong with its end. doubt: what is doubtful. Both are "" for a right end."""

    fault: str = ""
    doubt: str = ""


def judged(tokens: Tokens, request: Request, tokenizer: Tokenizer | None) -> End:
    """Judges the end of a sequence by its tokens. An end at a special token that is no end token is in doubt, because
    a decoder may know more end tokens than the target's files tell."""
    kept, reason = _keep(tokens, request, tokenizer)
    count, limit = len(tokens), request.max_new_tokens
    if reason is not None and kept < count:
        which = f" {named(tokens[kept - 1], tokenizer)}" if tokens[kept - 1] in request.eos_token_ids else ""
        return End(f"goes on for {count - kept} tokens after its {reason}{which}")
    if count > limit:
        return End(f"has {count} tokens where {limit} are the limit")
    if reason is not None or count == limit:
        return End()
    if tokens and is_special(tokens[-1], tokenizer):
        which = named(tokens[-1], tokenizer)
        return End(
            doubt=f"it ends at the special token {which}, which is none of the end tokens: is it one? name it (eos)"
        )
    return End(f"ends after {count} of {limit} tokens without a reason")


def end_tokens(names: Sequence[str], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The token ids of names, each an id or a text, in order. Raises InvalidSetting for a name of no token."""
    found = set[int]()
    for name in names:
        token = int(name) if name.isascii() and name.isdecimal() and len(name) < 10 else tokenizer.token_to_id(name)
        if token is None or tokenizer.id_to_token(token) is None:
            shown = one_line(name, 40)
            raise InvalidSetting(
                f"eos is {shown!r}, which is no token of the target: use a token's id or its whole text"
            )
        found.add(token)
    return tuple(sorted(found))


def named(token: int, tokenizer: Tokenizer | None) -> str:
    """A token for a message: its text, where that is known, and its id."""
    text = None if tokenizer is None else tokenizer.id_to_token(token)
    return str(token) if text is None else f"{one_line(text, 40)!r} ({token})"


def is_special(token: int, tokenizer: Tokenizer | None) -> bool:
    """Whether the tokenizer marks a token as special: an end of a text or a turn, padding."""
    if tokenizer is None:
        return False
    added = tokenizer.get_added_tokens_decoder().get(token)
    return added is not None and bool(added.special)


def end(path: Tokens, request: Request, tokenizer: Tokenizer | None) -> int:
    """How many tokens of path, a longer greedy sequence, a decoder should give under request."""
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
    for _ in range(8 if text else 0):  # a string may be blank, half a character, or complete only at the path's end
        start = int(choice.integers(len(text)))
        string = text[start : start + int(choice.integers(1, 5))]
        request = replace(free, stop_strings=(string,))
        kept = end(path, request, tokenizer)
        if tokenizer and string.strip() and "\ufffd" not in string and kept < len(path):
            before, said = tokenizer.decode([*prompt, *path[: kept - 1]]), tokenizer.decode(list(path[:kept]))
            # some decoders stop at a string that begins in the prompt, some look for it in the decoded text only
            if string not in before and string in said:
                return [*requests, request]
    return requests


def in_words(request: Request, tokenizer: Tokenizer | None) -> str:
    """The stop of a request from inside(), for a message."""
    if request.eos_token_ids:
        return f"end token {named(request.eos_token_ids[0], tokenizer)}"
    if request.stop_strings:
        return f"stop string {request.stop_strings[0]!r}"
    return f"max_new_tokens {request.max_new_tokens}"


def _keep(tokens: Tokens, request: Request, tokenizer: Tokenizer | None) -> tuple[int, str | None]:
    stops = Stops(frozenset(request.eos_token_ids), request.stop_strings, (), tokenizer)
    kept, reason = stops.keep((), (), tokens)
    return kept, {"eos": "end token", "stop_string": "stop string"}.get(reason or "")
