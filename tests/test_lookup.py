"""Lookup: the automaton against a search through all places, what is proposed of it, datastores, earlier answers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import gpt2, in_sybil, prompts

from sybil import Decoder
from sybil.drafting import Answers, Context, Datastore, DraftLookup, Generating, LookupDrafter, Proposal
from sybil.drafting.automaton import Automaton
from sybil.drafting.datastore import DEPTH, END, StoreReader
from sybil.drafting.survival import Survival
from sybil.noise import Noise
from sybil.sampling import Sampling

texts = st.integers(1, 4).flatmap(lambda size: st.lists(st.integers(0, size), max_size=40))
few = st.lists(st.integers(0, 2), max_size=6)


def found_by_hand(text: Sequence[int], known: int) -> tuple[int, int]:
    """The longest ending of a text that stood before within its first `known` tokens, and its latest place there."""
    last = len(text) - 1
    for size in range(last, 0, -1):
        for end in range(min(known, last) - 1, size - 2, -1):
            if text[end - size + 1 : end + 1] == text[last - size + 1 :]:
                return size, end
    return 0, -1


def repeated(text: Sequence[int], end: int, count: int) -> list[int]:
    """What follows that place, and once the text is at its end, what is proposed itself."""
    whole = list(text)
    for index in range(count):
        whole.append(whole[end + 1 + index])
    return whole[len(text) :]


@settings(max_examples=300)
@given(text=texts, at_once=st.booleans())
def test_the_match_is_the_longest_at_its_latest_place(text: list[int], at_once: bool) -> None:
    automaton = Automaton()
    for end in [len(text)] if at_once else range(1, len(text) + 1):
        automaton.extend(text[len(automaton.tokens) : end])
        length, place = found_by_hand(text[:end], end)
        assert automaton.match.length == length
        if length:
            assert automaton.match.end == place
            assert automaton.continuation(automaton.match, (), 9) == repeated(text[:end], place, 9)
    assert automaton.tokens == text


@settings(max_examples=300)
@given(text=texts, drafted=few)
def test_drafted_tokens_are_matched_and_not_kept(text: list[int], drafted: list[int]) -> None:
    automaton = Automaton()
    automaton.extend(text)
    match, whole = automaton.after(drafted), text + drafted
    length, _ = found_by_hand(whole, len(text))
    assert match.length == length
    if match:
        assert whole[match.end - length + 1 : match.end + 1] == whole[len(whole) - length :]
        assert automaton.continuation(match, drafted, 9) == repeated(whole, match.end, 9)
    assert automaton.tokens == text
    assert automaton.match.length == found_by_hand(text, len(text))[0]


def test_of_a_long_text_the_last_half_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Automaton, "MOST", 64)
    automaton, text = Automaton(), [index % 47 for index in range(1000)]
    for start in range(0, 1000, 9):
        automaton.extend(text[start : start + 9])
        assert len(automaton.tokens) <= 64
        assert automaton.tokens == text[: start + 9][-len(automaton.tokens) :]
    automaton.extend(text)
    assert automaton.tokens == text[-64:]
    assert automaton.continuation(automaton.match, (), 3) == [
        (text[-1] + 1) % 47,
        (text[-1] + 2) % 47,
        (text[-1] + 3) % 47,
    ]


def test_a_text_of_one_token_over_and_over_takes_no_square_of_its_length() -> None:
    """Of its 20,000 suffixes a new token sets the ends of STEPS anew; the longest match stays the latest."""
    automaton = Automaton()
    automaton.extend([7] * 20_000)
    assert (automaton.match.length, automaton.match.end) == (19_999, 19_998)


@settings(max_examples=200)
@given(stored=st.lists(texts, max_size=4), ending=texts)
def test_a_datastore_has_the_longest_match_and_never_crosses_from_a_text_to_the_next(
    stored: list[list[int]], ending: list[int]
) -> None:
    store = Datastore.of(stored)
    match = store.search(ending)
    longest = max(
        (
            size
            for text in stored
            for end in range(len(text))
            for size in range(min(end + 1, len(ending), DEPTH) + 1)
            if text[end + 1 - size : end + 1] == ending[len(ending) - size :]
        ),
        default=0,
    )
    assert match.length == longest
    if match:
        assert store.tokens[match.end - longest + 1 : match.end + 1].tolist() == ending[len(ending) - longest :]
        after = store.after(match.end, 50)
        assert END not in after
        assert any(text[len(text) - len(after) :] == after for text in stored)


def test_a_reader_follows_its_match_beyond_the_depth_of_the_order() -> None:
    text = [(index * index) % 251 for index in range(600)]
    reader = StoreReader(Datastore.of([text, text[:30]]))
    reader.extend(text[100:110])
    assert reader.after(()).length == 10
    for place in range(110, 160):
        reader.extend([text[place]])
    assert reader.match.length == 60
    assert reader.continuation(reader.after(()), (), 3) == text[160:163]
    assert reader.after([text[160]]).length == 61  # which isn't read
    assert reader.match.length == 60
    reader.extend([999])
    assert not reader.match


def test_survival_learns_from_the_text() -> None:
    survival = Survival()
    assert survival.worth(1, 8, 0.25) == 0  # a match of one token offers little
    assert survival.worth(64, 8, 0.25) == 8
    for _ in range(30):
        survival.learn(1, True)
        survival.learn(64, False)
    assert survival.worth(1, 1, 0.25) == 1
    assert survival.worth(64, 8, 0.25) == 0
    assert survival.worth(64, 8, 0.0) == 8


def looking(rows: Sequence[Sequence[int]], garbage: int = 0, **chosen: Any) -> tuple[LookupDrafter, Context]:
    """A drafter and what it is asked about; garbage: what stands beyond each row's end."""
    width = max(map(len, rows)) + 12
    tokens = torch.full((len(rows), width), garbage)
    for row, text in enumerate(rows):
        tokens[row, : len(text)] = torch.tensor(text)
    generating = Generating(len(rows), width, 31, Sampling(), in_sybil(gpt2()).new_cache(len(rows), width))
    return DraftLookup(**chosen)(generating), Context(tokens, torch.tensor([len(row) for row in rows]), Noise(0))


