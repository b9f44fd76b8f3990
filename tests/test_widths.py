"""`python -m benchmarks.engine widths`: what it compares, that it sees a fault, that it goes on where it was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_workload import tiny

from benchmarks.engine import widths
from sybil.decoding import Decoder
from sybil.measuring.prompts import Prompt


@pytest.fixture
def decoder() -> Decoder:
    """A random model; its prompts are their own ids."""
    return Decoder(tiny("llama").build(torch.float32, torch.device("cpu")))


PROMPTS = [Prompt(f"p{index}", "own", "x" * (index + 4)) for index in range(5)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widths, "NEW_TOKENS", 7)
    monkeypatch.setattr(widths.texts, "encode", lambda prompt, decoder: list(range(1, len(prompt.text))))


def followed(decoder: Decoder, path: Path, tokens: int = 7 * 90) -> list[widths.Verified]:
    return list(widths.run(decoder, PROMPTS, tokens, path, lambda count, what: None))


def test_every_width_and_batch_is_compared_and_no_bit_differs(decoder: Decoder, tmp_path: Path) -> None:
    rows = followed(decoder, tmp_path / "rows.jsonl")
    assert {(row.width, row.batch) for row in rows} == {(a, b) for a in range(1, 10) for b in range(1, 5)}
    assert all(row.compared == 7 * row.batch for row in rows)
    assert sum(row.differing + row.leaving for row in rows) == 0


def test_a_forward_that_depends_on_its_neighbours_is_seen(decoder: Decoder, tmp_path: Path) -> None:
    forward = decoder.target.forward

    def wrong(tokens: Any, cache: Any) -> Any:
        logits = forward(tokens, cache)
        return logits if tokens.numel() == 1 else torch.nextafter(logits, logits + 1)

    decoder.target.forward = wrong  # type: ignore[method-assign]
    rows = followed(decoder, tmp_path / "rows.jsonl")
    assert all(row.differing == row.compared for row in rows if row.width * row.batch > 1)


def test_a_run_that_was_cut_off_goes_on(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    whole = followed(decoder, tmp_path / "whole.jsonl")
    assert followed(decoder, path, tokens=7 * 20) == whole[:8]
    assert followed(decoder, path) == whole
    monkeypatch.setattr(widths, "verify", None)
    monkeypatch.setattr(widths, "plain", None)
    assert followed(decoder, path) == whole  # nothing is done again
