"""The tools that made the embedded pair: what is held out stays out, and training can be cut off."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import corpus as corpora
import make_prompts
import train_pair
from sybil.distilling.optimizer import MuonWithAdam, orthogonalise


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library with one training module, the held-out ones, tests, and a folder that is skipped."""
    names = [*corpora.HELD_OUT, "os.py", "encodings/cp437.py", "test/test_os.py", "test/test_heapq.py"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\nimport sys\n" * 30)
    return tmp_path


def test_held_out_modules_are_in_neither_training_nor_tokenizer(library: Path) -> None:
    corpus = corpora.read(library)
    assert [name for name, _ in corpus.training] == ["os.py"]
    assert {name for name, _ in corpus.held_out} == set(corpora.HELD_OUT)
    assert [name for name, _ in corpora.read(library, with_tests=True).training] == ["os.py", "test/test_os.py"]
    assert (
        corpora.train_tokenizer(corpus, 280).encode("heapq").ids
        != corpora.train_tokenizer(corpus, 280).encode("os").ids
    )
    (library / "heapq.py").unlink()
    with pytest.raises(SystemExit, match=r"heapq\.py"):
        corpora.read(library)


def test_prompts_are_cut_by_domain() -> None:
    source = (
        '''"""Module."""
NAME = 1
TABLE = {
    1: "a",
    2: "b",
    3: "c",
    4: "d",
    5: "e",
    6: "f",
    7: "g",
    8: "h",
}

class Heap:
    """'''
        + "A long description. " * 20
        + '''"""

    def push(self, item):
        """Add an item."""
        return item
'''
    )
    tree = ast.parse(source)
    assert [text for _, text in make_prompts.code(tree, source)] == ['def push(self, item):\n    """Add an item."""']
    ((_, table),) = make_prompts.structured(tree, source)
    assert table.startswith("TABLE = {")
    assert len(table.splitlines()) == make_prompts.LINES_OF_A_TABLE
    ((_, prose),) = make_prompts.prose(tree, source)
    assert prose.startswith('"""A long')
    assert not prose.endswith(" ")


def test_windows_cover_the_text_evenly() -> None:
    starts = [train_pair.window(np.arange(10_000), index, 100, seed=0)[0] for index in range(500)]
    counts, _ = np.histogram(starts, bins=20)
    assert counts.min() >= 22  # of 25
    assert counts.max() <= 28


def test_growing_keeps_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_pair, "TARGET_SHAPE", dict(n_layer=4, n_embd=16, n_head=2))
    shallow = train_pair.build(dict(n_layer=2, n_embd=16, n_head=2), seed=0).eval()
    deep = train_pair.grow(shallow, seed=1).eval()
    tokens = torch.arange(20)[None]
    assert torch.equal(deep(tokens).logits, shallow(tokens).logits)
    assert len(deep.transformer.h) == 4


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_orthogonalised_updates_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_training_learns_and_goes_on_after_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off in its third step, resumed from the checkpoint of the second, and better than chance at the end."""
    monkeypatch.setattr(train_pair, "TOKENS_A_MICROBATCH", 256)
    monkeypatch.setattr(train_pair, "SHORT", 32)
    monkeypatch.setattr(train_pair, "LONG", 64)
    monkeypatch.setattr(train_pair, "CHECKPOINT_SECONDS", -1)
    run = train_pair.TrainingRun(tmp_path, 0, torch.device("cpu"))
    model = train_pair.build(dict(n_layer=1, n_embd=16, n_head=2), seed=0)
    tokens = np.tile(np.arange(7), 400)
    steps: list[int] = []

    def text(step: int) -> np.ndarray:
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return tokens

    arguments: dict[str, Any] = dict(text=text, loss_of=train_pair.cross_entropy, evaluate=lambda: 0.0, size=512)
    with pytest.raises(KeyboardInterrupt):
        train_pair.train(run, "tiny", model, 1.0, **arguments)
    spent = torch.load(tmp_path / "tiny.checkpoint.pt")["spent"]
    again = train_pair.build(dict(n_layer=1, n_embd=16, n_head=2), seed=5)
    train_pair.train(run, "tiny", again, (spent + 2.0) / 60, **arguments)
    assert steps[:4] == [0, 1, 2, 2]
    state = torch.load(tmp_path / "tiny.pt")
    assert state["step"] == steps[-1] + 1
    assert state["seen"] == 512 * state["step"]
    assert state["history"][-1][1] < state["history"][0][1]
    assert not (tmp_path / "tiny.checkpoint.pt").exists()
    assert MuonWithAdam(again).matrices
