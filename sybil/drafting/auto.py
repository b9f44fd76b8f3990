"""The window of gamma="auto": it proposes as many tokens as make decoding fastest, by the tokens that were kept so far
and by what a round costs.

It chooses the k >= 0 that maximises (1 + s_1 + ... + s_k) / (d(k) + T(k + 1)): the tokens that a round is expected to
emit, divided by the round's cost. s_i is the chance that the i-th proposed token is kept, d(k) the cost of drafting k
tokens, and T(n) the cost of verifying n. vLLM's adaptive verification has a similar formula. k = 0 is plain decoding.
Where drafting doesn't pay, k is 0, except in rare probes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sybil.drafting.contract import DrafterFactory
from sybil.drafting.costs import ClockedCosts, SizedCosts
from sybil.drafting.window import AUTO, Constant, Window, fixed, window_named
from sybil.lossy import is_lossy
from sybil.models import Model
from sybil.results import Step

if TYPE_CHECKING:
    from sybil.settings import Settings

MOST, MOST_FOR_NOTHING = 16, 32  # the longest proposals: of a model, and of a source that reads no weights
PLACE = 5.0  # judged tokens that a place's first estimate counts as; it is the mean of the place before and all places
FADE = 0.91  # the factor by which a record's weight shrinks each round
NEGLIGIBLE = 0.01  # a chance below it ends the search for longer proposals
PROBES = 0.02  # about the share of the time that probes may take
SOONEST, LATEST = 4, 64  # rounds without a draft before the first probe
DOUBLED = 4  # how often that wait is doubled at most; each probe in vain doubles it

Known = dict[tuple[int, str | bool], ClockedCosts]
"""Measured costs, by (the number of rows, the rule when sampling or False when decoding greedily)."""


class _Record:
    """How many of one source's proposed tokens were kept for one row, place by place; recent rounds weigh most.

    Only places that were judged count. A place is judged if a token was proposed there and all before it were kept.
    Proposals that follow a fully kept one have a record of their own, because in a text that repeats itself they are
    kept more often."""

    __slots__ = ("_all_kept", "_all_tried", "_kept", "_tried", "_whole")

    def __init__(self, most: int, hope: float, weight: float) -> None:
        self._kept, self._tried = ([[0.0] * most for _ in range(2)] for _ in range(2))
        self._all_kept, self._all_tried = hope * weight, weight
        self._whole = False

    def observe(self, accepted: int, proposed: int) -> None:
        judged = min(accepted + 1, proposed)
        kept, tried = self._kept[self._whole], self._tried[self._whole]
        kept[:] = [FADE * each for each in kept]
        tried[:] = [FADE * each for each in tried]
        for place in range(judged):
            kept[place] += place < accepted
            tried[place] += 1
        self._all_kept = FADE * self._all_kept + accepted
        self._all_tried = FADE * self._all_tried + judged
        self._whole = accepted == proposed

    def fade(self, rounds: int) -> None:
        """Count rounds that passed without a proposal."""
        weight = FADE ** (rounds / 4)
        for counts in (*self._kept, *self._tried):
            counts[:] = [weight * each for each in counts]
        self._all_kept, self._all_tried = weight * self._all_kept, weight * self._all_tried

    def expected(self, most: int) -> list[float]:
        """How many tokens of a proposal are expected to be kept, by the proposal's length k from 0 on: s_1 + ... + s_k.
        The list ends at `most`, or earlier where longer proposals gain next to nothing."""
        here = anywhere = self._all_kept / self._all_tried
        chance, total, sums = 1.0, 0.0, [0.0]
        for kept, tried in zip(self._kept[self._whole][:most], self._tried[self._whole], strict=False):
            here = (kept + PLACE * (here + anywhere) / 2) / (tried + PLACE)
            chance *= here
            if chance < NEGLIGIBLE:
                break
            total += chance
            sums.append(total)
        return sums


@dataclass(slots=True)
class _Pause:
    """The pause of a source that doesn't pay. idle: rounds without the source so far. wait: rounds without it before a
    probe; 0 while the source pays. failed: probes in vain."""

    idle: int = 0
    wait: int = 0
    failed: int = 0

    @property
    def is_over(self) -> bool:
        return self.idle >= self.wait

    def begin(self, wait: int) -> None:
        self.idle, self.wait = 0, wait


class AutoWindow:
    """Chooses the lengths of proposals at which a round emits the most tokens for its cost.

    batch: the number of rows. together: whether one choice is made for all rows, because a round lasts as long as its
    longest row. Where it is False, each row's length is chosen by that row alone, so that a row's text doesn't depend
    on its neighbours. unread: tokens of the longest prompt, which no source has read yet."""

    least_confidence = 0.0

    def __init__(self, batch: int, costs: SizedCosts, unread: int, together: bool) -> None:
        self.most, self._costs = costs.most, costs
        self._groups = [list(range(batch))] if together else [[row] for row in range(batch)]
        self._records: dict[tuple[int, int], _Record] = {}
        self._pauses: dict[tuple[int, int], _Pause] = defaultdict(_Pause)
        self._lags = [unread] * len(costs.steps)
        self._sources: Sequence[int] = [0] * batch

    def sizes(self, sources: Sequence[int], rooms: Sequence[int]) -> list[int]:
        self._sources, sizes = sources, [0] * len(rooms)
        if len(rooms) == 1 and rooms[0] and (pause := self._pauses[0, sources[0]]).wait:
            # with a useless draft most rounds return here and cost no more than plain rounds
            return [self._probe(pause, [0], sources[0])]
        for number, group in enumerate(self._groups):
            rows = [row for row in group if rooms[row]]
            by_source: dict[int, list[int]] = {}
            for row in rows:
                by_source.setdefault(sources[row], []).append(row)
            offers = {
                source: [self._record(row, source).expected(min(rooms[row], self.most)) for row in its]
                for source, its in by_source.items()
                if not self._pauses[number, source].wait
            }
            lengths = longest_that_pay(offers, len(rows), self._costs) if offers else {}
            for source, its in by_source.items():
                pause = self._pauses[number, source]
                length = self._probe(pause, its, source) if pause.wait else lengths[source]
                if not length and not pause.wait:
                    pause.begin(self._wait(source, pause.failed))
                if not self._costs.is_known(source):
                    length = min(length, 1)  # a source without any record yet is tried with one token
                for row in its:
                    sizes[row] = min(length, rooms[row])
        return sizes

    def _record(self, row: int, source: int) -> _Record:
        record = self._records.get((row, source))
        if record is None:
            record = self._records[row, source] = _Record(self.most, *self._costs.hope(source))
        return record

    def _probe(self, pause: _Pause, rows: Sequence[int], source: int) -> int:
        """For a source that pauses: 1 token where it is time for a probe, and else 0."""
        if pause.is_over:
            return 1
        pause.idle += 1
        if pause.is_over:
            for row in rows:
                self._record(row, source).fade(pause.idle)
        return 0

    def _wait(self, source: int, failed: int) -> int:
        """How many rounds to wait before a probe of the source, so that probes take a small part of the time."""
        costs, plain = self._costs, self._costs.verify[1]
        probe = (costs.draft[source][1] + costs.verify[2] - plain) / plain
        spare = PROBES - costs.catching_up(source, 1) / plain
        wait = min(probe / (2 * spare), LATEST) if spare > 0 else LATEST
        return round(max(wait, SOONEST) * 2.0 ** min(failed, DOUBLED))

    def observe(self, step: Step) -> None:
        self._learn_costs(step, self.judge(step.accepted, step.proposed))

    def judge(self, accepted: Sequence[int], proposed: Sequence[int]) -> Mapping[int, int]:
        """Record how many of each row's proposed tokens were kept. Returns the length of the longest proposal by
        source."""
        drafted: dict[int, int] = {}
        for number, group in enumerate(self._groups):
            kept: dict[int, int] = {}
            for row in group:
                source, count = self._sources[row], proposed[row]
                if count:
                    self._record(row, source).observe(accepted[row], count)
                    self._costs.judged(source, accepted[row], min(accepted[row] + 1, count))
                    kept[source] = kept.get(source, 0) + accepted[row]
                    drafted[source] = max(drafted.get(source, 0), count)
            for source, count in kept.items():
                self._end_probe(self._pauses[number, source], source, count)
        return drafted

    def _end_probe(self, pause: _Pause, source: int, kept: int) -> None:
        if pause.wait and kept:
            pause.begin(0)
            pause.failed //= 2
        elif pause.wait:
            pause.failed += 1
            pause.begin(self._wait(source, pause.failed))

    def _learn_costs(self, step: Step, drafted: Mapping[int, int]) -> None:
        """Learn costs from a round's seconds. drafted: the length of the longest proposal by source. The seconds count
        for the costliest source."""
        times, verified = step.timings, max(step.proposed) + 1
        self._costs.verified(verified, times.verify + times.sample + times.other)
        if drafted:
            source = max(drafted, key=self._costs.steps.__getitem__)
            self._costs.drafted(source, drafted[source], times.draft, self._lags[source])
        emitted = max(map(len, step.tokens))
        self._lags = [0 if each in drafted else lag + emitted for each, lag in enumerate(self._lags)]


def longest_that_pay(offers: Mapping[int, Sequence[list[float]]], rows: int, costs: SizedCosts) -> dict[int, int]:
    """For each source, the length of proposals at which a round of `rows` rows emits the most tokens for its cost.

    offers: for each source, one list for each of its rows: the expected number of kept tokens by length. First one
    length for all sources is found. Then each source's own length is found while the other sources keep theirs."""
    kept = {source: _added(each) for source, each in offers.items()}
    if len(kept) == 1:
        ((only, sums),) = kept.items()
        drafts, verify = costs.draft[only], costs.verify
        rates = [(rows + gained) / (drafts[k] + verify[k + 1]) for k, gained in enumerate(sums)]
        return {only: rates.index(max(rates))}
    best, lengths = rows / costs.verify[1], dict.fromkeys(offers, 0)
    for varied in [list(kept), *([source] for source in kept)]:
        for length in range(max((len(kept[source]) for source in varied), default=0)):
            tried = lengths | {source: min(length, len(kept[source]) - 1) for source in varied}
            emitted = rows + sum(kept[source][each] for source, each in tried.items())
            drafting = sum(costs.draft[source][each] for source, each in tried.items())
            rate = emitted / (drafting + costs.verify[max(tried.values()) + 1])
            if rate > best:
                best, lengths = rate, tried
    return lengths


