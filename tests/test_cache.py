"""Cached logits are uncached logits, after any sequence of accepts and rejects, on rows of unequal length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tiny import alternating, fixed, foreign, gpt2, in_sybil, llama, windowed
from transformers import PreTrainedModel

from sybil.models import Model, feed
from sybil.models.operators.cache import KVCache

CONTEXT = 64


def machine(reference: PreTrainedModel, model: Model) -> type[RuleBasedStateMachine]:
    """A state machine over one model: rows of tokens are the state, and the cache must follow them."""

    class CacheMachine(RuleBasedStateMachine):
        rows: list[list[int]]
        cache: Any

        @initialize(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3), seed=st.integers(0, 99))
        def prefill(self, lengths: list[int], seed: int) -> None:
            self.random = torch.Generator().manual_seed(seed)
            self.rows = [self.draw(length) for length in lengths]
            self.cache = model.new_cache(len(lengths), CONTEXT)
            self.check(feed(model, self.cache, self.padded(), self.lengths()))

        def draw(self, count: int) -> list[int]:
            tokens: list[int] = torch.randint(31, (count,), generator=self.random).tolist()
            return tokens

        def lengths(self) -> torch.Tensor:
            return torch.tensor([len(row) for row in self.rows])

        def padded(self) -> torch.Tensor:
            tokens = torch.zeros(len(self.rows), CONTEXT, dtype=torch.int64)
            for index, row in enumerate(self.rows):
                tokens[index, : len(row)] = torch.tensor(row)
            return tokens

        def check(self, logits: torch.Tensor) -> None:
            """logits (batch, vocab) after each row's last token."""
            for row, found in zip(self.rows, logits, strict=True):
                with torch.no_grad():
                    wanted = reference(input_ids=torch.tensor([row])).logits[0, -1]
                assert (found - wanted).abs().max() < 1e-9

        @rule(gamma=st.integers(1, 5), accepted=st.lists(st.integers(0, 5), min_size=3, max_size=3))
        def verify_and_roll_back(self, gamma: int, accepted: list[int]) -> None:
            if max(map(len, self.rows)) + gamma > CONTEXT:
                return
            proposed = [self.draw(gamma) for _ in self.rows]
            logits = model.forward(torch.tensor(proposed), self.cache)
            for index in range(gamma):
                kept = [row + tokens[: index + 1] for row, tokens in zip(self.rows, proposed, strict=True)]
                before, self.rows = self.rows, kept
                self.check(logits[:, index])
                self.rows = before
            self.rows = [row + tokens[:n] for row, tokens, n in zip(self.rows, proposed, accepted, strict=False)]
            self.cache.lengths = self.lengths()

        @rule(cut=st.lists(st.integers(0, 4), min_size=3, max_size=3), count=st.integers(1, 3))
        def roll_back_and_feed(self, cut: list[int], count: int) -> None:
            if max(map(len, self.rows)) + count > CONTEXT:
                return
            self.rows = [row[: max(1, len(row) - n)] for row, n in zip(self.rows, cut, strict=False)]
            self.cache.lengths = self.lengths()
            self.rows = [row + self.draw(count) for row in self.rows]
            self.check(feed(model, self.cache, self.padded(), self.lengths()))

        @invariant()
        def lengths_are_the_state(self) -> None:
            if hasattr(self, "rows"):
                assert self.cache.lengths.tolist() == [len(row) for row in self.rows]

    return CacheMachine


@pytest.mark.parametrize(
    ("reference", "wrap"),
    [
        pytest.param(gpt2(), in_sybil, id="own gpt2"),
        pytest.param(windowed(), in_sybil, id="own mistral"),
        pytest.param(gpt2(), fixed, id="gpt2 of fixed shapes"),
        pytest.param(windowed(), fixed, id="mistral of fixed shapes"),
        pytest.param(gpt2(), foreign, id="transformers' gpt2"),
        pytest.param(llama(), foreign, id="transformers' llama"),
        pytest.param(alternating(), fixed, id="gemma3 of fixed shapes"),
        pytest.param(alternating(), foreign, id="transformers' gemma3"),
        pytest.param(alternating("gemma2"), in_sybil, id="own gemma2"),
    ],
)
def test_cached_logits_are_uncached_logits(reference: PreTrainedModel, wrap: Any) -> None:
    run_state_machine_as_test(
        machine(reference, wrap(reference)), settings=settings(max_examples=15, stateful_step_count=8)
    )


def test_the_state_machine_sees_a_cache_that_forgets_to_roll_back() -> None:
    model = in_sybil(gpt2())

    class Stale(KVCache):
        """Rolls back to a place one too far on, so that a rejected token's keys stay."""

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "lengths" and hasattr(self, "lengths") and bool((value < self.lengths).any()):
                value = torch.where(value < self.lengths, value + 1, value)
            super().__setattr__(name, value)

    shape = model.shape
    model.new_cache = lambda batch, capacity: Stale(  # type: ignore[method-assign]
        shape.layers, batch, shape.kv_heads, capacity + 8, shape.head_size, torch.float64, model.device
    )
    unshrunk = settings(max_examples=15, stateful_step_count=8, phases=[Phase.generate])
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(machine(gpt2(), model), settings=unshrunk)
