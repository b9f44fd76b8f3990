"""When a row ends: asked after every token, so that nothing is emitted that plain decoding would not have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from sybil.results import FinishReason
from sybil.sampling import of_row
from sybil.text import decode

Criterion = Callable[[torch.Tensor, Any], Any]
"""transformers' StoppingCriteria: (tokens so far (1, n), scores) -> bool, or a tensor of one. It may have of_row, as
processors may."""


@dataclass(frozen=True, slots=True)
class Stops:
    """Everything that can end a row but its length. stop_strings are looked for in the new text only."""

    eos: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    tokenizer: Tokenizer | None = None

    def keep(
        self, prompt: Sequence[int], new: Sequence[int], block: Sequence[int], row: int = 0
    ) -> tuple[int, FinishReason | None]:
        """How many of block's tokens, which follow prompt + new, are emitted, and why the row ends there."""
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
        if self.strings and self._ends_in_stop_string(new):
            return "stop_string"
        if self.criteria:
            ids = torch.tensor([[*prompt, *new]])
            if any(bool(torch.as_tensor(of_row(criterion, row)(ids, None)).all()) for criterion in self.criteria):
                return "criterion"
        return None

    def _ends_in_stop_string(self, new: Sequence[int]) -> bool:
        # a token holds at least a byte, so the longest string is within that many tokens and one character's more
        assert self.tokenizer is not None
        reach = max(len(string.encode()) for string in self.strings) + 4
        text = decode(self.tokenizer, new[-reach:])
        return any(string in text for string in self.strings)
