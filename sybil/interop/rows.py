"""Calls transformers' processors and criteria, which take a whole batch, for one row of a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PrefixConstrainedLogitsProcessor, RepetitionPenaltyLogitsProcessor

from sybil.sampling import Processor
from sybil.stopping import Criterion

ROW_BLIND = {  # transformers' own classes that treat a row in the same way whatever its number
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


@dataclass(frozen=True, slots=True)
class Rows:
    """Calls a batch's processors and criteria for one row. They see the row with its own padding before it, as in the
    batch. Where they hold something for each row, the row's number counts. Padding: one 1-d tensor for each row."""

    padding: list[Tensor]

    def shown(self, row: int, ids: Tensor) -> Tensor:
        """A row's token ids (1, n) as transformers has them: with the row's padding before them."""
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
            # it may hold something for each row, so it gets a batch of copies, and the row's own place counts
            of_copies: Tensor = processor(ids.repeat(batch, 1), scores.repeat(batch, 1))
            return of_copies[row : row + 1]
        processed: Tensor = processor(ids, scores)
        return processed

    def done(self, criterion: Any, row: int, ids: Tensor) -> Tensor:
        batch = len(self.padding)
        copies = 1 if type(criterion).__name__ in ROW_BLIND else batch
        done = torch.as_tensor(criterion(ids.repeat(copies, 1), None), device="cpu").flatten()
        return done[row] if len(done) == batch else done.all()


@dataclass(frozen=True, slots=True)
class RowProcessors:
    """A LogitsProcessorList that is called row by row."""

    each: LogitsProcessorList
    rows: Rows

    def of_row(self, row: int) -> Processor:
        def process(ids: Tensor, scores: Tensor) -> Tensor:
            ids = self.rows.shown(row, ids)
            for processor in self.each:
                scores = self.rows.processed(processor, row, ids, scores)
            return scores

        return process


@dataclass(frozen=True, slots=True)
class RowCriterion:
    """One of transformers' criteria, called row by row."""

    criterion: Any
    rows: Rows
    device: torch.device

    def of_row(self, row: int) -> Criterion:
        def done(ids: Tensor, _: Any) -> Tensor:
            return self.rows.done(self.criterion, row, self.rows.shown(row, ids.to(self.device)))

        return done


def _allowed(function: Any, row: int, _: int, ids: Tensor) -> Any:
    return function(row, ids)
