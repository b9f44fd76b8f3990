"""Reads a server's answer in any of the protocols: its token ids, the reason for its end, and its counts.

Everything is checked before it is used. The results are well-typed and in range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from tokenizers import Tokenizer

from sybil.losslessness.child import LARGEST_ID, MOST_TOKENS
from sybil.losslessness.speculation import Speculation

TOKEN_ID = "token_id:"  # what vLLM writes in place of a token's text
TOKEN = re.compile(f"{TOKEN_ID}[0-9]{{1,10}}")
TEXT = "its text, tokenised again"
TEXT_ONLY = "the server gave text, not tokens; re-tokenised text may not be the tokens drawn"
SEE = "see the server's log"

Json = Mapping[str, Any]


class Unreadable(Exception):
    """An answer that can't be read. Its arguments: the words after "answered", the keys of the answer, and a remedy."""

    def __init__(self, how: str, remedy: str, keys: Json | None = None) -> None:
        super().__init__(how)
        self.how, self.remedy = how, remedy
        self.keys = "" if keys is None else ", ".join(islice(keys, 8)) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A server's answer. tokens: the new ones. way: the part of the answer that holds them. doubt: why they may not be
    the tokens that were drawn, "" for no doubt. reason: why the text ends, by the server. prompt_count: tokens of the
    prompt, by the server's count. speculation: the server's counts. is_llama: whether llama.cpp's server answered."""

    tokens: tuple[int, ...]
    way: str
    doubt: str
    reason: Any
    prompt_count: int | None
    speculation: Speculation | None
    is_llama: bool


class AnswerReader:
    """Reads answers of servers whose tokens are those of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def read(self, reply: Json) -> Answer:
        """The answer in a reply. Raises Unreadable."""
        choice, verbose, usage = _choice(reply), _object(reply, "__verbose"), _object(reply, "usage")
        meta = _object(reply, "meta_info")
        count = _first(usage.get("completion_tokens"), verbose.get("tokens_predicted"),
                       reply.get("tokens_predicted"), meta.get("completion_tokens"))  # fmt: skip
        tokens, way, doubt = self._tokens(choice, verbose, count)
        if len(tokens) > MOST_TOKENS:
            raise Unreadable(f"with more than {MOST_TOKENS} tokens in one answer", SEE)
        return Answer(
            tokens=tuple(tokens),
            way=way,
            doubt=doubt,
            reason=_reason(choice, meta),
            prompt_count=_first(usage.get("prompt_tokens"), meta.get("prompt_tokens"), reply.get("tokens_evaluated")),
            speculation=_speculation(reply, meta, usage),
            is_llama=bool(verbose or "generation_settings" in reply or "predicted_n" in _object(reply, "timings")),
        )

    def _tokens(self, choice: Json, verbose: Json, count: int | None) -> tuple[list[int], str, str]:
        """The new tokens, the part of the answer that holds them, and what makes them doubtful."""
        listed = {"token_ids": choice.get("token_ids"), "__verbose.tokens": verbose.get("tokens"),
                  "tokens": choice.get("tokens"), "output_ids": choice.get("output_ids")}  # fmt: skip
        for way, ids in listed.items():
            if ids is None or (ids == [] and count):  # the list is empty where nobody asked for tokens
                continue
            if not (isinstance(ids, list) and all(is_id(each) for each in ids)):
                raise Unreadable(f"with {way} that are no list of integers from 0 to {LARGEST_ID}", SEE)
            return ids, way, _miscounted(ids, count)
        entries = _entries(choice)
        found = [self._of_entry(each) for each in entries]
        known = [each for each in found if each is not None]
        if entries and len(known) == len(found):
            return known, "logprobs", _miscounted(known, count)
        text = choice.get("text", choice.get("content"))
        text = _object(choice, "message").get("content") if text is None else text
        if not isinstance(text, str):
            raise Unreadable("with neither tokens nor text", "check that it serves completions", choice)
        tokens, doubt = self._of_text(text, count)
        return tokens, TEXT, doubt

    def _of_text(self, text: str, count: int | None) -> tuple[list[int], str]:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            return [], "the server gave text, not tokens, and the text holds half a character"
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        if self.tokenizer.decode(tokens, skip_special_tokens=False) != text:
            return tokens, "the server gave text, not tokens, and the text doesn't survive being tokenised again"
        if count is not None and count != len(tokens):
            return tokens, f"the server gave text, which tokenises to {len(tokens)} tokens where it counts {count}"
        return tokens, TEXT_ONLY

    def _of_entry(self, entry: Any) -> int | None:
        """The token that an entry of logprobs stands for; None where the entry doesn't stand for exactly one token."""
        if isinstance(entry, dict):
            if is_id(entry.get("id")):
                return int(entry["id"])
            entry = entry.get("token")
        if not isinstance(entry, str):
            return None
        if TOKEN.fullmatch(entry):
            number = int(entry.removeprefix(TOKEN_ID))
            return number if is_id(number) else None
        return self._ids_by_text.get(entry)

    @cached_property
    def _ids_by_text(self) -> dict[str, int | None]:
        """The token of each text; None for a text that several tokens share."""
        ids: dict[str, int | None] = {}
        for token in range(self.tokenizer.get_vocab_size()):
            text = self.tokenizer.decode([token], skip_special_tokens=False)
            ids[text] = None if text in ids else token
        return ids


