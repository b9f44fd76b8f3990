"""The exact proof of a rule: the shipped function, integrated over every proposal and all of its noise.

A rule is piecewise constant in its noise. Where the pieces end is asked of the rule itself, by bisection to the last
bit, so nothing of its mathematics is written here a second time; the rule evaluated once inside each piece, weighted by
the piece's size, is then its integral, to rounding. Random points of noise confirm that there are no other pieces.

For `token` and `block` the noise is uniforms, and the pieces are boxes. For `coupled` it is exponentials, and the
pieces are the orders in which the quotients exponential / probability come, whose probabilities are products of
probability / those left (the exponential race).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sybil.verification import Proposed, Rule

BELOW_ONE = 1.0 - 2.0**-53
PROBES = 64


@dataclass(frozen=True)
class Problem:
    """Context-dependent distributions. A node is a prefix of proposed tokens; node() says where it is.

    target, draft: (nodes, vocab). draft is None if a proposal is determined: at each node it is the token that is least
    probable in the target, the first of several. stops: the nodes at which a window ends the proposal."""

    gamma: int
    target: Tensor
    draft: Tensor | None
    stops: frozenset[int] = frozenset()

    @property
    def vocab(self) -> int:
        return self.target.shape[-1]

    def node(self, prefix: tuple[int, ...]) -> int:
        """The place of a prefix: by its depth, and then in counting order."""
        before = sum(self.vocab**depth for depth in range(len(prefix)))
        return before + sum(token * self.vocab**place for place, token in enumerate(reversed(prefix)))

    def drafts(self, prefix: tuple[int, ...]) -> Tensor:
        """The distribution that the next token of a proposal is drawn from."""
        node = self.node(prefix)
        if self.draft is not None:
            return self.draft[node]
        return torch.eye(self.vocab, dtype=torch.float64)[int(self.target[node].argmin())]

    def proposals(self, prefix: tuple[int, ...] = (), weight: float = 1.0) -> Iterator[tuple[tuple[int, ...], float]]:
        """Every proposal with its probability. A window may end proposals early."""
        if len(prefix) == self.gamma or self.node(prefix) in self.stops:
            yield prefix, weight
            return
        for token, probability in enumerate(self.drafts(prefix).tolist()):
            if probability > 0:
                yield from self.proposals((*prefix, token), weight * probability)

    def proposed(self, proposals: list[tuple[int, ...]]) -> Proposed:
        """What a rule is given of the proposals, padded with tokens and distributions that it must not read."""
        tokens = torch.full((len(proposals), self.gamma), self.vocab - 1)
        target = torch.full((len(proposals), self.gamma + 1, self.vocab), 1 / self.vocab, dtype=torch.float64)
        draft = torch.eye(self.vocab, dtype=torch.float64)[0].repeat(len(proposals), self.gamma, 1)
        for row, proposal in enumerate(proposals):
            tokens[row, : len(proposal)] = torch.tensor(proposal, dtype=torch.int64)
            for depth in range(len(proposal) + 1):
                target[row, depth] = self.target[self.node(proposal[:depth])]
                if depth < len(proposal):
                    draft[row, depth] = self.drafts(proposal[:depth])
        counts = torch.tensor([len(proposal) for proposal in proposals])
        return Proposed(tokens, None if self.draft is None else draft, target, counts)

    def extended(self, mass: dict[tuple[int, ...], float]) -> Tensor:
        """The joint distribution of gamma + 1 tokens, (vocab,) * (gamma + 1), if the target goes on after what a round
        has emitted."""
        found = torch.zeros((self.vocab,) * (self.gamma + 1), dtype=torch.float64)

        def add(prefix: tuple[int, ...], weight: float) -> None:
            if len(prefix) == found.ndim:
                found[prefix] += weight
                return
            for token, probability in enumerate(self.target[self.node(prefix)].tolist()):
                if probability > 0:
                    add((*prefix, token), weight * probability)

        for prefix, weight in mass.items():
            add(prefix, weight)
        return found

    def wanted(self) -> Tensor:
        return self.extended({(): 1.0})


def error(rule: Rule, problem: Problem, coupled: bool = False) -> float:
    """The largest difference of a probability between the target's joint distribution and that of a round followed by
    the target. inf if the noise has other pieces than were found."""
    return coupled_error(rule, problem) if coupled else independent_error(rule, problem)


def steps_of(rule: Rule, proposed: Proposed) -> Tensor:
    """The uniform at which each place stops accepting, (rows, gamma), while all others accept or all others reject."""
    rows, gamma = proposed.tokens.shape
    steps = torch.zeros(rows, gamma, dtype=torch.float64)
    for place in range(gamma):
        for others in (0.0, BELOW_ONE):
            at = torch.full((rows, gamma), others, dtype=torch.float64)

            def kept(uniform: Tensor, at: Tensor = at, place: int = place) -> Tensor:
                at[:, place] = uniform
                return accepted(rule, proposed, at)

            low, high = torch.zeros(rows).double(), torch.full((rows,), BELOW_ONE).double()
            before, after = kept(low), kept(high)
            edge = bisected(lambda middle, before=before, kept=kept: kept(middle) == before, low, high)
            # no step can be found from here, unless every uniform accepts
            certain = (before == after) & (before > place) & (others > 0)
            steps[:, place] = torch.where(before != after, edge, torch.where(certain, 1.0, steps[:, place]))
    return steps


def accepted(rule: Rule, proposed: Proposed, noise: Tensor) -> Tensor:
    """noise: (rows, gamma), the uniforms that judge."""
    return rule(proposed, torch.cat([torch.zeros(len(noise), 1).double(), noise], 1)).accepted


def cells(steps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each combination of accepting places: its share of all noise (rows,), and noise inside it (rows, gamma)."""
    for inside in itertools.product((True, False), repeat=steps.shape[1]):
        within = torch.tensor(inside)
        noise = torch.where(within, steps / 2, (steps + 1) / 2).clamp(max=BELOW_ONE)
        yield torch.where(within, steps, 1 - steps).prod(1), noise


