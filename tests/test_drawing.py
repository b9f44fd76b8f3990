"""Distributions and draws in C are those that torch's operators make in float64, by vectors of 4, 8 and 16 floats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rows import large_rows
from shapes import compiled, widths
from torch import Tensor

from sybil import verification
from sybil.models.native import drawing, library
from sybil.noise import Exponentials, Noise
from sybil.residual import Residual
from sybil.sampling import Sampling, draw, probabilities, race
from sybil.verification import Proposed

pytestmark = compiled

small_rows = st.lists(
    st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, 1.0, -math.inf])), min_size=1, max_size=40
).filter(lambda row: max(row) > -math.inf)
rows = st.one_of(small_rows.map(torch.tensor), large_rows().map(Tensor.float))


@contextmanager
def by(lanes: int) -> Iterator[None]:
    """C with vectors of so many floats; 0: none, so that torch and numpy do it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "library", SimpleNamespace(load=lambda: library.load(lanes) if lanes else None))
        yield


@widths
@settings(max_examples=40)
@given(
    row=rows,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 7, 50, 900, 100_000]),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.9999)),
    min_p=st.sampled_from([0.0, 0.03, 0.51, 1.0]),
)
def test_distributions_are_those_of_float64(
    lanes: int, row: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature, top_k, top_p, min_p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sybil.sampling.LARGE", math.inf)
        wanted = probabilities(row.double(), sampling)
        masses = probabilities(row.double(), Sampling(temperature, top_k)).sort().values
    # rounding may say otherwise of a token that stands at a filter's border
    assume(top_p == 1 or float((masses.cumsum(-1) - (1 - top_p)).abs().min()) > 1e-6)
    gaps = (masses / masses[-1] - min_p).abs()
    assume(not ((gaps > 0) & (gaps < 1e-5 * min_p)).any())
    with by(lanes):
        found = probabilities(row, sampling)
        beside = probabilities(torch.stack([row.flip(0), row])[None], sampling)
    assert found.dtype == torch.float32
    assert torch.equal(beside[0, 1], found)  # a row's bits are its own
    heavy = wanted > 1e-37 * float(wanted.max())  # what is lighter may weigh nothing
    assert torch.equal((found > 0) & heavy, heavy)
    assert not found[wanted == 0].any()
    torch.testing.assert_close(found[heavy].double(), wanted[heavy], rtol=2e-5, atol=0)
    assert float(found.sum(dtype=torch.float64)) == pytest.approx(1, abs=1e-5)


@widths
def test_rows_that_make_no_distribution_are_nan(lanes: int) -> None:
    for bad in (math.nan, math.inf):
        for place in (0, 3, 4_998):
            logits = torch.randn(3, 4_999, generator=torch.Generator().manual_seed(0))
            logits[1, place] = bad
            for sampling in (Sampling(1.0), Sampling(0.5, top_k=2, top_p=0.9, min_p=0.1)):
                with by(lanes):
                    probs = probabilities(logits, sampling)
                    assert probs.isnan().all(-1).tolist() == [False, True, False]
                    assert (draw(probs, torch.rand(3)) < 0).tolist() == [False, True, False]
    with by(lanes):
        assert probabilities(torch.full((1, 9), -math.inf), Sampling(1.0)).isnan().all()
        assert draw(torch.zeros(1, 9), torch.tensor([0.5])).tolist() == [-1]
        assert probabilities(torch.empty(0, 9), Sampling(1.0)).shape == (0, 9)


@widths
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 511, 513, 9_999]), st.integers(0, 2**53 - 1))
def test_a_draw_inverts_the_distribution_function(lanes: int, seed: int, vocab: int, numerator: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = (6 * torch.randn(3, vocab, generator=generator)).softmax(-1)
    probs[1, torch.rand(vocab, generator=generator) < 0.99] = 0.0
    uniforms = torch.tensor([numerator * 2.0**-53, 1 - 2.0**-53, 0.0], dtype=torch.float64)
    with by(lanes):
        tokens = draw(probs, uniforms)
    inverts(probs.double(), uniforms, tokens)


def inverts(left: Tensor, uniforms: Tensor, tokens: Tensor, tolerance: float = 1e-12) -> None:
    """Tokens (n,) are where the sums of left (n, vocab) pass uniform * sum; -1 where there is nothing."""
    for row, uniform, token in zip(left, uniforms.tolist(), tokens.tolist(), strict=True):
        whole = float(row.sum())
        if token < 0:
            assert whole == 0
            continue
        assert float(row[token]) > 0
        assert float(row[:token].sum()) <= (uniform + tolerance) * whole
        assert (uniform - tolerance) * whole <= float(row[: token + 1].sum())


def problem(seed: int, vocab: int, is_certain: bool) -> tuple[Residual, Tensor]:
    """Residuals of 4 rows, gamma 2, in float32, and uniforms."""
    generator = torch.Generator().manual_seed(seed)
    target, draft = (3 * torch.randn(2, 4, 3, vocab, generator=generator)).softmax(-1)
    draft = draft[:, :2].clone()
    draft[0] = target[0, :2]
    draft[1, 0, 0] = math.nan
    tokens = torch.randint(0, vocab, (4, 2), generator=generator)
    places, weights = np.array([0, 1, 2, 1]), np.array([1.0, 0.3, 1.0, 0.9], np.float32)
    drafted = np.array([True, True, False, True])
    residual = Residual(target, None if is_certain else draft, tokens, np.arange(4), places, weights, drafted)
    return residual, torch.rand(4, dtype=torch.float64, generator=generator)


@widths
@pytest.mark.parametrize("is_certain", [False, True])
@given(seed=st.integers(0, 2**32), vocab=st.sampled_from([1, 2, 17, 513, 5_000]))
def test_residuals_are_those_of_float64(lanes: int, is_certain: bool, seed: int, vocab: int) -> None:
    residual, uniforms = problem(seed, vocab, is_certain)
    check_residuals(lanes, residual, uniforms)


def check_residuals(lanes: int, residual: Residual, uniforms: Tensor) -> None:
    draft = residual.draft_probs
    exact = replace(
        residual,
        target_probs=residual.target_probs.double(),
        draft_probs=None if draft is None else draft.double(),
        weights=residual.weights.astype(np.float64),
    )
    left = torch.from_numpy(exact._left())
    with by(lanes):
        sums, tokens = residual.sums(), residual.draw(uniforms)
    torch.testing.assert_close(sums.double(), left.sum(-1), rtol=1e-5, atol=1e-7)
    target = torch.from_numpy(exact._target())
    drawn_from = torch.where(left.sum(-1, keepdim=True) == 0, target, left)
    inverts(drawn_from, uniforms, tokens, 1e-5)


def test_the_check_of_residuals_sees_a_certain_token_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    residual, uniforms = problem(1, 2, is_certain=True)
    check_residuals(8, residual, uniforms)
    original = drawing.Rest._call
    monkeypatch.setattr(drawing.Rest, "_call", lambda self, *given: original(replace(self, without=None), *given))
    with pytest.raises(AssertionError):
        check_residuals(8, residual, uniforms)


def races(vocab: int, seed: int) -> tuple[Tensor, Exponentials]:
    """Distributions (5, 3, vocab), some of few tokens, and exponentials for them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(5, 3, vocab, generator=generator)
    logits[1, torch.rand(3, vocab, generator=generator) < 0.999] = -40.0
    logits[2] = logits[2].round()
    logits[3] *= 0
    logits[4, :, vocab - 1] = 30.0
    positions = torch.randint(1 << 40, (5, 3), generator=generator)
    rows = torch.arange(5)[:, None].expand_as(positions)
    return logits.softmax(-1), Exponentials(Noise(seed), rows, positions, vocab)


@widths
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), vocab=st.sampled_from([4_096, 4_097, 4_159, 5_000, 12_345]))
def test_a_race_in_c_has_the_winner_that_numpy_finds(lanes: int, seed: int, vocab: int) -> None:
    probs, exponentials = races(vocab, seed)
    with by(0):
        wanted = race(probs, exponentials)
    assert torch.equal(wanted, race(probs, exponentials.all()))
    with by(lanes):
        assert torch.equal(race(probs, exponentials), wanted)
        assert torch.equal(race(probs[:, 1:], exponentials[:, 1:]), wanted[:, 1:])
        assert torch.equal(race(probs[2, :1], exponentials[2, :1]), wanted[2, :1])


@widths
def test_a_race_in_c_among_what_is_no_distribution_has_no_winner(lanes: int) -> None:
    probs, exponentials = races(5_000, 0)
    for place, bad in enumerate((math.nan, math.inf)):
        for at in (0, 77, 4_999):
            broken = probs.clone()
            broken[place, 1, at] = bad
            broken[2, 2] = 0.0
            for way in (lanes, 0):
                with by(way):
                    found = race(broken, exponentials)
                assert (found < 0).nonzero().tolist() == [[place, 1], [2, 2]]


def test_the_check_of_races_sees_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: C hashes another seed."""
    probs, exponentials = races(5_000, 0)
    with by(0):
        wanted = race(probs, exponentials)
    monkeypatch.setattr(exponentials.noise, "seed", exponentials.noise.seed ^ 1)
    with by(8):
        assert not torch.equal(race(probs, exponentials), wanted)


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("has_numbers", [True, False])
def test_float32_verdicts_by_c_are_those_without_it(rule: str, has_numbers: bool) -> None:
    """2,000 problems of 3 rows, gamma 4: what is kept, and what comes next but for a uniform at a border."""
    generator = torch.Generator().manual_seed(0)
    parted = 0
    for _ in range(2_000):
        target = (2 * torch.randn(3, 5, 33, generator=generator)).softmax(-1)
        draft = (target[:, :4].log() + torch.randn(3, 4, 33, generator=generator)).softmax(-1)
        tokens = torch.multinomial(draft.flatten(0, 1), 1, generator=generator).reshape(3, 4)
        counts = torch.randint(0, 5, (3,), generator=generator)
        proposed = Proposed(tokens, draft if has_numbers else None, target, counts)
        noise = torch.rand(3, 5, dtype=torch.float64, generator=generator)
        with by(8):
            found = verification.RULES[rule](proposed, noise)
        with by(0):
            wanted = verification.RULES[rule](proposed, noise)
        assert torch.equal(found.accepted, wanted.accepted)
        parted += int((found.next_token != wanted.next_token).sum())
    assert parted <= 2
