"""`sybil check`: what it says of memory, of drafts and of what they promise, before anything is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ggufs
import pytest
import torch
from configurations import example, random_model
from shapes import compiled
from tiny import gpt2, letters, llama, perturbed, save, sybil
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from sybil import allocation
from sybil.checking import promise
from sybil.checking.check import PairFacts, check
from sybil.checking.memory import memory
from sybil.drafting.costs import STEP, VERIFIED
from sybil.errors import InvalidSetting, VocabularyMismatch
from sybil.models import building


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(gpt2(width=64, layers=4), root / "target")
    save(perturbed(gpt2(), 0.05), root / "draft")
    save(gpt2(vocab=40), root / "padded")
    save(gpt2(vocab=24), root / "other", letters(24))
    save(llama(), root / "llama")
    neo = GPTNeoConfig(
        vocab_size=31, hidden_size=8, num_layers=2, num_heads=2, attention_types=[[["global"], 2]],
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    save(GPTNeoForCausalLM(neo), root / "neo")
    model = random_model(example("llama", hidden_size=64, intermediate_size=64), torch.float32)
    ggufs.write(model, root / "model.gguf", storage="q4_0")
    return root


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be loaded."""

    def load(*_: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(building, "build", load)


def free(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(allocation, "available", lambda: size)


@pytest.mark.usefixtures("unloaded")
def test_it_is_said_before_anything_is_loaded(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--draft", models / "draft", "--device", "cpu", "--no-run")
    assert sybil("check", models / "target", *arguments) == 0
    out = capsys.readouterr().out
    assert f"target {models / 'target'}: gpt2, 0M parameters; float32" in out
    assert f"draft {models / 'draft'}: gpt2" in out
    assert "the weights of both are on this machine" in out
    assert "tokens: the draft's are the target's\n" in out
    assert "it fits" in out
    for name in ("target's weights", "draft's weights", "keys and values", "working memory", "free", "| the draft"):
        assert name in out
    drafters = re.findall(r"^\| (the draft|self:\d|lookup) ", out, re.MULTILINE)
    assert drafters == ["the draft", "self:6", "self:8", "lookup"]
    assert "tried" not in out


def test_ten_tokens_are_tried(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("check", models / "target", "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert re.search(r"tried: float32 on cpu, loaded in [\d.]+ s, 10 tokens in [\d.]+ s: 'The quick brown fox' '", out)


@compiled
def test_everything_as_json(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("check", models / "model.gguf", "--draft", "hybrid:lookup,self", "--device", "cpu", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["target"]["own_forward"]
    assert record["target"]["weights"]["q4_0"] > 0
    assert record["here"]
    assert record["fits"]
    assert record["memory"]["peak"] == max(record["memory"]["decoding"], record["memory"]["loading"])
    assert record["memory"]["decoding"] == sum(record["memory"]["parts"].values())
    assert [each["name"] for each in record["drafters"]] == ["hybrid:lookup,self", "self:4", "self:8", "lookup"]
    assert record["drafters"][0]["promise"] is None
    assert [each["acceptance"] for each in record["drafters"][1]["promise"]["speeds"]] == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert record["tried"]["kept"] == "the file's own blocks"
    assert record["tried"]["tokens"] == 10


def test_a_registered_pair_brings_its_draft(capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("check", "stdlib", "--no-run", "--device", "cpu", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["draft"]["name"] == "embedded:stdlib/draft"
    assert record["tokens"] == "same"
    assert record["target"]["parameters"] == 11_338_880


@pytest.mark.parametrize(
    ("draft", "tokens"), [("draft", "same"), ("padded", "padded"), ("other", "strings"), ("self", None)]
)
@pytest.mark.usefixtures("unloaded")
def test_how_two_tokenizers_stand(draft: str, tokens: str | None, models: Path) -> None:
    name = draft if draft == "self" else str(models / draft)
    found = check(str(models / "target"), name, device="cpu")
    assert found.tokens == tokens
    assert (found.share is None) == (tokens != "strings")


def test_tokenizers_that_share_nothing_are_one_line(models: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders
    from tokenizers import models as kinds

    odd = Tokenizer(kinds.BPE({"\u2603": 0, "\u2604": 1}, []))
    odd.decoder = decoders.Fuse()
    save(gpt2(), tmp_path / "odd", odd)
    with pytest.raises(VocabularyMismatch, match="share none that an English text is made of"):
        check(str(models / "target"), str(tmp_path / "odd"), device="cpu")


@pytest.mark.usefixtures("unloaded")
def test_what_does_not_fit_comes_with_what_would(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sybil.checking.memory.LIBRARIES", 0)
    whole = memory(check(str(models / "llama"), "self:8", device="cpu").setup).peak
    free(monkeypatch, whole - 1)
    assert sybil("check", models / "llama", "--draft", "self:8", "--device", "cpu") == 0  # and nothing is tried
    out = capsys.readouterr().out
    assert "it doesn't fit: 0 MB are needed" in out
    assert "would fit: draft lookup" in out
    assert "would fit: no draft" in out
    assert "it fits" not in out
    free(monkeypatch, 10)
    assert sybil("check", models / "llama", "--device", "cpu") == 0
    assert "nothing of it would fit: choose a smaller model, or fewer rows" in capsys.readouterr().out
    free(monkeypatch, None)
    assert check(str(models / "llama"), device="cpu").fits is None


@compiled
def test_alternatives_fit(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one that is offered takes what it says, and less than what is free; those that take more are left out."""
    monkeypatch.setattr("sybil.checking.alternatives.SHORTEST", 8)
    monkeypatch.setattr("sybil.checking.memory.LIBRARIES", 0)
    free(monkeypatch, None)
    whole = check(str(models / "target"), str(models / "draft"), device="cpu", batch=64).memory.peak
    peaks: set[int] = set()
    for share in range(5, 105, 12):
        size = whole * share // 100
        free(monkeypatch, size)
        found = check(str(models / "target"), str(models / "draft"), device="cpu", batch=64)
        assert (found.alternatives == ()) or not found.fits
        for each in found.alternatives:
            assert each.memory.peak <= size < found.memory.peak
            peaks.add(each.memory.peak)
    assert len(peaks) > 3


def test_more_rows_and_longer_ones_take_more(models: Path) -> None:
    def parts(**settings: Any) -> dict[str, int]:
        return dict(check(str(models / "target"), device="cpu", **settings).memory.parts)

    one, rows, short = parts(), parts(batch=4), parts(context=16)
    assert rows["keys and values"] == 4 * one["keys and values"]
    assert short["keys and values"] < one["keys and values"]
    assert rows["target's weights"] == short["target's weights"] == one["target's weights"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": ""}, "target is ''"),
        ({"draft": ""}, "draft is ''"),
        ({"batch": 0}, "batch is 0: use an integer from 1 to 65536"),
        ({"context": 1}, "context is 1: use an integer from 2 to 64, what the target takes"),
        ({"context": 65}, "context is 65: use an integer from 2 to 64, what the target takes"),
        ({"draft": "self:7"}, "4, 5, 6 or 8 bits"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"draft": "lookup", "draft_dtype": "int8"}, "no second model"),
    ],
)
def test_senseless_settings_are_one_line(settings: dict[str, Any], said: str, models: Path) -> None:
    with pytest.raises(InvalidSetting, match=re.escape(said)):
        check(**{"target": str(models / "target"), "device": "cpu", **settings})


def test_a_model_of_transformers_forward(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("check", models / "neo", "--device", "cpu", "--no-run") == 0
    out = capsys.readouterr().out
    assert "by transformers' forward" in out
    assert "self:" not in out
    with pytest.raises(InvalidSetting, match="can't copy"):
        check(str(models / "neo"), "self", device="cpu")


def test_promises_are_the_formula_of_the_design() -> None:
    found = promise.promise(1000, 250, VERIFIED)
    assert found.cost == round(STEP + 0.25, 2)
    for speed in found.speeds:
        a, best = speed.acceptance, 0.0
        for gamma in range(17):
            emitted = gamma + 1 if a == 1 else (1 - a ** (gamma + 1)) / (1 - a)
            best = max(best, emitted / (gamma * found.cost + 1 + VERIFIED * gamma))
        assert speed.times == pytest.approx(best)
    times = [speed.times for speed in found.speeds]
    assert times == sorted(times)


def test_a_draft_that_costs_more_than_it_brings_is_left_out() -> None:
    found = promise.promise(1000, 1000, promise.IN_BLOCKS, [0.1, 0.5])
    assert [(speed.times, speed.gamma) for speed in found.speeds] == [(1.0, 0), (1.0, 0)]


def test_a_planted_fault_in_the_costs_is_seen() -> None:
    right, wrong = promise.promise(1000, 100, VERIFIED), promise.promise(1000, 500, VERIFIED)
    assert all(one.times > other.times for one, other in zip(right.speeds, wrong.speeds, strict=True))


def test_what_is_read_a_token(models: Path) -> None:
    """A copy in 8 bits reads about a quarter of float32's bytes, keys and values being the same."""
    found: PairFacts = check(str(models / "target"), "self:8", device="cpu")
    (copy,) = (each for each in found.candidates if each.name == "self:8")
    assert copy.promise is not None
    assert 0.25 < copy.promise.cost < 0.5


def test_eighty_columns_are_enough(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of a terminal's tables is wider."""
    import io

    from rich.console import Console

    from sybil.cli import checked

    console = Console(file=io.StringIO(), width=80, force_terminal=True, markup=False, color_system=None)
    free(monkeypatch, 10**12)
    found = check("stdlib", device="cpu")
    checked.print_found(console, found)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"the draft +\d+ +0\.\d\d( +\d\.\d\d/\d+){5}", out)
