"""What a caller may ask of a generation, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sybil.drafting.window import window_named
from sybil.errors import InvalidSetting
from sybil.sampling import Processor, Sampling
from sybil.stopping import Criterion
from sybil.verification import rule_named

STATEFUL = {  # of transformers' processors
    "DiaEOSDelayPatternLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "WhisperNoSpeechDetection",
}
BY_ROW = "PrefixConstrainedLogitsProcessor"


def check_processors(processors: Iterable[Any]) -> None:
    """Raises InvalidSetting for one that can't be asked about drafted tokens."""
    for each in processors:
        if STATEFUL & {kind.__name__ for kind in type(each).__mro__}:
            raise InvalidSetting(
                f"{type(each).__name__} remembers each call, and a call about a rejected token can't be taken back: "
                "leave it out, or generate without speculation"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Keywords of generate and stream. Names and defaults are transformers', but for max_new_tokens (128)
    and for gamma, rule, window and seed, which are ours.

    do_sample False is greedy and ignores temperature and the filters. eos_token_id None means the model's
    own; seed None, a fresh one; None anywhere else, the default. Stop strings end a row with the token that
    completes one, which is kept.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None
    logits_processor: Sequence[Processor] = ()
    stopping_criteria: Sequence[Criterion] = ()
    num_return_sequences: int = 1
    gamma: int = 4
    rule: str = "token"
    window: str = "constant"
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("num_return_sequences", 1), ("gamma", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                remedy = "; load the model without a draft for plain decoding" if name == "gamma" else ""
                raise InvalidSetting(f"{name} is {value!r}: use an integer of {least} or more{remedy}")
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, str) or not isinstance(value, int | float) or value != value):
                raise InvalidSetting(f"{name} is {value!r}: use a number")
        if self.seed is not None and not isinstance(self.seed, int):
            raise InvalidSetting(f"seed is {self.seed!r}: use an integer, or None for a fresh one")
        if self.do_sample and self.temperature == 0:
            raise InvalidSetting(
                "temperature is 0 with do_sample=True: raise it, or leave do_sample out for greedy decoding"
            )
        if self.repetition_penalty <= 0:
            raise InvalidSetting(f"repetition_penalty is {self.repetition_penalty}: use a number above 0 (1 is none)")
        check_processors(self.logits_processor)
        rule_named(self.rule)
        window_named(self.window)
        self.sampling()

    def sampling(self) -> Sampling:
        """These settings as a Sampling, processors included."""
        processors = tuple(self.logits_processor)
        if self.repetition_penalty != 1.0:
            from transformers import RepetitionPenaltyLogitsProcessor

            processors = (RepetitionPenaltyLogitsProcessor(self.repetition_penalty), *processors)
        top_p = 1.0 if self.top_p is None else self.top_p
        sampled = Sampling(self.temperature, self.top_k or 0, top_p, self.min_p or 0.0, processors)
        return sampled if self.do_sample else Sampling(processors=processors)  # refused above even where it isn't used
