"""Drafting without a model, from existing texts: the row's own text, earlier answers, a datastore."""

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
"""A token is proposed only if it is at least this likely to be kept. Replayed over SmolLM2's greedy texts after 36 of
the shipped prompts, 0.25 is near the best, and no text loses more than 2 %. That holds where a further token costs 4.5
% of a forward and where it costs 22 %."""


@dataclass(frozen=True, slots=True)
class DraftLookup(DrafterFactory):
    """Makes a LookupDrafter for each generation.

    - least: a token that is less likely to be kept than this isn't proposed; 0 proposes everything that is found.
    - datastore: texts that are searched beside the row's own text.
    - answers: holds earlier answers, which are searched too; None keeps none. They are searched only where the text
      can't depend on proposals: in greedy decoding by a lossless rule, and by the rule `coupled`. By the rules `token`
      and `block` a seeded text would depend on earlier calls."""

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

    It finds the longest suffix of the text that occurs earlier, and proposes the tokens that followed the latest
    earlier occurrence. It proposes as many as are likely to be kept, judged by how often matches of that length have
    been right in this text. Of two matches of the same length it takes the one in the row's own text."""

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
        """For each row, the likelihood that the first token of its proposal is kept; 0 where nothing would be
        proposed."""
        return [row.likelihood(drafted) for row, drafted in zip(self._rows, self._read(context), strict=True)]

    def propose(self, context: Context, gamma: int) -> Proposal:
        limits = context.limits or [gamma] * len(context.tokens)
        rows = zip(self._rows, self._read(context), limits, strict=True)
        found = [row.continuation(drafted, limit, self.least) for row, drafted, limit in rows]
        return Proposal(padded(found), None, [len(tokens) for tokens in found])

    def observe(self, outcome: Outcome) -> None: ...

    def _read(self, context: Context) -> list[list[int]]:
        """Reads each row's committed tokens. Returns each row's drafted tokens, which aren't read, because they may
        still be dropped."""
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
    """One row's text, and the texts that are searched for its suffixes. read: how many of the row's tokens have been
    read. answer: the row's tokens after the prompt."""

    def __init__(self, stores: Sequence[Datastore]) -> None:
        self.read = 0
        self.answer: list[int] = []
        self._sources: list[tuple[Automaton | StoreReader, Survival]] = [(Automaton(), Survival())]
        for store in stores:
            self.look_into(store)

    def look_into(self, store: Datastore) -> None:
        self._sources.append((StoreReader(store), Survival()))

    def extend(self, tokens: Sequence[int]) -> None:
        """Read committed tokens. The first call reads the prompt."""
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
        """At most `most` tokens that may follow the text and the drafted tokens. They end where the likelihood that all
        of them are kept falls below `least`."""
        source, survival, match = self._best(drafted)
        if not match or most <= 0:
            return []
        return source.continuation(match, drafted, survival.worth(match.length, most, least))

    def _best(self, drafted: Sequence[int]) -> tuple[Automaton | StoreReader, Survival, Match]:
        """The longest match and where it was found; the row's own text wins over another text with a match as long."""
        found = [(source, survival, source.after(drafted)) for source, survival in self._sources]
        return max(found, key=lambda each: each[2].length)
