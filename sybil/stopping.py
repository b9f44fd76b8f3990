"""Decides when a row ends. It is asked about every token, so no token is emitted that plain decoding would not emit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from sybil.arguments import described
from sybil.errors import InvalidSetting
from sybil.pieces import Pieces
from sybil.results import FinishReason
from sybil.sampling import of_row
from sybil.transfer import integers

Criterion = Callable[[torch.Tensor, Any], Any]
"""A StoppingCriteria as transformers has it: (tokens so far (1, n), scores) -> bool, or a tensor with one bool. It may
have a method of_row, as processors may."""


@dataclass(frozen=True, slots=True)
class Stops:
    """Everything that can end a row except its length. A stop string ends a row where transformers' StopStringCriteria
    would: the string may begin in the prompt, and special tokens count as text. The row ends at a token that completes
    the string."""

    eos: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    tokenizer: Tokenizer | None = None
    pieces: Pieces | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.strings and self.tokenizer is not None:
            object.__setattr__(self, "pieces", Pieces(self.tokenizer))

    def keep(
        self, prompt: Sequence[int], new: Sequence[int], block: Sequence[int], row: int = 0
    ) -> tuple[int, FinishReason | None]:
        """(how many tokens of block are emitted, why the row ends with the last of them). The reason is None where the
        row goes on. block: the tokens that follow prompt + new. row: the row's number in the batch."""
        if not (self.eos or self.strings or self.criteria):
            return len(block), None
        so_far = [*new]
        for count, token in enumerate(block, start=1):
            so_far.append(token)
            reason = self._reason(prompt, so_far, row)
            if reason is not None:
                return count, reason
        return len(block), None

    def _reason(self, prompt: Sequence[int], new: Sequence[int], row: int) -> FinishReason | None:
        if new[-1] in self.eos:
            return "eos"
        if self.pieces and self._completes_a_string(self.pieces, prompt, new):
            return "stop_string"
        if self.criteria:
            ids = integers([[*prompt, *new]])
            if any(_is_met(of_row(criterion, row), ids) for criterion in self.criteria):
                return "criterion"
        return None

    def _completes_a_string(self, pieces: Pieces, prompt: Sequence[int], new: Sequence[int]) -> bool:
        reach = max(len(string.encode()) for string in self.strings)  # tokens: each has a letter or a byte at least
        tail = new[-reach:]
        lacking = reach - len(tail)
        return pieces.complete(self.strings, [*prompt[-lacking:], *tail] if lacking else tail)


def _is_met(criterion: Criterion, ids: torch.Tensor) -> bool:
    """Whether the criterion ends a row of token ids (1, n). Raises InvalidSetting where it returns no bool."""
    said = criterion(ids, None)
    if not isinstance(said, int | np.bool_ | torch.Tensor):
        raise InvalidSetting(
            f"stopping_criteria holds {described(criterion)}, which gave {described(said)}: return True or False"
        )
    return bool(said.all() if isinstance(said, torch.Tensor) else said)
