"""A draft that has a drafter of its own, like the second level of ML-SpecQD (arXiv 2503.13565).

A draft's proposal is made in nested rounds. A helper offers tokens, and the draft reads them in one forward. The draft
draws its own token at each place, and goes on from the first place at which its own token isn't the offered one. Each
token is drawn from the same distribution by the same noise as without a helper. So the proposal is the same, bit for
bit, where a token's logits don't depend on the tokens read beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sybil.drafting.auto import AutoWindow
from sybil.drafting.contract import Context, Drafter, Outcome, Proposal
from sybil.models import Cache, Model, prefill
from sybil.noise import Noise
from sybil.transfer import CPU, count_to, integers, stacked

Drawn = tuple[Tensor, Tensor | None, list[bool]]
"""(tokens (batch,); the distributions they were drawn from, (batch, vocab), or None when greedy; whether each row's
proposal goes on)."""


@dataclass(frozen=True, slots=True)
class NestedRounds:
    """Makes a draft's proposal in nested rounds. model, cache: the draft's. helper: drafts for the draft. window: how
    many tokens the helper is asked for at once. draw: draws the draft's tokens from logits (batch, vocab), the text so
    far, and each row's place in the proposal, (batch,)."""

    model: Model
    cache: Cache
    helper: Drafter
    window: AutoWindow
    draw: Callable[[Tensor, Context, Tensor], Drawn]

    def propose(self, context: Context, counts: list[int]) -> Proposal:
        """The draft's proposal, of at most counts[row] tokens for each row."""
        state = _Proposing(context, counts)
        while state.is_open:
            self._round(state)
        return state.proposal()

    def _round(self, state: _Proposing) -> None:
        """One nested round: the helper offers tokens, and the draft reads them and draws its own."""
        offered = [list[int]() for _ in state.counts]
        limits = self.window.sizes([0] * len(offered), state.rooms())
        inner = state.asking(limits) if any(limits) else None
        if inner is not None:
            proposal = self.helper.propose(inner, max(limits))
            sizes = map(min, proposal.counts, limits)
            offered = [row[:size] for row, size in zip(proposal.tokens.tolist(), sizes, strict=True)]
        logits, firsts = self._read(state, offered)
        agreeing = state.going()
        asked_for = torch.tensor(agreeing, dtype=torch.bool, device=CPU)
        for place in range(max(map(len, offered)) + 1):
            at = [first + min(place, len(row)) for first, row in zip(firsts, offered, strict=True)]
            # a row that has drawn its last token gets an arbitrary place, because its draw is ignored
            here = _at(logits, [min(each, logits.shape[1] - 1) for each in at])
            drawn = self.draw(here, state.text, integers(state.drawn))
            state.take(drawn, agreeing)
            agreeing = [
                agrees and state.is_going(row) and place < len(its) and its[place] == state.last(row)
                for row, (agrees, its) in enumerate(zip(agreeing, offered, strict=True))
            ]
            if not any(agreeing):
                break
        self.cache.lengths = state.text.lengths - 1
        if inner is not None:
            gained = state.text.lengths - inner.lengths - 1
            accepted = torch.where(asked_for, gained, 0)
            self.helper.observe(Outcome(accepted.tolist(), inner.lengths + accepted + 1))
            self.window.judge(accepted.tolist(), [len(row) for row in offered])

    def _read(self, state: _Proposing, offered: list[list[int]]) -> tuple[Tensor, list[int]]:
        """Run the draft over the tokens of the text that its cache lacks and over the offered tokens. Returns the
        logits (batch, n, vocab) and, for each row, the place of the logits that follow the text.

        Where a row's cache lacks the last committed token only, the row writes nothing before that token. In a cache
        that is shared with the target, the earlier keys are the target's own."""
        ends = state.text.lengths.tolist()
        if max(end - held for end, held in zip(ends, self.cache.lengths.tolist(), strict=True)) > 2:
            known = state.text.tokens.clamp(max=self.model.vocab_size - 1)
            prefill(self.model, self.cache, known, state.text.lengths - 1)
        held = self.cache.lengths.tolist()
        count = max(end - start + len(row) for end, start, row in zip(ends, held, offered, strict=True))
        latest = [start + state.gamma - 1 - count for start in state.starts]
        begin = [max(min(pair), 0) for pair in zip(held, latest, strict=True)]
        state.offer(offered)
        self.cache.lengths = integers(begin)
        block = state.text.tokens.gather(1, self.cache.lengths[:, None] + count_to(count))
        block = block.clamp(max=self.model.vocab_size - 1)  # the target's padding may have more tokens
        return self.model.forward(block, self.cache), [end - 1 - first for end, first in zip(ends, begin, strict=True)]


