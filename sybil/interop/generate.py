"""Sybil's loop inside transformers' own generate()."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation import GenerateDecoderOnlyOutput

from sybil.arguments import check_streamer, described
from sybil.decoding import Decoder
from sybil.drafting import DraftModel
from sybil.errors import InvalidSetting
from sybil.fit import check_sizes
from sybil.interop.rows import RowCriterion, RowProcessors, Rows
from sybil.lossy import is_lossy
from sybil.models.huggingface import HuggingFaceModel
from sybil.settings import check_processors
from sybil.transfer import integers

MODES = ("greedy_search", "sample")
PREPARED = {"attention_mask", "position_ids", "past_key_values"}  # made by generate(); those that matter are checked
OF_THE_LOOP = {"use_cache", "logits_to_keep", "synced_gpus", "tokenizer"}  # settings of transformers' own loop
UNSAID: Any = object()


def custom_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    draft: nn.Module | None = UNSAID,
    streamer: Any = None,
    gamma: Any = None,
    rule: str | None = None,
    seed: int | None = None,
    window: Any = None,
    **model_kwargs: Any,
) -> Any:
    """Sybil's loop for model.generate(ids, custom_generate=sybil.custom_generate, draft=draft).

    The call gives the same tokens, or tokens of the same distribution, as generate() without the two arguments. It
    returns (batch, n) token ids, or a GenerateDecoderOnlyOutput. draft is a model with the same tokens, or None to
    decode autoregressively. gamma, rule, seed and window become keywords of generate(). Without a seed, one is drawn
    from torch's generator.

    transformers (5.23) passes no keyword to a callable that generate() itself names. So assistant_model= has no effect
    here. A streamer is bound to the callable: custom_generate=functools.partial(sybil.custom_generate,
    streamer=streamer). tokenizer= for stop_strings doesn't arrive either: give
    stopping_criteria=[StopStringCriteria(tokenizer, stop_strings)].

    Both models run with their own weights and their own forward. Packing a copy at each call would cost more than it
    gains, and a copy kept between calls could be out of date. sybil.load(model, draft=draft) is faster.

    A row that has ended is padded, whatever ended it. Processors must be functions of (ids, scores), and criteria are
    called for one row at a time. Raises the errors of sybil.errors.
    """
    if draft is UNSAID:
        raise InvalidSetting(
            "custom_generate has no draft: give generate() draft=, for its assistant_model= does not come through, or "
            "draft=None to decode plainly"
        )
    if not isinstance(draft, nn.Module | None):
        raise InvalidSetting(
            f"draft is {described(draft)}: give a transformers model, or None; sybil.load() takes names and lookup"
        )
    if isinstance(rule, str) and is_lossy(rule):
        raise InvalidSetting(
            f"rule is {described(rule)}, which isn't lossless, and generate() can't say so: use a lossless rule, or "
            "sybil.load(model, draft=draft).generate"
        )
    if model.training:
        raise InvalidSetting(f"{type(model).__name__} is in training mode, where dropout is on: call its eval()")
    target = HuggingFaceModel(model)
    helper = None if draft is None else HuggingFaceModel(draft)
    if helper is not None:
        check_sizes((type(model).__name__, type(draft).__name__), (target.vocab_size, helper.vocab_size))
    _check_request(generation_config, model_kwargs)
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    padding = _padding(mask, model_kwargs.get("position_ids"))
    eos = [token for each in stopping_criteria for token in _end_tokens(each)]
    counted = (EosTokenCriteria, MaxLengthCriteria)  # which the settings below express
    criteria = [each for each in stopping_criteria if not isinstance(each, counted)]
    check_processors(logits_processor)
    pad = generation_config._pad_token_tensor
    batch, length = input_ids.shape
    check_streamer(streamer, batch)
    if pad is None and batch > 1 and criteria:
        raise InvalidSetting(f"{batch} rows may end at different lengths and pad_token_id is None: set it")

    tokens, hidden = input_ids.cpu(), padding.tolist()
    rows = Rows([row[:count] for row, count in zip(tokens, hidden, strict=True)])
    if seed is None and generation_config.do_sample and not target.is_shared_by_ranks:
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))  # so that torch.manual_seed repeats it
    ours = {"gamma": gamma, "rule": rule, "seed": seed, "window": window}
    run = Decoder(target, None if helper is None else DraftModel(helper)).stream(
        [row[count:] for row, count in zip(tokens, hidden, strict=True)],
        max_new_tokens=max(stopping_criteria.max_length - length, 1),
        do_sample=generation_config.do_sample,
        top_k=0,  # temperature and filters are among the processors
        eos_token_id=eos,
        logits_processor=[RowProcessors(logits_processor, rows)] if logits_processor else (),
        stopping_criteria=[RowCriterion(each, rows, input_ids.device) for each in criteria],
        **{name: value for name, value in ours.items() if value is not None},
    )
    if streamer is not None:
        streamer.put(tokens)  # as generate() does
    new: list[list[int]] = [[] for _ in range(batch)]
    reasons: set[str | None] = set()
    for step in run:
        reasons.update(step.finished)
        for row, gained in zip(new, step.tokens, strict=True):
            row += gained
        if streamer is not None:
            for token in step.tokens[0]:
                streamer.put(integers([token]))
    if streamer is not None:
        streamer.end()
    if "context" in reasons:
        warnings.warn(
            f"the model's context of {target.context} tokens ended the output before max_length "
            f"{stopping_criteria.max_length} did: lower max_new_tokens",
            stacklevel=2,
        )
    sequences = _padded_right(input_ids, new, 0 if pad is None else int(pad))
    return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences


def _check_request(config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
    """Raises InvalidSetting for a setting that Sybil's loop doesn't support."""
    mode = str(config.get_generation_mode().value)
    if mode not in MODES:
        raise InvalidSetting(f"the generation mode is {mode}: Sybil does {' and '.join(MODES)}; leave its settings out")
    outputs = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    asked = [name for name in outputs if getattr(config, name, None)]
    if asked and config.return_dict_in_generate:
        raise InvalidSetting(f"{', '.join(asked)} is set: Sybil returns sequences only, leave it out")
    if getattr(model_kwargs.get("past_key_values"), "_is_user_defined", False):
        raise InvalidSetting("past_key_values is given: Sybil keeps caches of its own, leave it out")
    foreign = model_kwargs.keys() - PREPARED - OF_THE_LOOP
    given = sorted(name for name in foreign if model_kwargs[name] is not None)
    if given:
        raise InvalidSetting(f"{', '.join(given)} is given: Sybil takes token ids only, leave it out")


def _end_tokens(criterion: Any) -> list[int]:
    return list(criterion.eos_token_id.tolist()) if isinstance(criterion, EosTokenCriteria) else []


def _padding(mask: Tensor, positions: Tensor | None) -> Tensor:
    """How many tokens each row of mask (batch, n) hides, (batch,). Raises InvalidSetting unless all of them are on the
    left."""
    shown = mask.cpu() != 0
    if not bool((shown[:, 1:] >= shown[:, :-1]).all() and shown[:, -1:].all()):
        raise InvalidSetting("attention_mask hides tokens after a row's first: pad on the left")
    if positions is not None and bool(((positions.cpu() != shown.cumsum(1) - 1) & shown).any()):
        raise InvalidSetting("position_ids are not the tokens' places in their rows: leave them out")
    return (~shown).sum(1)


def _padded_right(prompts: Tensor, new: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Prompts and new tokens as one tensor (batch, n + the longest row's new tokens), padded on the right."""
    tail = prompts.new_full((len(new), max(map(len, new))), pad)
    for row, tokens in zip(tail, new, strict=True):
        row[: len(tokens)] = tail.new_tensor(tokens)
    return torch.cat([prompts, tail], 1)
