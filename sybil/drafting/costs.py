"""The costs of a round: d(k) for drafting k tokens and T(n) for verifying n tokens. They come from the models' sizes or
from the clock. The acceptance that is assumed at first is here, too."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median_low

VERIFIED = 0.05
"""What each further token adds to a forward over one token, as a share of that forward's cost. It adds arithmetic only,
because the weights are read once."""
STEP = 0.03  # the same for a drafted token: what it costs beside the reading of the draft's weights
KEPT = 5  # measured seconds kept for each number of tokens; the second least counts, as rounds are late, never early
AGED = 0.95  # the factor by which a measurement's weight beside the line shrinks each round
SLOW = 2.0  # a slow round counts as at most so many times the known cost; more is learned step by step
FORGOTTEN = 256  # rounds after which a measurement is dropped
HOPE, HOPED = 0.75, 4.5  # the chance first assumed that a token is kept; how many judged tokens that assumption weighs
TRUSTED = 16.0  # earlier texts count as so many judged tokens at most in a new text
OUTLIVED = 0.99  # the factor by which a judged token's weight shrinks with each further one
EAGER, EVERY = 32, 8  # the first EAGER rounds compute the tables again, and later one round in EVERY does
LEVERAGE = 16.0  # the spread of lengths at which the measured slope counts as much as the slope by sizes


class SizedCosts:
    """Costs computed from the bytes of weights alone. They are the same on every machine and in every run, so a seed
    repeats its text. The unit is a forward of the target over one token.

    most: the largest number of tokens to be drafted. step_bytes: the bytes that each source reads to draft a token.
    verified: what each further token adds to a forward over one token, as a share of that forward."""

    def __init__(self, most: int, target_bytes: int, step_bytes: Sequence[int], verified: float = VERIFIED) -> None:
        self.most = most
        # rounded, because packed weights differ a little in size between processors
        self.steps = [round(STEP + size / max(target_bytes, 1), 2) if size else 0.0 for size in step_bytes]
        self._verify_table = [1 + verified * n for n in range(-1, most + 1)]
        self._draft_tables = [[step * k for k in range(most + 1)] for step in self.steps]

    @property
    def verify(self) -> list[float]:
        """T(n) for n from 0 to most + 1."""
        return self._verify_table

    @property
    def draft(self) -> list[list[float]]:
        """For each source, d(k) for k from 0 to most."""
        return self._draft_tables

    def hope(self, source: int) -> tuple[float, float]:
        """(the assumed chance that a source's token is kept, the number of judged tokens that the assumption counts
        as)."""
        return HOPE, HOPED

    def is_known(self, source: int) -> bool:
        """Whether a source needs no first try, because its costs and chances are known, or because no clock is used."""
        return True

    def judged(self, source: int, kept: int, tried: int) -> None:
        """Learn that `tried` tokens of a source were judged and `kept` of them were kept."""

    def catching_up(self, source: int, tokens: int) -> float:
        """The cost for a source of reading `tokens` tokens that it hasn't read yet."""
        return VERIFIED * self.steps[source] * tokens

    def verified(self, tokens: int, seconds: float) -> None:
        """Learn that a round without its drafting took `seconds`, in which `tokens` tokens of each row were
        verified."""

    def drafted(self, source: int, tokens: int, seconds: float, lag: int) -> None:
        """Learn that a source took `seconds` to draft `tokens` tokens and to read `lag` tokens before them."""


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
        # at first costs aren't in seconds yet, so there is no bound; plain rounds are all alike and need none
        bounded = tokens > 1 and self._rounds > 1
        likely = SLOW * self.verify[tokens] if bounded else seconds
        self._verify.learn(tokens, min(seconds, likely), self._rounds)
        self._is_stale = True
        if self._rounds == 1:
            self._renew()

    def drafted(self, source: int, tokens: int, seconds: float, lag: int) -> None:
        if lag > 2 + self.most:  # the source has read a prompt, or tokens emitted while it was idle
            self._reading[source].append((seconds, tokens, lag))
            if not self._draft[source].is_measured:  # estimate how much of the time was drafting
                self._draft[source].learn(tokens, seconds * tokens / (tokens + VERIFIED * lag), self._rounds)
                self._is_stale = True
        else:
            curve = self._draft[source]
            likely = SLOW * self._draft_tables[source][tokens] if curve.is_measured else seconds
            curve.learn(tokens, min(seconds, likely), self._rounds)
            self._is_stale = True


class _Curve:
    """Seconds as a function of the number of tokens: a line, corrected by measurements where they are many and recent.

    The line's slope is fitted to the measurements. Where the measured numbers of tokens lie close together, the slope
    computed from the models' sizes counts more. A number of tokens that isn't tried any more isn't measured again, so
    its old measurements count less and less. Fewer tokens never cost more."""

    def __init__(self, sized: Sequence[float], slope: float) -> None:
        self._sized, self._slope = list(sized), slope
        self._seconds: dict[int, deque[float]] = {}
        self._usual: dict[int, float] = {}
        self._seen: dict[int, int] = {}  # the round of the last measurement

    @property
    def is_measured(self) -> bool:
        return bool(self._seconds)

    def learn(self, tokens: int, seconds: float, now: int) -> None:
        """Add a measurement, made in the round `now`."""
        times = self._seconds.setdefault(tokens, deque(maxlen=KEPT))
        times.append(seconds)
        self._usual[tokens] = sorted(times)[len(times) // KEPT]
        self._seen[tokens] = now
        if now % KEPT == 0:
            for old in [each for each, seen in self._seen.items() if now - seen > FORGOTTEN]:
                del self._seen[old], self._seconds[old], self._usual[old]

    def table(self, unit: float) -> list[float]:
        """The seconds for each number of tokens, from 0 on. unit: the seconds of the target's forward over one token.
        It turns costs by size into seconds where nothing was measured."""
        if not self._seconds:
            return [unit * cost for cost in self._sized]
        counts = {n: len(times) for n, times in self._seconds.items()}
        once = max(counts.values()) == 1  # otherwise a single measurement is no evidence, as it may be a slow one
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
        slope = min(max(slope, 0.0), level / middle)  # so that the time at 0 tokens isn't negative
        line = [level + slope * (n - middle) for n in range(len(self._sized))]
        for n, seconds in self._usual.items():
            line[n] += (seconds - line[n]) * worth[n] * counts[n] / (counts[n] + 1)
        for n in range(len(line) - 1, 0, -1):
            line[n - 1] = min(line[n - 1], line[n])
        return line
