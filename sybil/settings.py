"""The settings of a generation, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from typing import Any

from sybil.arguments import callables, described, flag, integer, number, strings, token_ids
from sybil.drafting.window import AUTO, window_named
from sybil.errors import InvalidSetting
from sybil.lossy import rule_named
from sybil.sampling import Processor, Sampling
from sybil.stopping import Criterion

MOST = 2**31 - 1  # the limit for rows, for a round's tokens and for a batch's tokens
PLAIN = ', or "auto"; load the model without a draft for plain decoding'
NEW_TOKENS = 128  # the default where neither max_new_tokens nor max_length is given
STATEFUL = {  # transformers' processors that remember earlier calls
    "DiaEOSDelayPatternLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "WhisperNoSpeechDetection",
}
BY_ROW = "PrefixConstrainedLogitsProcessor"
UNSUPPORTED: Mapping[str, Any] = {  # values that switch off what changes tokens in transformers and Sybil lacks
    "assistant_ensemble_weight": None,
    "constraints": None,
    "dola_layers": None,
    "force_words_ids": None,
    "guidance_scale": 1,
    "num_beam_groups": 1,
    "num_beams": 1,
    "penalty_alpha": 0,
    "token_healing": False,
}
WITHOUT_EFFECT = ("bos_token_id", "pad_token_id", "use_cache")  # they change no tokens, and are often given


def check_processors(processors: Iterable[Any]) -> None:
    """Raises InvalidSetting for a processor that can't be called for drafted tokens, because it remembers its calls."""
    for each in processors:
        if STATEFUL & {kind.__name__ for kind in type(each).__mro__}:
            raise InvalidSetting(
                f"{type(each).__name__} remembers each call, and a call about a rejected token can't be taken back: "
                "leave it out, or generate without speculation"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The keywords of generate and stream. Their names, defaults and meanings are transformers', except gamma, rule,
    window and seed, which are Sybil's own. As in transformers, None switches a setting off.

    A row ends after max_new_tokens new tokens. Where max_new_tokens is None, the row ends when it has max_length
    tokens, prompt included; where both are None, after 128 new tokens. A row ends earlier with a token of eos_token_id,
    with the token that completes one of stop_strings, or when one of stopping_criteria says so. The token that ends a
    row is kept.

    do_sample=False decodes greedily and ignores the temperature and the filters.

    - gamma: how many tokens are proposed in a round. "auto" proposes as many as make decoding faster, and none where
      drafting doesn't. It measures the time of a round. Where a seed is given and the text depends on gamma (when
      sampling by the rules token or block, or by a lossy rule), it computes with the models' sizes instead, so that the
      seed repeats the text. For the windows heuristic and confident, "auto" stands for 4.
    - rule: "token", "block" or "coupled", which are lossless; or a rule of lossy.py with its strength ("typical:0.09"),
      whose result is marked lossless=False.
    - window: how gamma changes from round to round: the names are in drafting/window.py.
    - seed: the seed of all random numbers; None draws a fresh one.

    Raises InvalidSetting.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    max_time: float | None = None
    eos_token_id: int | Sequence[int] | None = ()
    stop_strings: str | Sequence[str] | None = ()
    stopping_criteria: Sequence[Criterion] = ()
    num_return_sequences: int = 1

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0

    logits_processor: Sequence[Processor] = ()
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int | None = None
    bad_words_ids: Any = None
    sequence_bias: Any = None
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] = ()
    exponential_decay_length_penalty: Any = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    watermarking_config: Any = None

    gamma: int | str = AUTO
    rule: str = "token"
    window: str = "constant"
    seed: int | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                value = 0 if each.name == "top_k" else each.default  # the default is 50, but None keeps every token
            elif each.name in CHECKS:
                value = CHECKS[each.name](each.name, value)
            object.__setattr__(self, each.name, value)
        if self.do_sample and self.temperature == 0:
            raise InvalidSetting(
                "temperature is 0 with do_sample=True: raise it, or leave do_sample out for greedy decoding"
            )
        for name in ("repetition_penalty", "encoder_repetition_penalty"):
            if getattr(self, name) <= 0:
                raise InvalidSetting(f"{name} is {getattr(self, name)}: use a number above 0 (1 is none)")
        check_processors(self.logits_processor)
        rule_named(self.rule)
        window_named(self.window)
        Sampling(self.temperature, self.top_k, self.top_p, self.min_p)  # refused even if unused

    @property
    def shaping(self) -> dict[str, Any]:
        """The settings of SHAPING that are switched on, by name."""
        values = self._set(SHAPING)
        if self.min_new_tokens is not None:  # it takes precedence over min_length
            values.pop("min_length", None)
        return values

    @property
    def filters(self) -> dict[str, Any]:
        """The settings of FILTERS that are switched on, by name."""
        return self._set(FILTERS)

    def _set(self, names: Iterable[str]) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None and not _equal(value, OFF[name])}

    @property
    def end_tokens(self) -> frozenset[int]:
        """eos_token_id as a set."""
        return frozenset(token_ids("eos_token_id", self.eos_token_id))

    def limit(self, prompt: int) -> int:
        """The most tokens that a row may have, its `prompt` prompt tokens included. Raises InvalidSetting where the
        prompt fills max_length."""
        if self.max_new_tokens is None and self.max_length is not None:
            if prompt >= self.max_length:
                raise InvalidSetting(
                    f"max_length is {self.max_length} and the prompt has {prompt} tokens, which it counts: raise it, "
                    "or say max_new_tokens"
                )
            return self.max_length
        return prompt + (NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens)


