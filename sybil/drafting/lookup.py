"""Drafting without a model, from texts that are there: the row's own, earlier answers, a datastore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sybil.drafting.automaton import Automaton, Match
from sybil.drafting.contract import Context, Drafter, DrafterFactory, Generating, Outcome, Proposal
from sybil.drafting.datastore import Answers, Datastore, StoreReader
from sybil.drafting.survival import Survival
from sybil.models import Model
from sybil.transfer import padded

LEAST = 0.25
"""How likely to be kept a token must be. Replayed over SmolLM2's greedy texts after 36 of the shipped prompts, 0.25 is
near the best, and no text loses more than 2 %, both where a token more costs 4.5 % of a forward and where 22 %."""


@dataclass(frozen=True, slots=True)
class DraftLookup(DrafterFactory):
    """Makes a LookupDrafter for each generation.

    least: a token that is less likely to be kept than this isn't proposed; 0 proposes everything that is found.
    datastore: texts that are searched beside the row's own. answers: where earlier answers are kept and searched; None
    keeps none. They are searched only where the text can't depend on proposals: in greedy decoding and under the rule
    `coupled`. Under the rules `token` and `block` a seeded text would depend on earlier calls."""

    least: float = LEAST
    datastore: Datastore | None = None
    answers: Answers | None = field(default=None, compare=False)

    @property
    def models(self) -> tuple[Model, ...]:
        return ()

    @property
    def step_bytes(self) -> tuple[int, ...]:
        return (0,)

    def over(self, *models: Model) -> DraftLookup:
        return self

    def __call__(self, generating: Generating) -> LookupDrafter:
        return LookupDrafter(self, generating)


class LookupDrafter(Drafter):
    """Prompt lookup (Saxena 2023) by a suffix automaton, as suffix decoding has it (arXiv 2411.04975).

    It finds the longest ending of the text that stood in it before, at its latest place, and proposes the tokens that
    followed there. It proposes as many as are likely to be kept, judging by how well matches of that length have held
    in this text. Of two matches of one length it takes the one in the row's own text."""

    def __init__(self, factory: DraftLookup, generating: Generating) -> None:
        self.least = factory.least
        stores = [] if factory.datastore is None else [factory.datastore]
        self._rows = [_LookupRow(stores) for _ in range(generating.batch)]
        self._past: Datastore | None = None
        if factory.answers is not None:
            self._past = factory.answers.store()
            factory.answers.keep([row.answer for row in self._rows])
        self._is_fixed = generating.sampling.greedy and not generating.is_lossy

    def likelihood(self, context: Context) -> list[float]:
        """For each row, how likely the first token that it would propose is to be kept; 0 where it would propose
        none."""
        return [row.likelihood(drafted) for row, drafted in zip(self._rows, self._read(context), strict=True)]

    def propose(self, context: Context, gamma: int) -> Proposal:
        limits = context.limits or [gamma] * len(context.tokens)
        rows = zip(self._rows, self._read(context), limits, strict=True)
        found = [row.continuation(drafted, limit, self.least) for row, drafted, limit in rows]
        return Proposal(padded(found), None, [len(tokens) for tokens in found])

    def observe(self, outcome: Outcome) -> None: ...

    def _read(self, context: Context) -> list[list[int]]:
        """Reads each row's committed tokens. Returns its drafted tokens, which aren't read, because they may be
        dropped."""
        if self._past and (self._is_fixed or context.exponentials is not None):
            for row in self._rows:
                row.look_into(self._past)
            self._past = None
        drafted = context.drafted or [0] * len(self._rows)
        tails = []
        for row, tokens, length, count in zip(
            self._rows, context.tokens, context.lengths.tolist(), drafted, strict=True
        ):
            fresh = tokens[row.read : length].tolist()
            cut = len(fresh) - count
            row.extend(fresh[:cut])
            tails.append(fresh[cut:])
        return tails


class _LookupRow:
    """One row's text, and the texts that are searched for its endings. read: how many of the row's tokens have been
    read; answer: those after the prompt."""

    def __init__(self, stores: Sequence[Datastore]) -> None:
        self.read = 0
        self.answer: list[int] = []
        self._sources: list[tuple[Automaton | StoreReader, Survival]] = [(Automaton(), Survival())]
        for store in stores:
            self.look_into(store)

    def look_into(self, store: Datastore) -> None:
        self._sources.append((StoreReader(store), Survival()))

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in committed tokens, of which the first are the prompt."""
        if self.read:
            self.answer += tokens
            for token in tokens:
                for source, survival in self._sources:
                    if match := source.match:
                        survival.learn(match.length, source.continuation(match, (), 1) == [token])
                    source.extend([token])
        else:
            for source, _ in self._sources:
                source.extend(tokens)
        self.read += len(tokens)

    def likelihood(self, drafted: Sequence[int]) -> float:
        _, survival, match = self._best(drafted)
        return survival.next(match.length) if match else 0.0

    def continuation(self, drafted: Sequence[int], most: int, least: float) -> list[int]:
        """At most `most` tokens that may follow the text and the drafted tokens, all of them kept with a likelihood of
        at least `least`."""
        source, survival, match = self._best(drafted)
        if not match or most <= 0:
            return []
        return source.continuation(match, drafted, survival.worth(match.length, most, least))

    def _best(self, drafted: Sequence[int]) -> tuple[Automaton | StoreReader, Survival, Match]:
        """The longest match, the row's own before another's that is as long."""
        found = [(source, survival, source.after(drafted)) for source, survival in self._sources]
        return max(found, key=lambda each: each[2].length)
