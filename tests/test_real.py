"""Real models from their GGUF files, for `nox -s real`: they say what transformers says with the same weights, and to
the bit what our own float32 forward says, whatever is verified beside a token, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from real import smollm2_file

import sybil
from benchmarks.engine import real, widths
from sybil.measuring import compare, prompts
from sybil.measuring.compare import Comparison
from sybil.measuring.contenders import AUTOREGRESSIVE, LLAMA_CPP
from sybil.measuring.task import Task
from sybil.transfer import integers

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
ENGLISH = prompts.load(shipped=sybil.PAIRS["smollm2"].prompts)


@pytest.fixture(scope="module")
def decoder() -> sybil.Decoder:
    return sybil.load(smollm2_file(), device="cpu")


def test_the_pair_is_the_packages_file_as_it_lies(decoder: sybil.Decoder) -> None:
    assert smollm2_file().stat().st_size == 98_362_432
    assert decoder.target.weight_bytes < 1.1 * smollm2_file().stat().st_size
    ours = sybil.load("smollm2", device="cpu")
    assert ours.draft is None
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = ours.generate(question, max_new_tokens=12).text
    assert "Paris" in answer
    assert decoder.generate(question, max_new_tokens=12).text == [answer]


def test_greedy_tokens_are_transformers_own_on_the_dequantised_weights() -> None:
    chosen = prompts.spread(ENGLISH, 20)
    task = Task(
        target=str(smollm2_file()), draft=None, max_new_tokens=64, gamma=4, dtype="blocks", device="cpu",
        prompts=compare.digest(chosen),
    )  # fmt: skip
    comparison = Comparison(task)
    comparison.contenders.pop(LLAMA_CPP, None)
    (found,) = compare.agreements(comparison, list(comparison.rows(chosen)), chosen)
    assert (found.contender, found.texts) == (AUTOREGRESSIVE, 20)
    for each in found.differences:
        sys.stdout.write(f"{each.prompt} leaves them at token {each.position}, {each.gap:.1e} apart\n")
    assert found.unexplained == 0


def test_logits_are_those_of_float32_to_the_bit(decoder: sybil.Decoder) -> None:
    wide = sybil.load(smollm2_file(), dtype="float32", device="cpu").target
    assert wide.weight_bytes > 3 * decoder.target.weight_bytes
    for prompt in prompts.spread(ENGLISH, 6):
        ids = prompts.encode(prompt, decoder)[:96]
        ours, theirs = (
            model.forward(integers([ids]), model.new_cache(1, len(ids))).clone() for model in (decoder.target, wide)
        )
        assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32)), prompt.id


def test_bits_do_not_depend_on_what_is_verified_beside_a_token(
    decoder: sybil.Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widths, "NEW_TOKENS", 16)
    short = [prompt for prompt in ENGLISH if prompt.domain == "conversation"][:6]
    rows = list(widths.run(decoder, short, 16 * 90, tmp_path / "rows.jsonl", lambda count, what: None))
    assert {(row.width, row.batch) for row in rows} == {(a, b) for a in widths.WIDTHS for b in widths.BATCHES}
    assert (sum(row.compared for row in rows), sum(row.differing for row in rows)) == (16 * 90, 0)


def test_loading_and_decoding_take_little_memory_above_the_imports() -> None:
    command = [sys.executable, "-c", real.START, str(smollm2_file()), "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert json.loads(done.stdout)["memory"] < real.MEMORY
