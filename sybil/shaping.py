"""Makes logits processors from the settings that transformers implements by processors, with transformers' own code
(5.23)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sybil.arguments import described, token_ids
from sybil.errors import InvalidSetting, told
from sybil.sampling import Processor, Sampling, of_row, scored
from sybil.settings import FILTERS, SAMPLED, Settings, check_processors
from sybil.transfer import integers


@dataclass(frozen=True, slots=True)
class _Target:
    """What the processors need to know about the model and the request."""

    vocab_size: int
    device: torch.device
    settings: Settings


def sampling(settings: Settings, prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> Sampling:
    """The sampling, processors included, of the rows that continue these prompts. Raises InvalidSetting.

    transformers is imported only where a setting needs one of its processors."""
    shaping, filters = settings.shaping, settings.filters if settings.do_sample else {}
    # filters that Sampling lacks run after its own, and a watermark runs last; with either, every filter is a processor
    warped = settings.do_sample and bool(filters or "watermarking_config" in shaping)
    if warped:
        shaping |= {"do_sample": True} | {name: getattr(settings, name) for name in SAMPLED}
    processors: tuple[Any, ...] = tuple(settings.logits_processor)
    if shaping:
        target = _Target(vocab_size, device, settings)
        _check({**settings.shaping, **filters}, prompts[0], target)
        processors = (Shaped.of(shaping, prompts, target),)
    if warped:
        return Sampling(1.0, processors=processors)
    if not settings.do_sample:
        return Sampling(processors=processors)
    return Sampling(settings.temperature, settings.top_k, settings.top_p, settings.min_p, processors)


@dataclass(frozen=True, slots=True)
class Shaped:
    """The processors of each row of a batch. They differ by row, because some depend on the prompt."""

    rows: tuple[tuple[Processor, ...], ...]

    @classmethod
    def of(cls, shaping: Mapping[str, Any], prompts: Sequence[Sequence[int]], target: _Target) -> Shaped:
        """The processors for the settings in `shaping` and the caller's own processors, in transformers' order."""
        made: dict[Any, tuple[Processor, ...]] = {}
        rows = []
        for row, prompt in enumerate(prompts):
            own = [of_row(each, row) for each in target.settings.logits_processor]
            key = tuple(prompt), *map(id, own)
            if key not in made:
                made[key] = tuple(_built(shaping, prompt, own, target))
            rows.append(made[key])
        return cls(tuple(rows))

    def of_row(self, row: int) -> Processor:
        def shape(ids: Tensor, scores: Tensor) -> Tensor:
            for processor in self.rows[row]:
                scores = scored(processor, ids, scores)
            return scores

        return shape


def _built(
    shaping: Mapping[str, Any], prompt: Sequence[int], own: Sequence[Processor], target: _Target
) -> list[Processor]:
    """The list of processors that transformers' generate() would make for a row of a decoder-only model."""
    from transformers import GenerationConfig, GenerationMixin

    eos = sorted(target.settings.end_tokens)
    model = SimpleNamespace(
        config=SimpleNamespace(
            is_encoder_decoder=False, get_text_config=lambda: SimpleNamespace(vocab_size=target.vocab_size)
        )
    )
    model._merge_criteria_processor_list = partial(GenerationMixin._merge_criteria_processor_list, model)
    longest = "encoder_no_repeat_ngram_size"  # an n-gram longer than the prompt has no effect, and would take long
    if longest in shaping:
        shaping = {**shaping, longest: min(shaping[longest], len(prompt) + 1)}
    try:
        config = GenerationConfig(**shaping)
        config.max_length = target.settings.limit(len(prompt))
        config._eos_token_tensor = integers(eos).to(target.device) if eos else None
        built = GenerationMixin._get_logits_processor(
            model,
            generation_config=config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=integers([list(prompt)]).to(target.device),
            logits_processor=list(own),
            device=target.device,
        )
    except Exception as error:  # transformers raises various errors for a wrong value
        names = [f"{name} is {described(value)}" for name, value in shaping.items() if name != "do_sample"]
        raise InvalidSetting(f"{' and '.join(names)}: transformers can't apply that ({told(error)})") from None
    check_processors(built)
    return list(built)


def _check(shaping: Mapping[str, Any], prompt: Sequence[int], target: _Target) -> None:
    """Try each setting by itself, so that the message can name the one that can't be applied. Raises InvalidSetting."""
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        for token in token_ids(name, shaping.get(name)):
            if not 0 <= token < target.vocab_size:
                raise InvalidSetting(f"{name} is {token}: use a token id from 0 to {target.vocab_size - 1}")
    for name, value in shaping.items():
        ids = integers([list(prompt)]).to(target.device)
        scores = torch.zeros(1, target.vocab_size, dtype=torch.float32, device=target.device)
        for processor in _built({name: value, "do_sample": name in FILTERS}, prompt, (), target):
            try:
                processor(ids, scores)  # some check the vocabulary only at their first call
            except Exception as error:
                raise InvalidSetting(
                    f"{name} is {described(value)}: transformers can't apply that ({told(error)})"
                ) from None
