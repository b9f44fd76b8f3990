"""The costs of a round: d(k) of drafting k tokens and T(n) of verifying n, from the models' sizes or from the clock;
and the acceptance that is assumed at first."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median_low

VERIFIED = 0.05
"""What each further token adds to a forward over one token, as a share of that forward's cost. It adds arithmetic only,
because the weights are read once."""
STEP = 0.03  # of the same, what a drafted token takes beside the reading of its weights
KEPT = 5  # measured seconds kept for each number of tokens: the second least of them, for rounds are late, never early
AGED = 0.95  # what a measurement is worth a round later, beside the line
SLOW = 2.0  # how many times the known cost a round may count as: more is learned step by step
FORGOTTEN = 256  # rounds after which a measurement says nothing about now
HOPE, HOPED = 0.75, 4.5  # the chance first assumed that a token is kept; how many judged tokens that assumption weighs
TRUSTED = 16.0  # the most judged tokens that earlier texts weigh in a new one
OUTLIVED = 0.99  # what a judged token weighs once another was judged
EAGER, EVERY = 32, 8  # rounds of which each makes the tables anew; of how many one does it later
LEVERAGE = 16.0  # how much spread of lengths it takes to believe their slope as much as the one by sizes


class SizedCosts:
    """Costs by the bytes of weights alone, in forwards of the target over one token: the same on every machine and in
    every run, so a seed's text repeats.

    most: the largest number of tokens to be drafted. step_bytes: what each source reads to draft a token. verified: of
    a forward over one token, what each further token adds."""

    def __init__(self, most: int, target_bytes: int, step_bytes: Sequence[int], verified: float = VERIFIED) -> None:
        self.most = most
        # rounded, for how weights are packed differs a little between processors
        self.steps = [round(STEP + size / max(target_bytes, 1), 2) if size else 0.0 for size in step_bytes]
        self._verify_table = [1 + verified * n for n in range(-1, most + 1)]
        self._draft_tables = [[step * k for k in range(most + 1)] for step in self.steps]

    @property
    def verify(self) -> list[float]:
        """T(n), by n from 0 to most + 1."""
        return self._verify_table

    @property
    def draft(self) -> list[list[float]]:
        """d(k) of each source, by k from 0 to most."""
        return self._draft_tables

    def hope(self, source: int) -> tuple[float, float]:
        """The chance assumed that a source's token is kept, and how many judged tokens that assumption weighs."""
        return HOPE, HOPED

    def is_known(self, source: int) -> bool:
        """Whether a source needs no first try: its costs and chances are known already, or no clock will ever tell
        them."""
        return True

    def judged(self, source: int, kept: int, tried: int) -> None:
        """So many tokens of a source were judged, and so many of them kept."""

    def catching_up(self, source: int, tokens: int) -> float:
        """The cost for a source of reading so many tokens that it hasn't seen."""
        return VERIFIED * self.steps[source] * tokens

    def verified(self, tokens: int, seconds: float) -> None:
        """A round took so long, drafting left out, in which so many tokens a row were verified."""

    def drafted(self, source: int, tokens: int, seconds: float, lag: int) -> None:
        """A source took so long to draft so many tokens, and to read `lag` tokens before."""


