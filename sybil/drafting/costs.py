"""What a round costs: d(k) of drafting k tokens and T(n) of verifying n, from the models' sizes or from the clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median_low

VERIFIED = (
    0.05  # of a forward over one token, what each further token adds: its arithmetic, for the weights are read once
)
STEP = 0.03  # of the same, what a drafted token takes beside the reading of its weights
KEPT = 5  # measured seconds kept for each number of tokens: their median is not moved by one slow round
SLOW = 2.0  # how many times the known cost a round may count as: more is learned step by step
FORGOTTEN = 256  # rounds after which a measurement says nothing about now
LEVERAGE = 16.0  # how much spread of lengths it takes to believe their slope as much as the one by sizes


class SizedCosts:
    """Costs by the bytes of weights alone, in forwards of the target over one token: the same on every machine and in
    every run, so a seed's text repeats.

    most: the largest number of tokens to be drafted. step_bytes: what each source reads to draft a token."""

    def __init__(self, most: int, target_bytes: int, step_bytes: Sequence[int]) -> None:
        self.most = most
        # rounded, for how weights are packed differs a little between processors
        self.steps = [round(STEP + size / max(target_bytes, 1), 2) if size else 0.0 for size in step_bytes]
        self.verify = [1 + VERIFIED * n for n in range(-1, most + 1)]
        """T(n), by n from 0 to most + 1."""
        self.draft = [[step * k for k in range(most + 1)] for step in self.steps]
        """d(k) of each source, by k from 0 to most."""

    def catching_up(self, source: int, tokens: int) -> float:
        """What it costs a source to read so many tokens that it hasn't seen."""
        return VERIFIED * self.steps[source] * tokens

    def verified(self, tokens: int, seconds: float) -> None:
        """A round took so long, drafting left out, in which so many tokens a row were verified."""

    def drafted(self, source: int, tokens: int, seconds: float, lag: int) -> None:
        """A source took so long to draft so many tokens, and to read `lag` tokens before."""


class ClockedCosts(SizedCosts):
    """Costs in seconds, of this draft, this target and this batch: by sizes until the clock has said more."""

    def __init__(self, most: int, target_bytes: int, step_bytes: Sequence[int]) -> None:
        super().__init__(most, target_bytes, step_bytes)
        self._verify = _Curve(self.verify, VERIFIED)
        self._draft = [_Curve(costs, step) for costs, step in zip(self.draft, self.steps, strict=True)]
        self._reading: list[deque[tuple[float, int, int]]] = [deque(maxlen=KEPT) for _ in self.steps]
        self._rounds = 0

    def catching_up(self, source: int, tokens: int) -> float:
        costs = self.draft[source]
        known = [max(seconds - costs[drafted], 0.0) / lag for seconds, drafted, lag in self._reading[source]]
        return (median_low(known) if known else VERIFIED * costs[1]) * tokens

    def verified(self, tokens: int, seconds: float) -> None:
        self._rounds += 1
        likely = SLOW * self.verify[tokens] if self._rounds > 1 else seconds  # at first costs are no seconds yet
        self._verify.learn(tokens, min(seconds, likely), self._rounds)
        self.verify = self._verify.table(1.0)
        self.draft = [curve.table(self.verify[1]) for curve in self._draft]

    def drafted(self, source: int, tokens: int, seconds: float, lag: int) -> None:
        if lag > 2 + self.most:  # a prompt, or what was emitted without it
            self._reading[source].append((seconds, tokens, lag))
        else:
            self._draft[source].learn(tokens, min(seconds, SLOW * self.draft[source][tokens] or seconds), self._rounds)
            self.draft[source] = self._draft[source].table(self.verify[1])


class _Curve:
    """Seconds by the number of tokens: the median where it was measured, a line beside it.

    The line's slope is fitted to the medians and, as far as they lie close together, the one by sizes."""

    def __init__(self, sized: Sequence[float], slope: float) -> None:
        self._sized, self._slope = list(sized), slope
        self._seconds: dict[int, deque[float]] = {}
        self._seen: dict[int, int] = {}  # the round of the last measurement

    def learn(self, tokens: int, seconds: float, now: int) -> None:
        """One measurement more, of the round `now`."""
        self._seconds.setdefault(tokens, deque(maxlen=KEPT)).append(seconds)
        self._seen[tokens] = now
        for old in [each for each, seen in self._seen.items() if now - seen > FORGOTTEN]:
            del self._seen[old], self._seconds[old]

    def table(self, unit: float) -> list[float]:
        """Seconds by number of tokens from 0 on. unit: seconds of a forward of the target over one token, by which
        sizes become seconds where nothing was measured."""
        if not self._seconds:
            return [unit * cost for cost in self._sized]
        once = all(
            len(times) == 1 for times in self._seconds.values()
        )  # else a single one is no evidence: it may be slow
        points = [(n, median_low(times), len(times)) for n, times in self._seconds.items() if once or len(times) > 1]
        count = sum(weight for *_, weight in points)
        middle = sum(n * weight for n, _, weight in points) / count
        level = sum(seconds * weight for _, seconds, weight in points) / count
        scale = level / (sum(self._sized[n] * weight for n, _, weight in points) / count or 1.0)
        spread = sum(weight * (n - middle) ** 2 for n, _, weight in points)
        rise = sum(weight * (n - middle) * (seconds - level) for n, seconds, weight in points)
        slope = (rise + LEVERAGE * scale * self._slope) / (spread + LEVERAGE)
        slope = min(max(slope, 0.0), level / middle)  # no tokens take no negative time
        line = [level + slope * (n - middle) for n in range(len(self._sized))]
        for n, times in self._seconds.items():
            line[n] = median_low([line[n], *times])
        return line