def _at(logits: Tensor, places: list[int]) -> Tensor:
    """The logits at one place of each row, (batch, vocab)."""
    if len(places) == 1:
        return logits[:, places[0]]
    return stacked([row[place : place + 1] for row, place in zip(logits, places, strict=True)])[0]


class _Proposing:
    """A proposal under way. text: the committed and the drawn tokens, as a Context. drawn: how many tokens of each row
    have been drawn."""

    def __init__(self, context: Context, counts: list[int]) -> None:
        self.context, self.counts, self.gamma = context, counts, max(counts)
        self.starts = context.lengths.tolist()
        self.text = replace(context, tokens=context.tokens.clone())
        self.drawn = [0] * len(counts)
        self._probs: Tensor | None = None

    @property
    def is_open(self) -> bool:
        return any(self.going())

    def going(self) -> list[bool]:
        """For each row, whether it draws more tokens."""
        return list(map(self.is_going, range(len(self.counts))))

    def is_going(self, row: int) -> bool:
        return self.drawn[row] < self.counts[row]

    def last(self, row: int) -> int:
        """The row's last drawn token."""
        return int(self.text.tokens[row, self.starts[row] + self.drawn[row] - 1])

    def rooms(self) -> list[int]:
        """How many tokens each row can ask its helper for. The limit keeps a row from running beyond the place of its
        last proposed token."""
        most = self.gamma - 1 - max(self._open())
        return [
            max(min(most, count - drawn - 1), 0) if self.is_going(row) else 0
            for row, (count, drawn) in enumerate(zip(self.counts, self.drawn, strict=True))
        ]

    def _open(self) -> list[int]:
        """How many tokens of each row have been drawn; 0 for a row that is done."""
        return [count if self.is_going(row) else 0 for row, count in enumerate(self.drawn)]

    def asking(self, limits: list[int]) -> Context:
        """The context that the helper sees. limits: how many tokens each row asks for. A row that is done is shown as
        it was at the beginning."""
        drawn = self._open()
        lengths = self.context.lengths + integers(drawn)
        before = self.context.drafted or [0] * len(drawn)
        inner = replace(self.text, lengths=lengths, limits=limits, least_confidence=0.0)
        inner.drafted = [one + other for one, other in zip(before, drawn, strict=True)]
        inner.noise = _Later(self.context.noise, integers(drawn))
        if self.context.exponentials is not None:
            places = integers(drawn)[:, None] + count_to(max(limits))
            rows = count_to(len(drawn))[:, None]
            inner.exponentials = self.context.exponentials[rows, places.clamp(max=self.gamma)]
        return inner

    def offer(self, offered: list[list[int]]) -> None:
        """Write the offered tokens after the text, so that the draft reads them."""
        for row, tokens in enumerate(offered):
            start = self.starts[row] + self.drawn[row]
            self.text.tokens[row, start : start + len(tokens)] = integers(tokens)

    def take(self, drawn: Drawn, rows: list[bool]) -> None:
        """Append the drawn tokens to the rows that are True in `rows`."""
        tokens, probs, goes_on = drawn
        if probs is not None and self._probs is None:
            self._probs = probs.new_zeros(len(rows), self.gamma, probs.shape[-1])
        for row, token in enumerate(tokens.tolist()):
            if not rows[row]:
                continue
            place = self.drawn[row]
            self.text.tokens[row, self.starts[row] + place] = token
            if self._probs is not None and probs is not None:
                self._probs[row, place] = probs[row]
            self.drawn[row] += 1
            if not goes_on[row]:
                self.counts[row] = min(self.counts[row], place + 1)
        self.text.lengths = self.context.lengths + integers(self.drawn)

    def proposal(self) -> Proposal:
        width = max(self.drawn)
        tokens = self.text.tokens.gather(1, self.context.lengths[:, None] + count_to(width))
        return Proposal(tokens, None if self._probs is None else self._probs[:, :width], self.counts)


class _Later(Noise):
    """A round's noise, for a helper whose text begins `places` tokens later. The draft and its helper draw with the
    same noise at the same place."""

    def __init__(self, noise: Noise, places: Tensor) -> None:
        self._noise, self._places = noise, places

    def uniforms(self, rows: Tensor, positions: Tensor, count: int, use: int) -> Tensor:
        whole = self._noise.uniforms(rows, positions - self._places, count + int(self._places.max()), use)
        return whole.gather(1, self._places[:, None] + count_to(count))

    def exponentials(self, rows: Tensor, positions: Tensor, vocab: int) -> Tensor:
        return self._noise.exponentials(rows, positions, vocab)