class ClockedCosts(SizedCosts):
    """Costs in seconds for this draft, this target and this batch. They are computed from the models' sizes until the
    clock has measured them.

    The tables are computed again only when they are read after a measurement; a round without a draft reads none. Once
    costs are known, that happens in one round of EVERY."""

    def __init__(self, most: int, target_bytes: int, step_bytes: Sequence[int]) -> None:
        super().__init__(most, target_bytes, step_bytes)
        self._verify = _Curve(self._verify_table, VERIFIED)
        self._draft = [_Curve(costs, step) for costs, step in zip(self._draft_tables, self.steps, strict=True)]
        self._reading: list[deque[tuple[float, int, int]]] = [deque(maxlen=KEPT) for _ in self.steps]
        self._kept, self._tried = ([0.0] * len(self.steps) for _ in range(2))
        self._rounds, self._due, self._is_stale = 0, 0, False

    def hope(self, source: int) -> tuple[float, float]:
        tried = HOPED + self._tried[source]
        return (HOPE * HOPED + self._kept[source]) / tried, min(tried, TRUSTED)

    def is_known(self, source: int) -> bool:
        return not self.steps[source] or self._tried[source] > 0

    def judged(self, source: int, kept: int, tried: int) -> None:
        weight = OUTLIVED**tried
        self._kept[source] = weight * self._kept[source] + kept
        self._tried[source] = weight * self._tried[source] + tried

    @property
    def verify(self) -> list[float]:
        self._renew()
        return self._verify_table

    @property
    def draft(self) -> list[list[float]]:
        self._renew()
        return self._draft_tables

    def _renew(self) -> None:
        if self._is_stale and (self._rounds <= EAGER or self._rounds >= self._due):
            self._is_stale, self._due = False, self._rounds + EVERY
            self._verify_table = self._verify.table(1.0)
            self._draft_tables = [curve.table(self._verify_table[1]) for curve in self._draft]

    def catching_up(self, source: int, tokens: int) -> float:
        costs = self.draft[source]
        known = [max(seconds - costs[drafted], 0.0) / lag for seconds, drafted, lag in self._reading[source]]
        return (median_low(known) if known else VERIFIED * costs[1]) * tokens

    def verified(self, tokens: int, seconds: float) -> None:
        self._rounds += 1
        # at first costs are no seconds yet; plain rounds, of which all are alike, need no bound
        bounded = tokens > 1 and self._rounds > 1
        likely = SLOW * self.verify[tokens] if bounded else seconds
        self._verify.learn(tokens, min(seconds, likely), self._rounds)
        self._is_stale = True
        if self._rounds == 1:
            self._renew()

    def drafted(self, source: int, tokens: int, seconds: float, lag: int) -> None:
        if lag > 2 + self.most:  # a prompt, or what was emitted without it
            self._reading[source].append((seconds, tokens, lag))
            if not self._draft[source].is_measured:  # a guess at what of it was drafting
                self._draft[source].learn(tokens, seconds * tokens / (tokens + VERIFIED * lag), self._rounds)
                self._is_stale = True
        else:
            curve = self._draft[source]
            likely = SLOW * self._draft_tables[source][tokens] if curve.is_measured else seconds
            curve.learn(tokens, min(seconds, likely), self._rounds)
            self._is_stale = True


class _Curve:
    """Seconds by the number of tokens: a line, corrected by measurements where they are many and recent.

    The line's slope is fitted to the measurements. Where they lie close together, the slope computed from the sizes
    counts more. A number of tokens that isn't tried isn't measured again, so its old measurements count less and less.
    Fewer tokens never cost more."""

    def __init__(self, sized: Sequence[float], slope: float) -> None:
        self._sized, self._slope = list(sized), slope
        self._seconds: dict[int, deque[float]] = {}
        self._usual: dict[int, float] = {}
        self._seen: dict[int, int] = {}  # the round of the last measurement

    @property
    def is_measured(self) -> bool:
        return bool(self._seconds)

    def learn(self, tokens: int, seconds: float, now: int) -> None:
        """One measurement more, of the round `now`."""
        times = self._seconds.setdefault(tokens, deque(maxlen=KEPT))
        times.append(seconds)
        self._usual[tokens] = sorted(times)[len(times) // KEPT]
        self._seen[tokens] = now
        if now % KEPT == 0:
            for old in [each for each, seen in self._seen.items() if now - seen > FORGOTTEN]:
                del self._seen[old], self._seconds[old], self._usual[old]

    def table(self, unit: float) -> list[float]:
        """Seconds by number of tokens from 0 on. unit: seconds of a forward of the target over one token, by which
        sizes become seconds where nothing was measured."""
        if not self._seconds:
            return [unit * cost for cost in self._sized]
        counts = {n: len(times) for n, times in self._seconds.items()}
        once = max(counts.values()) == 1  # else a single one is no evidence: it may be slow
        latest = max(self._seen.values())
        worth = {n: AGED ** (latest - seen) for n, seen in self._seen.items()}
        points = [(n, self._usual[n], each * worth[n]) for n, each in counts.items() if once or each > 1]
        count, middle, level, sized = 0.0, 0.0, 0.0, 0.0
        for n, seconds, weight in points:
            count += weight
            middle += n * weight
            level += seconds * weight
            sized += self._sized[n] * weight
        scale, middle, level = level / (sized or count), middle / count, level / count
        spread = rise = 0.0
        for n, seconds, weight in points:
            spread += weight * (n - middle) ** 2
            rise += weight * (n - middle) * (seconds - level)
        slope = (rise + LEVERAGE * scale * self._slope) / (spread + LEVERAGE)
        slope = min(max(slope, 0.0), level / middle)  # no tokens take no negative time
        line = [level + slope * (n - middle) for n in range(len(self._sized))]
        for n, seconds in self._usual.items():
            line[n] += (seconds - line[n]) * worth[n] * counts[n] / (counts[n] + 1)
        for n in range(len(line) - 1, 0, -1):
            line[n - 1] = min(line[n - 1], line[n])
        return line