def independent_error(rule: Rule, problem: Problem) -> float:
    proposals, weights = zip(*problem.proposals(), strict=True)
    mass = emitted(rule, problem.proposed(list(proposals)), torch.tensor(weights, dtype=torch.float64))
    return math.inf if mass is None else float((problem.extended(mass) - problem.wanted()).abs().max())


def emitted(rule: Rule, proposed: Proposed, weights: Tensor) -> dict[tuple[int, ...], float] | None:
    """The probability of each sequence that a round emits. weights (rows,): the probabilities of the proposals. None if
    the noise has other pieces than were found."""
    rows, gamma = proposed.tokens.shape
    vocab, tokens = proposed.target_probs.shape[-1], proposed.tokens.tolist()
    steps = steps_of(rule, proposed)

    mass: dict[tuple[int, ...], float] = defaultdict(float)
    outcome: list[Tensor] = []
    for size, noise in cells(steps):
        share = size * weights
        kept_here = accepted(rule, proposed, noise)
        outcome.append(kept_here)

        def drawn(uniform: Tensor, noise: Tensor = noise) -> Tensor:
            return rule(proposed, torch.cat([uniform[:, None], noise], 1)).next_token

        edges = [torch.zeros(rows).double()]
        for token in range(vocab - 1):  # the drawn token grows with its uniform: where does it pass each token?
            low, high = torch.zeros(rows).double(), torch.full((rows,), BELOW_ONE).double()
            edge = bisected(lambda middle, token=token, drawn=drawn: drawn(middle) <= token, low, high)
            edge = torch.where(drawn(low) > token, 0.0, torch.where(drawn(high) <= token, 1.0, edge))
            edges.append(edge)
        edges.append(torch.ones(rows).double())
        for row in range(rows):
            if share[row] > 0:
                for token in range(vocab):
                    length = float(edges[token + 1][row] - edges[token][row])
                    if length > 0:
                        mass[(*tokens[row][: int(kept_here[row])], token)] += float(share[row]) * length

    generator = torch.Generator().manual_seed(0)
    outcomes = torch.stack(outcome, 1)  # (rows, 2 ** gamma)
    for _ in range(PROBES):
        noise = torch.rand(rows, gamma, dtype=torch.float64, generator=generator)
        cell = ((noise >= steps) * 2 ** torch.arange(gamma - 1, -1, -1)).sum(1)
        if not torch.equal(accepted(rule, proposed, noise), outcomes.gather(1, cell[:, None])[:, 0]):
            return None
    return mass


def bisected(is_before: object, low: Tensor, high: Tensor) -> Tensor:
    """The point, to the last bit, where is_before(points (rows,)) turns from True to False between low and high."""
    for _ in range(55):
        middle = (low + high) / 2
        before = is_before(middle)  # type: ignore[operator]
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return high


def coupled_error(rule: Rule, problem: Problem) -> float:
    """The error of a rule that draws by exponentials. It is the worst over the proposals, each taken by itself: a
    coupled rule gives the target's distribution whatever is proposed, so it doesn't matter what a drafter makes of the
    shared noise."""
    worst = 0.0
    for proposal, _ in problem.proposals():
        rows = [problem.target[problem.node(proposal[:depth])] for depth in range(len(proposal) + 1)]
        rows += [torch.full((problem.vocab,), 1 / problem.vocab).double()] * (problem.gamma - len(proposal))
        pieces = list(itertools.product(*(list(orders(row)) for row in rows)))
        noise = torch.stack([torch.stack([exponentials for exponentials, _ in piece]) for piece in pieces])
        verdict = rule(problem.proposed([proposal] * len(pieces)), noise)
        mass: dict[tuple[int, ...], float] = defaultdict(float)
        for piece, kept, token in zip(pieces, verdict.accepted.tolist(), verdict.next_token.tolist(), strict=True):
            share = 1.0
            for _, probability in piece:
                share *= probability
            mass[(*proposal[:kept], token)] += share
        worst = max(worst, float((problem.extended(mass) - problem.wanted()).abs().max()))
    return worst


def orders(probs: Tensor) -> Iterator[tuple[Tensor, float]]:
    """(exponentials (vocab,), probability) for every order in which the tokens of a row may come."""
    support = [token for token, probability in enumerate(probs.tolist()) if probability > 0]
    for order in itertools.permutations(support):
        exponentials, probability = torch.ones_like(probs), 1.0
        for place, token in enumerate(order):
            exponentials[token] = (place + 1) * probs[token]
            probability *= float(probs[token] / probs[list(order[place:])].sum())
        yield exponentials, probability
