"""The residual distribution, max(weight * target - draft, 0), and draws from it. Pure.

The rules need the residual at one or a few places of each row. The C library computes it without writing it to
memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sybil.models.native import drawing
from sybil.sampling import draw
from sybil.transfer import back, counting, native, where


@dataclass(frozen=True, slots=True)
class Residual:
    """max(weight * target - draft, 0) at n places of a batch, (n, vocab), not normalised.

    target_probs: (batch, places, vocab). draft_probs: (batch, gamma, vocab), where NaN counts as 0; None where the
    proposal of tokens (batch, gamma) was deterministic. The other fields are arrays or tensors (n,) as native() gives
    them. rows, places: the row of the batch and the place in it. weights: the factors of the target. drafted: False
    where no token is proposed, so that nothing is subtracted."""

    target_probs: Tensor
    draft_probs: Tensor | None
    tokens: Tensor
    rows: Any
    places: Any
    weights: Any
    drafted: Any

    def sums(self) -> Tensor:
        """The sum of the residual at each place, (n,)."""
        if drawing.does(self.target_probs):
            return back(self._lying().sums()).to(self.target_probs)
        return back(self._left().sum(-1))

    def draw(self, uniforms: Tensor) -> Tensor:
        """Tokens (n,) drawn by uniforms (n,) in [0, 1); -1 where there is no distribution. Where the residual is zero,
        the token is drawn from the target: draft and target differ by rounding only then, and a token was rejected
        because of rounding."""
        if drawing.does(self.target_probs):
            return back(self._lying().draw(native(uniforms)))
        return draw(back(unless_nothing(self._left(), self._target())), uniforms)

    def _target(self) -> Any:
        return native(self.target_probs)[self.rows, self.places]

    def _left(self) -> Any:
        target = self.weights[:, None] * self._target()
        gamma = self.tokens.shape[1]
        if not gamma:
            return target
        places = self.places.clip(max=gamma - 1)
        if self.draft_probs is None:
            vocab = counting(target.shape[-1], target)
            taken = where(vocab == native(self.tokens)[self.rows, places][:, None], 1.0, 0.0)
        else:
            drawn = native(self.draft_probs)[self.rows, places]
            taken = where(drawn > 0, drawn, 0.0)
        return where(self.drafted[:, None], (target - taken).clip(0), target)

    def _lying(self) -> drawing.Rest:
        """The same residual for the C library, which addresses places as rows of vocab numbers."""
        gamma = self.tokens.shape[1]
        at = self.rows * self.target_probs.shape[1] + self.places
        drafted = where(self.drafted, self.rows * gamma + self.places, -1)
        if self.draft_probs is not None:
            return drawing.Rest(native(self.target_probs), at, native(self.draft_probs), drafted, None, self.weights)
        certain = where(self.drafted, native(self.tokens).take(drafted), -1) if gamma else drafted
        return drawing.Rest(native(self.target_probs), at, None, None, certain, self.weights)


def unless_nothing(left: Any, target: Any) -> Any:
    """Rows (n, vocab): the residual `left`, or the target where the residual is zero."""
    return where((left.sum(-1) == 0)[:, None], target, left)