def is_id(value: Any) -> bool:
    """Whether a value may be a token's id."""
    return type(value) is int and 0 <= value <= LARGEST_ID


def _choice(reply: Json) -> Json:
    """The part with the new text: the only choice in OpenAI's protocol, the whole reply in llama.cpp's and SGLang's."""
    choices = reply.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    if choices is None and ("output_ids" in reply or ("content" in reply and "tokens_predicted" in reply)):
        return reply
    raise Unreadable("without choices", "check that the URL is that of an OpenAI-compatible server", reply)


def _entries(choice: Json) -> list[Any]:
    """One entry for each token, from OpenAI's two forms of logprobs or llama.cpp's completion_probabilities."""
    logprobs = _object(choice, "logprobs")
    for entries in (logprobs.get("content"), logprobs.get("tokens"), choice.get("completion_probabilities")):
        if isinstance(entries, list) and entries:
            return entries
    return []


def _reason(choice: Json, meta: Json) -> Any:
    """The finish_reason. SGLang's own protocol gives it in an object, llama.cpp's as stop_type."""
    given = choice.get("finish_reason", meta.get("finish_reason"))
    if isinstance(given, dict):
        given = given.get("type")
    if given is None and isinstance(choice.get("stop_type"), str):
        given = {"eos": "stop", "word": "stop", "limit": "length"}.get(choice["stop_type"], choice["stop_type"])
    return given


def _speculation(reply: Json, meta: Json, usage: Json) -> Speculation | None:
    """The tokens drafted and accepted for this answer; None where the answer doesn't tell. They are read from
    llama.cpp's timings, which leave out a zero, SGLang's meta_info, or the details of OpenAI's usage, which a server
    may also give for other reasons."""
    timings, details = _object(reply, "timings"), _object(usage, "completion_tokens_details")
    if "predicted_n" in timings:
        return _counted(timings.get("draft_n", 0), timings.get("draft_n_accepted", 0), "timings")
    proposed = meta.get("spec_num_proposed_drafts", meta.get("spec_draft_token_num"))
    if proposed is not None:
        correct = meta.get("spec_num_correct_drafts", meta.get("spec_accept_token_num"))
        return _counted(proposed, correct, "meta_info")
    kept, refused = (_first(details.get(f"{each}_prediction_tokens")) for each in ("accepted", "rejected"))
    if kept is not None and refused is not None and kept + refused:
        return _counted(kept + refused, kept, "usage")
    return None


def _counted(drafted: Any, accepted: Any, place: str) -> Speculation | None:
    if is_id(drafted) and is_id(accepted) and accepted <= drafted:
        return Speculation(drafted, accepted, f"the {place} of its answers")
    return None


def _miscounted(ids: list[int], count: int | None) -> str:
    if count is None or count == len(ids):
        return ""
    return f"the server gave the ids of {len(ids)} tokens where it counts {count}"


def _object(of: Json, name: str) -> Json:
    value = of.get(name)
    return value if isinstance(value, dict) else {}


def _first(*values: Any) -> int | None:
    return next((value for value in values if is_id(value)), None)
