"""The costs of lookup: reading a text, and searching it and a datastore for the text's last tokens."""

from __future__ import annotations

import pytest
import torch
from conftest import Measure

from sybil.drafting import Context, Datastore, DraftLookup, Generating, LookupDrafter
from sybil.drafting.automaton import Automaton
from sybil.noise import Noise
from sybil.sampling import Sampling

pytestmark = [
    pytest.mark.benchmark(group="lookup"),
    pytest.mark.parametrize("device", [torch.device("cpu")], ids=str),  # a search needs no other
]
VOCAB, GAMMA, ROUNDS = 50_257, 4, 200


class NoCache:
    """In place of a KV cache: lookup uses none."""

    lengths = torch.zeros(1, dtype=torch.int64)

    def take_over(self, other: object) -> None: ...


def text(kind: str, length: int) -> list[int]:
    """A text of token ids, either distributed as words are (Zipf's law), or ten ids over and over."""
    if kind != "words":
        return [index % 10 for index in range(length)]
    ranks = torch.arange(1, VOCAB + 1).double().pow(-1.3)
    drawn: list[int] = torch.multinomial(ranks, length, True, generator=torch.Generator().manual_seed(0)).tolist()
    return drawn


@pytest.mark.parametrize("length", [50, 8_000, 50_000], ids="text {}".format)
@pytest.mark.parametrize("kind", ["words", "a loop"])
def test_read(kind: str, length: int, measure: Measure) -> None:
    """Read a whole text, as a prompt is read."""
    tokens = text(kind, length)

    def read() -> Automaton:
        automaton = Automaton()
        automaton.extend(tokens)
        return automaton

    assert measure(read, rounds=5).tokens == tokens
    measure.tokens(length, "one read")


@pytest.mark.parametrize("length", [50, 8_000, 50_000], ids="context {}".format)
@pytest.mark.parametrize("stored", [0, 100_000], ids="datastore {}".format)
def test_rounds(stored: int, length: int, measure: Measure) -> None:
    """Rounds that add one token each: reading the token, searching, proposing."""
    tokens = torch.tensor([text("words", length + ROUNDS)])
    factory = DraftLookup(datastore=Datastore.of([text("words", stored)]) if stored else None)
    generating = Generating(1, length + ROUNDS, VOCAB, Sampling(), NoCache())

    def prepare() -> tuple[LookupDrafter, Context]:
        context = Context(tokens, torch.tensor([length]), Noise(0))
        drafter = factory(generating)
        drafter.propose(context, GAMMA)
        return drafter, context

    def rounds(made: tuple[LookupDrafter, Context]) -> int:
        drafter, context = made
        for _ in range(ROUNDS):
            context.lengths = context.lengths + 1
            drafter.propose(context, GAMMA)
        return int(context.lengths)

    assert measure.prepared(prepare, rounds, rounds=5) == length + ROUNDS
    measure.tokens(ROUNDS, "one read, and looked for what follows it")
