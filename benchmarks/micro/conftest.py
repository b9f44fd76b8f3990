"""What the micro-benchmarks share: the devices, the embedded pair, and one way to measure."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from sybil.decoding import Decoder
from sybil.loading import load
from sybil.measuring.machine import describe
from sybil.measuring.timing import synchronise

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
WARMUP_ROUNDS = 3
"""A CUDA graph is recorded after so many rounds."""


def _machine() -> tuple[dict[str, str | int], str]:
    """The machine that is measured on, and the commit's short hash, "" where there is none."""
    about = describe(torch.device(DEVICES[-1]))
    return about, str(about.pop("commit"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Name a stored run by its commit."""
    if config.option.benchmark_autosave:
        config.option.benchmark_autosave = _machine()[1] or "no-commit"


def pytest_report_header() -> str:
    """The line about the machine above the tables."""
    about, commit = _machine()
    return f"machine: {', '.join(f'{name} {value}' for name, value in about.items())}; commit {commit or 'none'}"


def pytest_benchmark_generate_machine_info() -> dict[str, str | int]:
    """The facts that must be equal for two runs to be compared; pytest-benchmark warns if they aren't."""
    return _machine()[0]


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def pair(device: torch.device) -> Decoder:
    """The embedded pair as `sybil generate` loads it."""
    return load("stdlib", device=device)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """Run everything in inference mode, as the decode loop does."""
    with torch.inference_mode():
        yield


class Measure:
    """Runs a case by pytest-benchmark, waits for the device, and converts the median time to tokens."""

    def __init__(self, benchmark: BenchmarkFixture, device: torch.device) -> None:
        self._benchmark, self._device = benchmark, device

    def __call__(self, case: Callable[[], Any], *, rounds: int, iterations: int = 1) -> Any:
        """Run the case, and return its last result. The time of a round is the mean over its iterations."""

        def run() -> Any:
            result = case()
            synchronise(self._device)
            return result

        return self._benchmark.pedantic(run, rounds=rounds, iterations=iterations, warmup_rounds=WARMUP_ROUNDS)

    def prepared(self, prepare: Callable[[], Any], case: Callable[[Any], Any], *, rounds: int) -> Any:
        """The same for a case whose argument is prepared anew before each round. Preparing isn't timed."""

        def setup() -> tuple[tuple[Any], dict[str, Any]]:
            made = prepare()
            synchronise(self._device)
            return (made,), {}

        def run(made: Any) -> Any:
            result = case(made)
            synchronise(self._device)
            return result

        return self._benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=WARMUP_ROUNDS)

    def tokens(self, count: int, what: str, acceptance: float | None = None) -> None:
        """Note how many tokens a call makes, what kind of token that is, and which share of the proposed tokens was
        kept."""
        if self._benchmark.stats is None:  # --benchmark-disable
            return
        seconds = self._benchmark.stats.stats.median
        self._benchmark.extra_info |= {"tokens": count, "token": what, "tokens_per_second": count / seconds}
        if acceptance is not None:
            self._benchmark.extra_info["acceptance"] = acceptance


@pytest.fixture
def measure(benchmark: BenchmarkFixture, device: torch.device) -> Measure:
    """What measures a case on the device."""
    return Measure(benchmark, device)


def spread_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded logits (..., vocab) with some tokens much likelier than others, on the CPU."""
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
