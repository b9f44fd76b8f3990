"""gamma="auto": as many tokens as pay, by scripted rounds and costs; in the loop, where a seed repeats by any clock."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import gpt2, in_sybil, perturbed, prompts

from sybil import Decoder
from sybil.clock import time as clock_time
from sybil.drafting import DraftLookup, DraftModel, ModelDrafter
from sybil.drafting.auto import LATEST, MOST, AutoWindow, longest_that_pay
from sybil.drafting.costs import KEPT, ClockedCosts, SizedCosts
from sybil.drafting.window import GAMMA
from sybil.errors import InvalidSetting
from sybil.models import Model
from sybil.settings import Settings

TARGET_BYTES, DRAFT_BYTES = 1000, 100


class Machine:
    """Rounds as they go with a text of which agrees[i] says whether the draft has its i-th token, at such costs."""

    def __init__(self, forward: float = 1.0, more: float = 0.05, step: float = 0.2, jitter: float = 0.0) -> None:
        self.forward, self.more, self.step = forward, more, step
        self._random, self._jitter = random.Random(0), jitter

    def seconds(self, length: int) -> tuple[float, float]:
        """Of drafting so many tokens, and of verifying them."""
        slower = [
            1 + self._jitter * self._random.random() + 9 * (self._random.random() < self._jitter / 9) for _ in "ab"
        ]
        return slower[0] * self.step * length, slower[1] * (self.forward + self.more * length)

    def run(self, window: Any, agrees: Sequence[bool], source: Callable[[int], int] = lambda _: 0) -> Run:
        """One row to its end."""
        place, total, rounds = 0, 0.0, []
        while place < len(agrees):
            (length,) = window.sizes([source(place)], [len(agrees) - place - 1])
            kept = len(list(itertools.takewhile(bool, agrees[place : place + length])))
            draft, verify = self.seconds(length)
            window.observe(step([kept], [length], draft, verify))
            total += draft + verify
            rounds.append((place, length))
            place += kept + 1
        return Run(total, rounds)


class Run:
    def __init__(self, seconds: float, rounds: list[tuple[int, int]]) -> None:
        self.seconds, self.rounds = seconds, rounds

    def lengths(self, start: int = 0, end: int = 10**9) -> list[int]:
        """Of the proposals that began there."""
        return [length for place, length in self.rounds if start <= place < end]


class Always:
    def __init__(self, length: int) -> None:
        self._length = length

    def sizes(self, _: Sequence[int], rooms: Sequence[int]) -> list[int]:
        return [min(self._length, room) for room in rooms]

    def observe(self, _: Any) -> None: ...


def step(accepted: Sequence[int], proposed: Sequence[int], draft: float = 0.0, verify: float = 1.0) -> Any:
    timings = SimpleNamespace(prefill=0.0, draft=draft, verify=verify, sample=0.0, other=0.0)
    tokens = tuple((0,) * (count + 1) for count in accepted)
    return SimpleNamespace(accepted=tuple(accepted), proposed=tuple(proposed), tokens=tokens, timings=timings)


def clocked(*step_bytes: int) -> ClockedCosts:
    return ClockedCosts(MOST, TARGET_BYTES, step_bytes or (DRAFT_BYTES,))


def auto(costs: SizedCosts | None = None, rows: int = 1, together: bool = True) -> AutoWindow:
    return AutoWindow(rows, costs or clocked(), 10, together)


def drawn(chance: float, count: int, seed: int = 0) -> list[bool]:
    generator = random.Random(seed)
    return [generator.random() < chance for _ in range(count)]


@pytest.mark.parametrize("chance", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("costs", [(0.05, 0.2), (0.02, 0.05), (0.25, 0.2)], ids=["wide", "cheap", "blocks"])
def test_it_comes_near_the_best_fixed_length(chance: float, costs: tuple[float, float]) -> None:
    """Whatever the costs are, which are not those that the sizes tell, and with noise on them. A text of even chances
    has nothing to follow, so that what following costs shows most."""
    more, each = costs
    runs = {}
    for length in range(MOST + 1):
        runs[length] = Machine(more=more, step=each, jitter=0.1).run(Always(length), drawn(chance, 3000)).seconds
    found = Machine(more=more, step=each, jitter=0.1).run(auto(), drawn(chance, 3000)).seconds
    assert min(runs.values()) / found > 0.95


def test_a_text_that_turns_is_followed() -> None:
    """Nothing is kept, then everything, then nothing again."""
    machine = Machine(step=0.05)
    agrees = [False] * 100 + [True] * 200 + [False] * 100
    run = machine.run(auto(), agrees)
    assert sum(run.lengths(50, 100)) <= 3
    late = run.lengths(180, 280)
    assert min(late, default=0) >= 8
    assert sum(run.lengths(330)) <= 8


def test_where_drafting_never_pays_it_is_not_done_but_for_a_rare_probe() -> None:
    for each in (0.05, 0.3, 1.5):
        machine = Machine(step=each)
        short, long = (machine.run(auto(), [False] * count) for count in (128, 4000))
        assert 128 / short.seconds > 0.96
        assert 4000 / long.seconds > 0.98
        assert 0 < sum(length > 0 for length in long.lengths(200)) < 80


def test_a_draft_that_becomes_useful_is_found_again() -> None:
    run = Machine().run(auto(), [False] * 300 + [True] * 600)
    assert min(run.lengths(700, 880)) >= 8


def test_a_draft_that_lags_is_seldom_probed() -> None:
    """Each token that was emitted without it has to be read before the next proposal."""
    window = auto()
    window.sizes([0], [99])
    window.observe(step([0], [4], draft=1.0, verify=1.2))  # ten tokens of a prompt too
    lengths = []
    for _ in range(1000):
        lengths += window.sizes([0], [9999])
        lag = len(lengths) - max((n for n, length in enumerate(lengths[:-1]) if length), default=0)
        window.observe(step([0], lengths[-1:], draft=0.2 + 0.03 * lag if lengths[-1] else 0.0))
    assert sum(map(bool, lengths[30:])) <= 4


def test_places_that_were_not_judged_are_no_evidence() -> None:
    """Two of the same hazards: a proposal that was cut short to two, and one of five of which two were kept."""
    short, long = auto(SizedCosts(MOST, TARGET_BYTES, (0,))), auto(SizedCosts(MOST, TARGET_BYTES, (0,)))
    for _ in range(20):
        for window, proposed in ((short, 2), (long, 5)):
            window.sizes([0], [99])
            window.observe(step([2], [proposed]))
    assert short.sizes([0], [99])[0] > 8 > long.sizes([0], [99])[0] >= 2


def test_sources_keep_apart() -> None:
    """One is always right, the other never; a row changes between them."""
    agrees = [place % 40 < 20 for place in range(2000)]
    run = Machine(step=0.1).run(auto(clocked(DRAFT_BYTES, DRAFT_BYTES)), agrees, lambda place: int(place % 40 >= 20))
    good = [length for place, length in run.rounds if place > 1000 and place % 40 < 20]
    bad = [length for place, length in run.rounds if place > 1000 and place % 40 >= 20]
    assert min(good) >= 3
    assert sum(bad) <= 10


def test_rows_of_a_batch_are_chosen_for_together() -> None:
    """A round lasts as long as its longest row, so a row of little hope is offered what costs nothing more; alone, it
    would be offered none."""
    for together in (True, False):
        window = auto(SizedCosts(MOST, TARGET_BYTES, (300,)), rows=4, together=together)
        for _ in range(12):
            sizes = window.sizes([0] * 4, [99] * 4)
            window.observe(step([*sizes[:3], 0], sizes))
        sizes = window.sizes([0] * 4, [99, 99, 5, 99])
        assert sizes[0] == sizes[1] >= 5
        assert sizes[2] == 5
        assert (sizes[3] > 0) is together


@given(
    st.lists(st.tuples(st.integers(0, 1), st.lists(st.floats(0.01, 1), max_size=6)), min_size=1, max_size=4), st.data()
)
@settings(max_examples=60)
def test_a_choice_is_the_best_there_is(rows: list[tuple[int, list[float]]], data: st.DataObject) -> None:
    """Of one source, of all lengths; of two, no better is found by another length of either."""
    costs = SizedCosts(6, TARGET_BYTES, tuple(data.draw(st.integers(0, 600)) for _ in range(2)))
    offers: dict[int, list[list[float]]] = {}
    for source, hazards in rows:
        sums = itertools.accumulate(itertools.accumulate(hazards, lambda one, other: one * other), initial=0.0)
        offers.setdefault(source, []).append(list(sums))

    def rate(lengths: dict[int, int]) -> float:
        kept = sum(sums[min(lengths[source], len(sums) - 1)] for source, each in offers.items() for sums in each)
        drafting = sum(costs.draft[source][length] for source, length in lengths.items())
        return (len(rows) + kept) / (drafting + costs.verify[max(lengths.values()) + 1])

    chosen = longest_that_pay(offers, len(rows), costs)
    every = [dict(zip(offers, each, strict=True)) for each in itertools.product(range(7), repeat=len(offers))]
    best = max(map(rate, every))
    assert rate(chosen) >= best * (1 - 1e-9 if len(offers) == 1 else 0.9)


def test_one_slow_round_changes_nothing() -> None:
    costs = clocked()
    for verified, seconds in ((5, 1.2), (1, 1.0), (5, 1.2), (5, 40.0), (3, 30.0)):
        costs.verified(verified, seconds)
        costs.drafted(0, 4, seconds / 4, 0)
    assert costs.verify[5] == pytest.approx(1.2)
    assert costs.verify[1] == pytest.approx(1.0)
    assert costs.verify[3] < 2
    assert costs.draft[0][4] == pytest.approx(0.3)


def test_costs_are_learned_kept_current_and_told_by_sizes_before() -> None:
    costs, sized = clocked(), SizedCosts(MOST, TARGET_BYTES, (DRAFT_BYTES,))
    assert (costs.verify, costs.draft) == (sized.verify, sized.draft)
    costs.verified(5, 24.0)
    assert [cost / costs.verify[1] for cost in costs.verify] == pytest.approx(sized.verify)
    assert costs.draft[0][3] / costs.verify[1] == pytest.approx(sized.draft[0][3])
    for _ in range(KEPT):
        for tokens in (1, 9):
            costs.verified(tokens, 10.0 + tokens)
    assert costs.verify[1:] == pytest.approx([10.0 + n for n in range(1, MOST + 2)], rel=0.12)
    for _ in range(2 * KEPT):
        costs.verified(9, 60.0)
    assert costs.verify[9] == pytest.approx(60.0, rel=0.02)


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_seed_repeats_by_any_clock(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and in a batch, twice: the same tokens in the same rounds. Greedily the clock decides, and shows."""
    target = gpt2(context=128)
    decoder = Decoder(in_sybil(target), Cheap(in_sybil(perturbed(target, 0.1))))
    ticks, now = random.Random(0), 0.0

    def jittering() -> float:
        nonlocal now
        now += ticks.random() ** 8
        return now

    monkeypatch.setattr(clock_time, "perf_counter", jittering)
    asked: dict[str, Any] = dict(max_new_tokens=60, eos_token_id=[], gamma="auto")
    sampled = dict(do_sample=True, seed=7, rule=rule, **asked)
    inputs = prompts([3, 9, 5])
    rounds = [list(decoder.stream(inputs, **sampled)) for _ in range(2)]
    one, other = ([(each.tokens, each.proposed) for each in steps] for steps in rounds)
    assert one == other
    assert sum(each.accepted[0] for each in rounds[0]) > 0
    alone = decoder.generate(inputs[:1], **sampled).tokens[0].tolist()
    assert alone == [token for each in rounds[0] for token in each.tokens[0]]
    greedy = {tuple(each.proposed for each in decoder.stream(inputs, **asked)) for _ in range(4)}
    assert len(greedy) > 1