SHAPING = (  # settings from which transformers makes processors, for sampled and for greedy decoding
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "remove_invalid_values",
    "renormalize_logits",
    "watermarking_config",
)
FILTERS = ("top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")  # filters for sampling that Sampling doesn't have
SAMPLED = ("temperature", "top_k", "top_p", "min_p", *FILTERS)
OURS = ("gamma", "rule", "window", "seed")
GIVEN = ("logits_processor", "stopping_criteria")  # objects, which can't be in a file
OFF = {each.name: each.default for each in fields(Settings)} | {"min_new_tokens": 0}
NAMES = frozenset(each.name for each in fields(Settings))
DEFAULTS = NAMES - {*OURS, *GIVEN, "eos_token_id"}  # what a model's own files may set; end tokens are read separately


CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("max_new_tokens", "max_length"), partial(integer, least=1)),
    "num_return_sequences": partial(integer, least=1, most=MOST),
    **dict.fromkeys(
        ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"),
        partial(integer, least=0),
    ),
    "gamma": lambda name, value: AUTO if _equal(value, AUTO) else integer(name, value, 1, MOST, PLAIN),
    "seed": partial(integer, least=-(2**63), most=2**64 - 1, remedy=", or None for a fresh one"),
    "top_k": integer,
    **dict.fromkeys(
        ("max_time", "temperature", "top_p", "min_p", *FILTERS, "repetition_penalty", "encoder_repetition_penalty"),
        number,
    ),
    **dict.fromkeys(("do_sample", "remove_invalid_values", "renormalize_logits"), flag),
    **dict.fromkeys(("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"), token_ids),
    "forced_bos_token_id": integer,
    "stop_strings": strings,
    **dict.fromkeys(GIVEN, callables),
}


def _equal(one: Any, other: Any) -> bool:
    """one == other as one bool, also for arrays."""
    return type(one) is type(other) and bool(one == other)


def chosen(defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> Settings:
    """The Settings of a generation: a caller's keywords, and a model's own defaults for what the caller leaves out.

    asked: the keywords, among them transformers' generation_config perhaps. The config's fields override the defaults,
    and the other keywords override its fields. Raises InvalidSetting."""
    keywords = {name: value for name, value in asked.items() if name != "generation_config"}
    whole = {**_of_config(asked.get("generation_config")), **_known(keywords)}
    sampled = whole.get("do_sample", defaults.get("do_sample"))
    unused = SAMPLED if sampled is None or not flag("do_sample", sampled) else ()
    inherited = {name: value for name, value in defaults.items() if name not in unused}
    return Settings(**{**inherited, **whole})


def blamed(error: InvalidSetting, defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> InvalidSetting:
    """An error about a setting, with its source: where the setting comes from the model's files or the
    generation_config and not from a keyword, the message says so. The error's message must begin with the setting's
    name."""
    name = str(error).split(" ", 1)[0]
    if name not in defaults or name in asked or getattr(asked.get("generation_config"), name, None) is not None:
        return error
    return InvalidSetting(f"{error} (the model's own default, which {name}= overrides)")


def unsupported(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that belong to UNSUPPORTED and are switched on."""
    return {
        name: values[name]
        for name, off in UNSUPPORTED.items()
        if values.get(name) is not None and not (isinstance(values[name], int | float) and values[name] == off)
    }


def _known(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that are fields of Settings. Raises InvalidSetting for unknown keywords and for settings that Sybil
    doesn't support."""
    for name, value in unsupported(keywords).items():
        raise InvalidSetting(f"{name} is {described(value)}: Sybil decodes greedily and by sampling, leave it out")
    unknown = sorted(keywords.keys() - NAMES - UNSUPPORTED.keys() - {*WITHOUT_EFFECT})
    if unknown:
        near = get_close_matches(unknown[0], sorted(NAMES), n=1)
        known = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(OFF)}"
        raise InvalidSetting(f"unknown setting {', '.join(unknown)}: {known}")
    return {name: value for name, value in keywords.items() if name in NAMES}


def _of_config(config: Any) -> dict[str, Any]:
    """The settings of a GenerationConfig, by name. Raises InvalidSetting."""
    if config is None:
        return {}
    if isinstance(config, type) or not hasattr(config, "to_diff_dict"):
        raise InvalidSetting(
            f"generation_config is {described(config)}: use transformers' GenerationConfig, or its fields as keywords"
        )
    values = {name: value for name, value in config.to_diff_dict().items() if value is not None}
    for name, value in unsupported(values).items():
        raise InvalidSetting(
            f"generation_config has {name}={described(value)}: Sybil decodes greedily and by sampling, leave it out"
        )
    return {name: value for name, value in values.items() if name in DEFAULTS or name == "eos_token_id"}
