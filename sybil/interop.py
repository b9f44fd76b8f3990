"""Sybil's loop inside transformers' own generate()."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)
from transformers.generation import GenerateDecoderOnlyOutput

from sybil.decoding import Decoder
from sybil.drafting import DraftModel
from sybil.errors import InvalidSetting, UnsupportedModel, VocabularyMismatch
from sybil.models.huggingface import HuggingFaceModel
from sybil.sampling import Processor
from sybil.settings import check_processors
from sybil.stopping import Criterion
from sybil.transfer import integers

GENERATE = inspect.unwrap(GenerationMixin.generate).__code__
MODES = ("greedy_search", "sample")
PREPARED = {"attention_mask", "position_ids", "past_key_values"}  # by generate(); what matters of them is checked
OF_THE_LOOP = {"use_cache", "logits_to_keep", "synced_gpus", "tokenizer"}  # how to run a loop that isn't run
ROW_BLIND = {  # of transformers' own, those that do the same to a row whatever its number
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "ExponentialDecayLengthPenalty",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "InfNanRemoveLogitsProcessor",
    "LogitNormalization",
    "MaxTimeCriteria",
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
    "MinPLogitsWarper",
    "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "SequenceBiasLogitsProcessor",
    "StopStringCriteria",
    "SuppressTokensAtBeginLogitsProcessor",
    "SuppressTokensLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopHLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "TypicalLogitsWarper",
    "WatermarkLogitsProcessor",
}
PADDED_TO, PADDING = 64, 1024  # vocabularies are padded to a multiple of the one, by less than the other


def custom_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    draft: PreTrainedModel | None = None,
    assistant_model: PreTrainedModel | None = None,
    streamer: Any = None,
    gamma: Any = None,
    rule: str | None = None,
    seed: int | None = None,
    window: Any = None,
    **model_kwargs: Any,
) -> Any:
    """The loop for model.generate(ids, custom_generate=sybil.custom_generate, assistant_model=draft).

    The same tokens, or the same distribution, as generate() without the two arguments; (batch, n) ids, or a
    GenerateDecoderOnlyOutput. Without a draft it decodes plainly. gamma, rule, seed and window are keywords of
    generate() then; no seed means one drawn from torch's generator. draft= is assistant_model= by another name, which
    transformers lets pass beside num_return_sequences.

    Both models run as they are, with their own weights and forward: to pack a copy at each call would cost more than
    it gains, and one kept could be stale. sybil.load(model, draft=draft) is the fast way. A row that has ended is
    padded whatever ended it; processors must be functions of (ids, scores), and criteria are asked of one row at a
    time. transformers (5.23) keeps tokenizer= from its own stop_strings here: give
    stopping_criteria=[StopStringCriteria(tokenizer, stop_strings)]. Raises the errors of sybil.errors.
    """
    helper = next((each for each in (draft, assistant_model) if each is not None), _kept_back("assistant_model", model))
    streamer = _kept_back("streamer", model) if streamer is None else streamer
    _check_models(model, helper)
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
    if streamer is not None and batch > 1:
        raise InvalidSetting(f"streamer is set with {batch} rows: stream one prompt at a time")
    if pad is None and batch > 1 and criteria:
        raise InvalidSetting(f"{batch} rows may end at different lengths and pad_token_id is None: set it")

    tokens, hidden = input_ids.cpu(), padding.tolist()
    rows = _Rows([row[:count] for row, count in zip(tokens, hidden, strict=True)])
    target = HuggingFaceModel(model)
    drafter = None if helper is None else DraftModel(HuggingFaceModel(helper))
    if seed is None and generation_config.do_sample and not target.is_shared_by_ranks:
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))  # so that torch.manual_seed repeats it
    ours = {"gamma": gamma, "rule": rule, "seed": seed, "window": window}
    run = Decoder(target, drafter).stream(
        [row[count:] for row, count in zip(tokens, hidden, strict=True)],
        max_new_tokens=max(stopping_criteria.max_length - length, 1),
        do_sample=generation_config.do_sample,
        top_k=0,  # temperature and filters are among the processors
        eos_token_id=eos,
        logits_processor=[_Processors(logits_processor, rows)] if logits_processor else (),
        stopping_criteria=[_Criterion(each, rows, input_ids.device) for each in criteria],
        **{name: value for name, value in ours.items() if value is not None},
    )
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


def _kept_back(name: str, model: PreTrainedModel) -> Any:
    """An argument of the generate() call that led here, or None.

    transformers (5.23) hands a callable only keywords that generate() does not name, and would so drop its own
    assistant_model and streamer without a word."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is GENERATE and frame.f_locals["self"] is model:
            return frame.f_locals[name]
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _check_request(config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
    """Raises InvalidSetting for what the loop does not do."""
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


def _check_models(model: PreTrainedModel, draft: PreTrainedModel | None) -> None:
    """Raises UnsupportedModel, InvalidSetting, or VocabularyMismatch unless one vocabulary is the other one padded."""
    for each in (model, draft):
        if each is not None and each.config.is_encoder_decoder:
            raise UnsupportedModel(f"{type(each).__name__} is not a decoder-only language model: give one of those")
        if each is not None and each.training:
            raise InvalidSetting(f"{type(each).__name__} is in training mode, where dropout is on: call its eval()")
    if draft is None:
        return
    sizes = [int(each.config.get_text_config().vocab_size) for each in (model, draft)]
    surplus = max(sizes) - min(sizes)
    if surplus and (max(sizes) % PADDED_TO or surplus >= PADDING):
        raise VocabularyMismatch(
            f"target {type(model).__name__} has {sizes[0]} tokens and draft {type(draft).__name__} {sizes[1]}: "
            "choose a draft with the target's tokenizer, or say that it is shared with sybil.load(..., tokenizer=)"
        )


def _end_tokens(criterion: Any) -> list[int]:
    return list(criterion.eos_token_id.tolist()) if isinstance(criterion, EosTokenCriteria) else []


def _padding(mask: Tensor, positions: Tensor | None) -> Tensor:
    """How many tokens (batch,) each row of mask (batch, n) hides, all of them on the left; raises InvalidSetting."""
    shown = mask.cpu() != 0
    if not bool((shown[:, 1:] >= shown[:, :-1]).all() and shown[:, -1:].all()):
        raise InvalidSetting("attention_mask hides tokens after a row's first: pad on the left")
    if positions is not None and bool(((positions.cpu() != shown.cumsum(1) - 1) & shown).any()):
        raise InvalidSetting("position_ids are not the tokens' places in their rows: leave them out")
    return (~shown).sum(1)


def _padded_right(prompts: Tensor, new: Sequence[Sequence[int]], pad: int) -> Tensor:
    """(batch, n + the longest row's new tokens)."""
    tail = prompts.new_full((len(new), max(map(len, new))), pad)
    for row, tokens in zip(tail, new, strict=True):
        row[: len(tokens)] = tail.new_tensor(tokens)
    return torch.cat([prompts, tail], 1)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Asks transformers' processors and criteria of a batch about one row: they see the padding (of each row, 1-d) that
    stands before it there, and answer by the row's number where they hold something for each row."""

    padding: list[Tensor]

    def shown(self, row: int, ids: Tensor) -> Tensor:
        """A row (1, n) as transformers has it."""
        return torch.cat([self.padding[row].to(ids.device)[None], ids], 1)

    def processed(self, processor: Any, row: int, ids: Tensor, scores: Tensor) -> Tensor:
        batch, kind = len(self.padding), type(processor)
        if batch > 1 and kind is PrefixConstrainedLogitsProcessor:
            allowed = partial(_allowed, processor._prefix_allowed_tokens_fn, row)
            processor = PrefixConstrainedLogitsProcessor(allowed, 1)
        elif batch > 1 and kind is RepetitionPenaltyLogitsProcessor:
            ignored = processor.prompt_ignore_length  # of each row, where any is padded
            ignored = int(ignored[row]) if isinstance(ignored, Tensor) else ignored
            processor = RepetitionPenaltyLogitsProcessor(processor.penalty, ignored)
        elif batch > 1 and kind.__name__ not in ROW_BLIND:
            # it may hold something for each row: its own place in a batch of copies tells it which this is
            of_copies: Tensor = processor(ids.repeat(batch, 1), scores.repeat(batch, 1))
            return of_copies[row : row + 1]
        processed: Tensor = processor(ids, scores)
        return processed

    def done(self, criterion: Any, row: int, ids: Tensor) -> Tensor:
        batch = len(self.padding)
        copies = 1 if type(criterion).__name__ in ROW_BLIND else batch
        done = torch.as_tensor(criterion(ids.repeat(copies, 1), None)).flatten()
        return done[row] if len(done) == batch else done.all()


@dataclass(frozen=True, slots=True)
class _Processors:
    """A LogitsProcessorList, row by row."""

    each: LogitsProcessorList
    rows: _Rows

    def of_row(self, row: int) -> Processor:
        def process(ids: Tensor, scores: Tensor) -> Tensor:
            ids = self.rows.shown(row, ids)
            for processor in self.each:
                scores = self.rows.processed(processor, row, ids, scores)
            return scores

        return process


@dataclass(frozen=True, slots=True)
class _Criterion:
    """One of transformers' criteria, row by row."""

    criterion: Any
    rows: _Rows
    device: torch.device

    def of_row(self, row: int) -> Criterion:
        def done(ids: Tensor, _: Any) -> Tensor:
            return self.rows.done(self.criterion, row, self.rows.shown(row, ids.to(self.device)))

        return done


def _allowed(function: Any, row: int, _: int, ids: Tensor) -> Any:
    return function(row, ids)