class Cheap(DraftModel):
    """A draft that says it is small."""

    step_bytes = (1,)


class Watched:
    """A model that counts what it is asked."""

    def __init__(self, model: Model) -> None:
        self._model, self.forwards, self.prefills = model, 0, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        self.forwards += 1
        return self._model.forward(tokens, cache)

    def prefill(self, tokens: torch.Tensor, cache: Any) -> None:
        self.prefills.append(tokens.shape[1])
        self._model.prefill(tokens, cache)


def test_a_draft_that_is_not_used_does_nothing_and_catches_up_at_once() -> None:
    """A draft of the target's own size never pays by sizes: but for probes the text is plain decoding's, and a probe
    reads what it has missed in one prefill."""
    target = gpt2(context=700)
    draft = Watched(in_sybil(gpt2(seed=9, context=700)))
    decoder = Decoder(in_sybil(target), DraftModel(draft))
    asked: dict[str, Any] = dict(max_new_tokens=600, eos_token_id=[], do_sample=True, seed=1)
    stats = decoder.generate(prompts([4]), gamma="auto", **asked).stats
    assert stats.proposed == draft.forwards == len(draft.prefills) <= 4
    assert all(count > 60 for count in draft.prefills)
    assert stats.rounds >= 597


@pytest.mark.parametrize(
    "drafter", [Cheap(in_sybil(perturbed(gpt2(context=128), 0.1))), DraftLookup()], ids=["model", "lookup"]
)
def test_greedy_and_coupled_texts_are_plain_decoding_s(drafter: Any) -> None:
    target = in_sybil(gpt2(context=128))
    plain, drafted = Decoder(target), Decoder(target, drafter)
    for chosen in ({}, {"do_sample": True, "seed": 3, "rule": "coupled"}):
        asked: dict[str, Any] = dict(max_new_tokens=60, eos_token_id=[], **chosen)
        wanted = plain.generate(prompts([2, 9, 5]), **asked)
        found = drafted.generate(prompts([2, 9, 5]), **asked)  # auto where nothing is said
        assert [row.tolist() for row in found.tokens] == [row.tolist() for row in wanted.tokens]
        assert found.stats.proposed > 0


def test_other_windows_take_auto_for_four(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    propose = ModelDrafter.propose
    monkeypatch.setattr(
        ModelDrafter, "propose", lambda self, context, gamma: asked.append(gamma) or propose(self, context, gamma)
    )
    decoder = Decoder(in_sybil(gpt2()), DraftModel(in_sybil(gpt2())))
    for window in ("heuristic", "confident"):
        asked.clear()
        decoder.generate(prompts([3]), max_new_tokens=12, window=window)
        assert asked[0] == GAMMA


@pytest.mark.parametrize("gamma", ["Auto", "4", "many", 0, 2.5, ["auto"]])
def test_what_gamma_may_be(gamma: Any) -> None:
    with pytest.raises(InvalidSetting, match=r'^gamma is .*: use an integer from 1 to .*, or "auto"; load the model'):
        Settings(gamma=gamma)


def test_no_wait_is_for_ever() -> None:
    window = auto(SizedCosts(MOST, TARGET_BYTES, (100 * TARGET_BYTES,)))
    lengths = [window.sizes([0], [99])[0] for _ in range(LATEST + 2)]
    assert sum(lengths) == 1