def offered(proposal: Proposal) -> list[list[int]]:
    return [row[:count] for row, count in zip(proposal.tokens.tolist(), proposal.counts, strict=True)]


@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=3),
    garbage=st.integers(0, 2),
)
@settings(max_examples=100)
def test_what_is_proposed_is_the_row_s_own_text_whatever_lies_beyond_it(rows: list[list[int]], garbage: int) -> None:
    drafter, context = looking(rows, garbage, least=0.0)
    wanted = [repeated(row, end, 4) if size else [] for row in rows for size, end in [found_by_hand(row, len(row))]]
    assert offered(drafter.propose(context, 4)) == wanted
    context.limits = [row % 3 for row in range(len(rows))]
    assert offered(drafter.propose(context, 2)) == [tokens[: row % 3] for row, tokens in enumerate(wanted)]


def test_a_datastore_s_text_is_proposed_where_the_row_s_own_has_no_match_as_long() -> None:
    store = Datastore.of([[1, 2, 3, 4, 5, 6, 7, 8]])
    drafter, context = looking(
        [[9, 3, 4, 20, 21, 3, 4], [9, 2, 3, 4, 20, 3, 4], [8, 2, 3, 4]], datastore=store, least=0.0
    )
    assert offered(drafter.propose(context, 3)) == [[20, 21, 3], [20, 3, 4], [5, 6, 7]]
    drafter, context = looking([[9, 7, 8]], datastore=store, least=0.0)
    assert offered(drafter.propose(context, 3)) == [[]]  # the text is at its end


def test_earlier_answers_are_looked_up_where_that_can_change_no_text() -> None:
    model = in_sybil(gpt2())
    plain = Decoder(model)
    asked: dict[str, Any] = dict(max_new_tokens=40, eos_token_id=[], gamma=4)
    keeping = Decoder(model, DraftLookup(answers=Answers()))
    first, again = (keeping.generate(prompts([6]), **asked) for _ in range(2))
    assert (
        first.tokens[0].tolist() == again.tokens[0].tolist() == plain.generate(prompts([6]), **asked).tokens[0].tolist()
    )
    assert again.stats.rounds < first.stats.rounds
    sampled: dict[str, Any] = dict(asked, do_sample=True, top_k=0, seed=2)
    for rule in ("token", "block", "coupled"):
        fresh = Decoder(model, DraftLookup()).generate(prompts([6]), rule=rule, **sampled)
        repeats = [keeping.generate(prompts([6]), rule=rule, **sampled) for _ in range(2)]
        assert all(torch.equal(each.tokens[0], fresh.tokens[0]) for each in repeats)
        assert (repeats[1].stats.rounds < fresh.stats.rounds) == (rule == "coupled")


def test_answers_are_bounded_and_the_oldest_go() -> None:
    answers = Answers()
    assert answers.store() is None
    texts = [[number] * 3000 for number in range(9)]
    answers.keep(texts)
    store = answers.store()
    assert store is not None
    assert len(store.tokens) <= Answers.MOST + 10
    assert {int(token) for token in store.tokens} == {END, 3, 4, 5, 6, 7, 8}
    answers.keep([[1, 2]])
    answers.keep([[5, 6, 7]] * 100)  # the same question asked again and again, and answers of nothing
    answers.keep([[] for _ in range(100)])
    growing: list[int] = []
    answers.keep([growing])
    answers.store()
    assert len(answers._texts) == 6 + 2 + 101
    growing.append(9)
    store = answers.store()
    assert store is not None
    assert 9 in store.tokens
    answers.keep([[] for _ in range(2 * Answers.MOST)])
    answers.store()
    assert len(answers._texts) == Answers.MOST
    answers = Answers()
    answers.keep([*texts, [1, 2]])
    assert len(copy.deepcopy(answers).store().tokens) <= Answers.MOST + 10  # type: ignore[union-attr]


def test_a_factory_without_models_reads_no_weights() -> None:
    assert DraftLookup().models == ()
    assert DraftLookup().step_bytes == (0,)
