"""Which parts of a request a function takes, and what can't be asked of it because it doesn't take the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sybil.errors import InvalidSetting
from sybil.losslessness.samples import Request

if TYPE_CHECKING:
    from sybil.losslessness.report import Plan

FILTERS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # the filters, with the value that switches each off
NOTES = {
    "temperature": "it takes no temperature: the one that it has is held to be the one that was asked for",
    "seed": "it takes no seed: it may never say the same again",
    "eos_token_ids": "it takes no eos_token_ids: it is held to the target's own end tokens, and no other was tried",
    "stop_strings": "it takes no stop_strings: none was tried",
}


@dataclass(frozen=True, slots=True)
class Taking:
    """What a function takes. names: the keywords that it is called with, beside its prompt."""

    names: frozenset[str]

    @property
    def notes(self) -> list[str]:
        """Notes on what can't be checked of the function."""
        return [note for name, note in NOTES.items() if name not in self.names]

    def settings(self, request: Request, seed: int) -> dict[str, Any]:
        """A request as the keywords that the function takes."""
        every = {
            "max_new_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p,
            "min_p": request.min_p,
            "eos_token_ids": request.eos_token_ids,
            "stop_strings": request.stop_strings,
            "seed": seed,
        }
        return {name: value for name, value in every.items() if name in self.names}

    def takes(self, request: Request) -> bool:
        """Whether the function can be asked for the request's stops."""
        return not any(getattr(request, name) and name not in self.names for name in ("eos_token_ids", "stop_strings"))

    def check(self, decoder: str, plan: Plan) -> None:
        """Raises InvalidSetting for a plan that can't be put to the function. decoder: the function's name."""
        if "max_new_tokens" not in self.names:
            raise InvalidSetting(f"decoder {decoder} takes no max_new_tokens, which bounds an answer: let it take it")
        if not plan.repeats:
            return
        for name, off in FILTERS.items():
            value = getattr(plan.request, name)
            if value != off and name not in self.names:
                raise InvalidSetting(
                    f"{name} is {value:g} and decoder {decoder} takes no {name}: let it take it, or leave {name} out"
                )
        if "temperature" not in self.names and (plan.greedy or plan.stopping):
            raise InvalidSetting(
                f"decoder {decoder} takes no temperature, so it can't be asked to be greedy and to sample: let it take "
                "it, or leave one out (repeats 0; or greedy 0 and stopping 0)"
            )
