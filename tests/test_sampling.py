"""Probabilities are transformers' own; draws follow them; noise is uniform and depends on its key alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rows import large_rows
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sybil import noise as noises
from sybil.errors import InvalidSetting
from sybil.noise import COLUMN, LARGE, Exponentials, Noise
from sybil.sampling import Sampling, draw, likeliest, probabilities, process, race

logit = st.one_of(st.floats(-30, 30), st.sampled_from([0.0, 1.0, -math.inf]))


@given(
    logits=st.lists(logit, min_size=2, max_size=12).filter(lambda row: max(row) > -math.inf),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, 100]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_probabilities_are_those_of_transformers_warpers(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    row = torch.tensor([logits], dtype=torch.float64)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    wanted = warpers(None, row.clone()).softmax(-1)
    found = probabilities(row, Sampling(temperature, top_k, top_p, min_p))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@settings(max_examples=150)
@given(
    row=large_rows(),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 7, 50, 900, 100_000]),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.9999)),
    min_p=st.sampled_from([0.0, 0.03, 0.51, 1.0]),
)
def test_large_rows_keep_what_sorting_keeps(
    row: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """The kept tokens are those of the rows that are sorted, which are transformers' (above); so are their numbers."""
    sampling = Sampling(temperature, top_k, top_p, min_p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sybil.sampling.LARGE", math.inf)
        wanted = probabilities(row, sampling)
        unshaped = probabilities(row, Sampling(temperature, top_k)).sort().values.cumsum(-1)
    # another order of summing may say otherwise of a token whose sum is the border but for rounding
    assume(top_p == 1 or float((unshaped - (1 - top_p)).abs().min()) > 1e-9)
    for found in (probabilities(row, sampling), probabilities(row.expand(2, 3, -1), sampling)[1, 2]):
        assert torch.equal(found > 0, wanted > 0)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    single = probabilities(row.float(), sampling)
    assert single.dtype == torch.float32
    torch.testing.assert_close(float(single.sum(dtype=torch.float64)), 1.0, rtol=0, atol=1e-5)


def test_half_precision_logits_give_float32_probabilities() -> None:
    assert probabilities(torch.zeros(3, dtype=torch.float16), Sampling(1.0)).dtype == torch.float32


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_make_no_distribution_draw_no_token(bad: float) -> None:
    logits = torch.zeros(2, 3, 5)
    logits[1, 2, 3] = bad
    broken = torch.zeros(2, 3, dtype=torch.bool)
    broken[1, 2] = True
    for sampling in (Sampling(), Sampling(1.0), Sampling(0.5, top_k=2, top_p=0.9, min_p=0.1)):
        probs = probabilities(logits, sampling)
        assert probs.isnan().all(-1).equal(broken)
        assert (draw(probs, torch.rand(2, 3)) < 0).equal(broken)
    assert (likeliest(logits) < 0).equal(broken)
    assert draw(torch.zeros(5), torch.tensor(0.5)) == -1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": 1e-38}, "temperature is 1e-38"),
        ({"top_k": -2}, "top_k is -2"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": 1.1}, "min_p is 1.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(InvalidSetting, match=named):
        Sampling(**settings)  # type: ignore[arg-type]


@given(
    st.lists(st.sampled_from([0.0, 0.0, 1.0, 1e-9, 3.0]), min_size=1, max_size=9).filter(any), st.integers(0, 2**53 - 1)
)
def test_a_draw_inverts_the_distribution_function(weights: list[float], numerator: int) -> None:
    probs = torch.tensor(weights, dtype=torch.float64)
    uniform = numerator * 2.0**-53
    token = int(draw(probs[None], torch.tensor([uniform], dtype=torch.float64)))
    assert weights[token] > 0
    below = float(probs[:token].sum())
    assert below <= uniform * float(probs.sum()) * (1 + 1e-12)
    assert uniform * float(probs.sum()) <= (below + weights[token]) * (1 + 1e-12)


def test_processors_see_each_position_s_own_prefix() -> None:
    seen: list[list[int]] = []

    def note(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids[0].tolist())
        return scores + len(ids[0])

    wanted = torch.ones(2, 3, dtype=torch.bool)
    prefixes = [torch.tensor([7, 8, 1, 2]), torch.tensor([9, 3, 4])]
    logits = process(torch.zeros(2, 3, 4), prefixes, wanted, (note,))
    assert seen == [[7, 8], [7, 8, 1], [7, 8, 1, 2], [9], [9, 3], [9, 3, 4]]
    assert logits[:, :, 0].tolist() == [[2, 3, 4], [1, 2, 3]]


def test_noise_is_uniform_and_its_neighbours_are_independent() -> None:
    """Null: 2^18 numbers are uniform, and so are pairs of neighbours in row, position, index, use and seed, and those
    that become exponentials. Chi-square on counts of 64 cells (8 x 8 for pairs); seven tests at 1e-8 each, seeds
    fixed. Detects, with power 0.99, cells that are off by 2.3 % of their mass (noncentrality 141)."""
    rows = torch.arange(512)
    positions = torch.arange(128)
    first = Noise(0)

    def block(noise: Noise, row: int = 0, position: int = 0, use: int = 0) -> torch.Tensor:
        grid = torch.cartesian_prod(rows + row, positions + position)
        return noise.uniforms(grid[:, 0].contiguous(), grid[:, 1].contiguous(), 4, use)

    base = block(first)
    counts = torch.bincount((base.flatten() * 64).long(), minlength=64).numpy()
    assert stats.chisquare(counts).pvalue > 1e-8
    others = [block(first, row=1), block(first, position=1), base.roll(1, 1), block(first, use=1), block(Noise(1))]
    grid = torch.cartesian_prod(rows, positions)
    exponentials = first.exponentials(grid[:, 0].contiguous(), grid[:, 1:].contiguous(), 4)[:, 0]
    assert float(exponentials.min()) > 0
    for other in [*others, (-exponentials).exp()]:
        pairs = (base.flatten() * 8).long() * 8 + (other.flatten() * 8).long()
        assert stats.chisquare(torch.bincount(pairs, minlength=64).numpy()).pvalue > 1e-8


def test_exponentials_in_columns_are_independent() -> None:
    """Null: of a vocabulary in columns, exp(-exponential) is uniform, and independent between tokens of one column,
    neighbouring tokens, and neighbouring positions. Chi-square on 2^21 numbers, 64 cells (8 x 8 for pairs); five tests
    at 1e-8 each, seed fixed. Detects with power 0.99 cells that are off by 0.8 % of their mass (noncentrality 141)."""
    vocab, places = LARGE + 5, 512
    width = -(-vocab // COLUMN)
    noise = Noise(0).exponentials(torch.arange(2), torch.arange(places // 2).expand(2, -1), vocab)
    assert float(noise.min()) > 0
    cells = ((-noise).exp() * 8).long()
    counts = torch.bincount(((-noise).exp() * 64).long().flatten(), minlength=64).numpy()
    assert stats.chisquare(counts).pvalue > 1e-8
    for one, other in (
        (cells[..., :-width], cells[..., width:]),
        (cells[..., : -5 * width], cells[..., 5 * width :]),
        (cells[..., :-1], cells[..., 1:]),
        (cells[:, :-1], cells[:, 1:]),
    ):
        pairs = torch.bincount((one * 8 + other).flatten(), minlength=64).numpy()
        assert stats.chisquare(pairs).pvalue > 1e-8


@pytest.mark.parametrize("vocab", [LARGE, LARGE + 3, 12_345])
@pytest.mark.parametrize("spread", [0.0, 2.0, 8.0])
def test_a_race_makes_no_more_noise_than_decides_it(vocab: int, spread: float) -> None:
    """What is drawn without most of the exponentials is what all of them draw."""
    positions = torch.arange(12).reshape(3, 4)
    exponentials = Exponentials(Noise(7), torch.arange(3)[:, None].expand_as(positions), positions, vocab)
    whole = exponentials.all()
    probs = (spread * torch.randn(3, 4, vocab, generator=torch.Generator().manual_seed(vocab))).softmax(-1)
    probs[0, 1:, : vocab - 70] = 0.0
    probs[1, :, : vocab - 1] *= 0.5
    probs[1, :, vocab - 1] = 0.5
    probs[2, 3] = math.nan
    wanted = race(probs, whole)
    assert wanted[2, 3] == -1
    assert torch.equal(race(probs, exponentials), wanted)
    assert torch.equal(race(probs[:, 2], exponentials[:, 2]), wanted[:, 2])
    assert torch.equal(race(probs[:2, 1:3], exponentials[:2, 1:3]), wanted[:2, 1:3])


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_a_device_hashes_the_very_words(words: list[int]) -> None:
    """torch's int64 has the bits that numpy's uint64 has, in every step but the logarithm."""
    numbers = np.array(words, dtype=np.uint64)
    hashed = noises._mix_on_device(noises._as_int64(numbers, torch.device("cpu")))
    assert hashed.numpy().view(np.uint64).tolist() == noises._mix(numbers).tolist()
    shifted = noises._logically_shifted(hashed, 12).numpy().view(np.uint64)
    assert shifted.tolist() == (noises._mix(numbers) >> np.uint64(12)).tolist()


@pytest.mark.parametrize("vocab", [2, 31, LARGE, LARGE + 1, 12_345])
def test_exponentials_made_on_a_device_are_the_host_s(vocab: int) -> None:
    """But for the logarithm's last bits: so are their races, and what is made for some places alone."""
    positions = torch.tensor([[3, 4, 1 << 40], [0, 9, 7]])
    exponentials = Exponentials(Noise(5), torch.arange(2)[:, None].expand_as(positions), positions, vocab)
    made, whole = exponentials.made_on(torch.device("cpu")), exponentials.all()
    assert made.shape == whole.shape
    torch.testing.assert_close(made, whole, rtol=1e-14, atol=0)
    assert torch.equal(exponentials[1, 1:].made_on(torch.device("cpu")), made[1, 1:])
    probs = (3 * torch.randn(2, 3, vocab, generator=torch.Generator().manual_seed(vocab))).softmax(-1)
    assert torch.equal(race(probs, made), race(probs, whole))


@given(st.integers(0, 2**32), st.sampled_from([LARGE, LARGE + 1, 9_999]), st.integers(0, 2**53 - 1))
def test_a_draw_by_blocks_inverts_the_distribution_function(seed: int, vocab: int, numerator: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = (6 * torch.randn(2, vocab, dtype=torch.float64, generator=generator)).softmax(-1)
    probs[1, torch.rand(vocab, generator=generator) < 0.999] = 0.0
    uniforms = torch.tensor([numerator * 2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    for row, uniform, token in zip(probs, uniforms, draw(probs, uniforms), strict=True):
        point = float(uniform * row.sum())
        assert float(row[token]) > 0 or float(row.sum()) == 0
        assert float(row[:token].sum()) <= point * (1 + 1e-12)
        assert point <= float(row[: int(token) + 1].sum()) * (1 + 1e-12)
    assert draw(torch.zeros(1, vocab), torch.tensor([0.5])).tolist() == [-1]


def test_noise_depends_on_its_key_alone() -> None:
    noise = Noise(-3)
    both = noise.uniforms(torch.tensor([4, 9]), torch.tensor([100, 7]), 5, Noise.JUDGE)
    alone = Noise(-3).uniforms(torch.tensor([9]), torch.tensor([7]), 3, Noise.JUDGE)
    assert torch.equal(both[1, :3], alone[0])
    assert (
        len({float(x) for use in range(3) for x in noise.uniforms(torch.tensor([0]), torch.tensor([0]), 50, use)[0]})
        == 150
    )