def _added(rows: Sequence[list[float]]) -> list[float]:
    """The number of tokens that all rows of a source together are expected to keep, by length. Where a row's list has
    ended, its last number counts."""
    if len(rows) == 1:
        return rows[0]
    return [sum(sums[min(length, len(sums) - 1)] for sums in rows) for length in range(max(map(len, rows)))]


def window_for(
    settings: Settings, target: Model, draft: DrafterFactory | None, prompts: Sequence[list[int]], known: Known
) -> Window:
    """The window that the settings ask for. known: the costs that earlier generations have measured; see Known."""
    if draft is None:
        return Constant(len(prompts), 0)
    if settings.gamma != AUTO or settings.window != "constant":
        return window_named(settings.window)(len(prompts), fixed(settings.gamma))
    depends = is_lossy(settings.rule) or (settings.do_sample and settings.rule != "coupled")  # the text, on lengths
    repeats = settings.seed is not None and depends
    by_ranks = getattr(target, "is_shared_by_ranks", False)  # ranks' clocks differ, but their lengths must not
    if repeats or by_ranks:
        costs = SizedCosts(*_sizes(target, draft))
    else:
        key = len(prompts), settings.do_sample and settings.rule
        costs = known.get(key) or known.setdefault(key, ClockedCosts(*_sizes(target, draft)))
    return AutoWindow(len(prompts), costs, max(map(len, prompts)), together=not repeats)


def _sizes(target: Model, draft: DrafterFactory) -> tuple[int, int, tuple[int, ...]]:
    """The arguments of SizedCosts for this target and draft."""
    return (MOST if all(draft.step_bytes) else MOST_FOR_NOTHING), target.weight_bytes, draft.step_bytes
