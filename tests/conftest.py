"""What every test shares: determinism, no network, and one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

from sybil.drafting import auto, costs

settings.register_profile(
    "sybil", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sybil")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it gives


@pytest.fixture(autouse=True)
def _costs_by_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """gamma="auto" reckons by the models' sizes and not by the clock, so a test decodes the same way each time."""
    if request.module.__name__ != "test_window":  # test_window tests the clock
        monkeypatch.setattr(auto, "ClockedCosts", costs.SizedCosts)


@pytest.fixture(autouse=True)
def _dtype_by_default() -> Iterator[None]:
    """Restore torch's default dtype after each test, so that no test changes it for later ones."""
    yield
    left, _ = torch.get_default_dtype(), torch.set_default_dtype(torch.float32)
    assert left == torch.float32
