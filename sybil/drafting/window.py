"""Windows, which say how many tokens to propose next.

A window may look at tokens that were kept, and at drafted tokens that stay in the proposal. Then the output's
distribution is the target's, whatever the window decides. It must not look at a token and then leave it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from sybil.arguments import described
from sybil.errors import InvalidSetting
from sybil.results import Step


class Window(Protocol):
    """Lives as long as one generation."""

    most: int
    """An upper bound of all sizes."""
    least_confidence: float
    """A drafted token whose draft probability is below this is the last of its row's proposal; 0 means that no token
    ends it."""

    def sizes(self, sources: Sequence[int], rooms: Sequence[int]) -> list[int]:
        """For each row, the most tokens to propose now, at most its room. sources: which of the drafter's sources would
        propose them."""

    def observe(self, step: Step) -> None:
        """How the round went. Rows that proposed nothing have 0 proposed and accepted."""


class Constant:
    """gamma tokens in every round."""

    least_confidence = 0.0

    def __init__(self, batch: int, gamma: int) -> None:
        self._sizes, self.most = [gamma] * batch, gamma

    def sizes(self, sources: Sequence[int], rooms: Sequence[int]) -> list[int]:
        return [min(pair) for pair in zip(self._sizes, rooms, strict=True)]

    def observe(self, step: Step) -> None: ...


class Heuristic(Constant):
    """Two more after a proposal kept whole, one less after any other, as transformers' schedule of that name does; at
    most four times gamma."""

    def __init__(self, batch: int, gamma: int) -> None:
        super().__init__(batch, gamma)
        self.most = 4 * gamma

    def observe(self, step: Step) -> None:
        for row, (kept, asked) in enumerate(zip(step.accepted, step.proposed, strict=True)):
            if asked:
                size = self._sizes[row]
                self._sizes[row] = min(size + 2, self.most) if kept == asked else max(size - 1, 1)


class Confident(Constant):
    """Up to gamma tokens, ended by the first that the draft itself gives less than 0.4, transformers' own threshold."""

    least_confidence = 0.4


WINDOWS: dict[str, type[Constant]] = {"constant": Constant, "heuristic": Heuristic, "confident": Confident}
AUTO = "auto"
GAMMA = 4
"""The number used for AUTO where a number is needed."""


def fixed(gamma: int | str) -> int:
    """gamma as a number."""
    return GAMMA if isinstance(gamma, str) else gamma


def window_named(name: str) -> type[Constant]:
    """The window of that name; raises InvalidSetting."""
    if not isinstance(name, str) or name not in WINDOWS:
        raise InvalidSetting(f"window is {described(name)}: the windows are {', '.join(sorted(WINDOWS))}")
    return WINDOWS[name]


def confidence(logits: Tensor, tokens: Tensor) -> Tensor:
    """The probability (batch,) that logits (batch, vocab), as they are, give the tokens (batch,)."""
    return logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0].exp()
