"""Windows, which decide how many tokens to propose next.

A window may look at tokens that were kept, and at drafted tokens that stay in the proposal. Then the output's
distribution is the target's, whatever the window decides. A window must not look at a drafted token and then drop it
from the proposal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from sybil.arguments import described
from sybil.errors import InvalidSetting
from sybil.results import Step


class Window(Protocol):
    """Decides the lengths of proposals. A window lives as long as one generation."""

    most: int
    """An upper bound of all sizes."""
    least_confidence: float
    """A drafted token whose draft probability is below this is the last of its row's proposal. With 0 no token ends a
    proposal."""

    def sizes(self, sources: Sequence[int], rooms: Sequence[int]) -> list[int]:
        """For each row, the most tokens to propose now. sources: the number of the drafter's source that would propose
        them. rooms: the most tokens that the row has room for."""

    def observe(self, step: Step) -> None:
        """Learn from a round. Rows for which nothing was proposed have 0 proposed and 0 accepted tokens."""


class Constant:
    """Proposes gamma tokens in every round."""

    least_confidence = 0.0

    def __init__(self, batch: int, gamma: int) -> None:
        self._sizes, self.most = [gamma] * batch, gamma

    def sizes(self, sources: Sequence[int], rooms: Sequence[int]) -> list[int]:
        return [min(pair) for pair in zip(self._sizes, rooms, strict=True)]

    def observe(self, step: Step) -> None: ...


class Heuristic(Constant):
    """Proposes two tokens more after a proposal that was kept as a whole, and one token less after any other, as
    transformers' schedule of that name does. It proposes at most four times gamma tokens."""

    def __init__(self, batch: int, gamma: int) -> None:
        super().__init__(batch, gamma)
        self.most = 4 * gamma

    def observe(self, step: Step) -> None:
        for row, (kept, asked) in enumerate(zip(step.accepted, step.proposed, strict=True)):
            if asked:
                size = self._sizes[row]
                self._sizes[row] = min(size + 2, self.most) if kept == asked else max(size - 1, 1)


class Confident(Constant):
    """Proposes up to gamma tokens. The first token to which the draft gives a probability below 0.4, transformers' own
    threshold, ends the proposal."""

    least_confidence = 0.4


WINDOWS: dict[str, type[Constant]] = {"constant": Constant, "heuristic": Heuristic, "confident": Confident}
AUTO = "auto"
GAMMA = 4
"""The number that "auto" stands for where a number is needed."""


def fixed(gamma: int | str) -> int:
    """gamma as a number; GAMMA for "auto"."""
    return GAMMA if isinstance(gamma, str) else gamma


def window_named(name: str) -> type[Constant]:
    """The window's class, by its name. Raises InvalidSetting for a name that no window has."""
    if not isinstance(name, str) or name not in WINDOWS:
        raise InvalidSetting(f"window is {described(name)}: the windows are {', '.join(sorted(WINDOWS))}")
    return WINDOWS[name]


def confidence(logits: Tensor, tokens: Tensor) -> Tensor:
    """The probabilities (batch,) of tokens (batch,) under the softmax of logits (batch, vocab)."""
    return logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0].exp()
