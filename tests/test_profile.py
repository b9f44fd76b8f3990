"""`sybil profile` and the engine's bars, on pairs made here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shapes import SHAPES, random_weights
from test_workload import TINY, tiny
from tiny import gpt2, perturbed, save, sybil
from torch import Tensor

from benchmarks.engine import bars
from sybil.drafting import DraftModel
from sybil.measuring import profile, workload
from sybil.measuring.profile import DRAFT_STEP, PARTS, VERIFIED, Profile, bytes_read, summarise, verification
from sybil.measuring.timing import STREAM, STREAM_BYTES, Interval, interleave
from sybil.measuring.workload import RandomModel, RandomPair
from sybil.models.operators.transformer import Transformer
from sybil.models.storage import Rounding

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(gpt2(context=128), root / "target")
    save(perturbed(gpt2(context=128), 0.05), root / "draft")
    return root


@pytest.fixture
def small_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every published shape in miniature."""
    for name, shape in workload.SHAPES.items():
        kind = str(shape.config["model_type"])
        monkeypatch.setitem(workload.SHAPES, name, RandomModel(name, {"model_type": kind, **TINY[kind]}))  # type: ignore[arg-type]
    for name, pair in workload.WORKLOADS.items():
        small = RandomPair(workload.SHAPES[pair.target.name], workload.SHAPES[pair.draft.name])
        monkeypatch.setitem(workload.WORKLOADS, name, small)  # type: ignore[arg-type]


def test_profile_prints_tables_and_leaves_numbers_and_a_chart(
    folders: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models = ("--target", folders / "target", "--draft", folders / "draft", "--dtype", "float64")
    assert sybil("profile", *models, "--passes", 3, "--gamma", 3, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    for name in (DRAFT_STEP, verification(17), "streaming from memory", *PARTS, "neither model's forward", "peak"):
        assert f"| {name}" in out
    assert "replay" not in out
    (path,) = (tmp_path / "out").glob("*[0-9].json")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(path.read_text())
    assert len(record["samples"]) == record["passes"] == 3
    assert set(record["samples"][0]) == {STREAM, DRAFT_STEP, *map(verification, VERIFIED), *PARTS}
    assert (record["dtype"], record["draft_dtype"], record["gamma"]) == ("float64", "float64", 3)
    assert not record["replay"]
    assert all(name in record for name in ("processor", "threads", "commit", "date"))
    assert record["memory"]["target's weights"] == record["memory"]["draft's weights"] > 0
    assert record["memory"]["target's cache"] > 0


def test_a_target_alone_has_a_profile(folders: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert sybil("profile", "--target", folders / "target", "--passes", 2, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "target float32, no draft, greedy, medians of 2 passes" in out
    assert DRAFT_STEP not in out
    assert "draft's" not in out
    (path,) = tmp_path.glob("*[0-9].json")
    record = json.loads(path.read_text())
    assert record["draft_dtype"] is None
    assert all(sample["draft forwards"] == 0 < sample["target forward"] for sample in record["samples"])


def test_a_sampled_round_has_a_profile(folders: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = ("--target", folders / "target", "--draft", folders / "draft", "--passes", 2, "--out", tmp_path)
    assert sybil("profile", *models, "--temperature", 0.8, "--top-p", 0.9, "--rule", "block") == 0
    assert "temperature 0.8, top-p 0.9, rule block, gamma 4, medians of 2 passes" in capsys.readouterr().out
    (path,) = tmp_path.glob("*[0-9].json")
    record = json.loads(path.read_text())
    assert (record["temperature"], record["top_p"], record["rule"]) == (0.8, 0.9, "block")
    assert all(sample["sampling and rule"] > 0 for sample in record["samples"])


@pytest.mark.usefixtures("small_workloads")
def test_a_workloads_profile_says_that_it_is_a_replay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("profile", "--workload", "opt:1.3b", "--passes", 2, "--dtype", "bfloat16", "--out", tmp_path)
    assert sybil(*arguments, "--acceptance", 0.5) == 0
    assert "a replay in which 50% of what is proposed is accepted" in capsys.readouterr().out
    (path,) = tmp_path.glob("*[0-9].json")
    record = json.loads(path.read_text())
    assert record["replay"]
    assert (record["dtype"], record["draft_dtype"]) == ("bfloat16", "int8")


@pytest.mark.usefixtures("small_workloads")
def test_ctrl_c_keeps_the_passes_measured_so_far(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Profile.passes

    def cut_off(self: Profile, count: int) -> Iterator[dict[str, float]]:
        yield from passes(self, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Profile, "passes", cut_off)
    assert sybil("profile", "--workload", "gpt2:xl", "--out", tmp_path) == 130
    out = capsys.readouterr().out
    assert "interrupted after 2 of 30 passes" in out
    assert f"| {DRAFT_STEP}" in out
    (path,) = tmp_path.glob("*[0-9].json")
    assert json.loads(path.read_text())["passes"] == 2


def test_profile_refuses_before_it_measures(folders: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        assert sybil("profile", "--out", tmp_path / "out", *arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("sybil: ")
        assert captured.err.count("\n") == 1
        return captured.err

    assert "gamma is 0" in refused("--gamma", 0)
    assert "passes is 0" in refused("--passes", 0)
    assert "acceptance is 2.0" in refused("--acceptance", 2)
    assert "dtype is 'float8'" in refused("--dtype", "float8")
    assert "draft_dtype is 'int3'" in refused("--draft-dtype", "int3")
    assert "no workload 'gpt3'" in refused("--workload", "gpt3")
    assert "replays a greedy text" in refused("--workload", "gpt2:xl", "--temperature", 0.8)
    assert "top_p is 0.9, and greedy" in refused("--top-p", 0.9)
    assert "no pair 'nonesuch'" in refused("--pair", "nonesuch")
    assert "drafts by no models" in refused("--target", folders / "target", "--draft", "lookup")
    assert "gamma is 40" in refused("--target", folders / "target", "--draft", folders / "draft", "--gamma", 40)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("--out", tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_a_report_is_what_the_samples_say() -> None:
    samples = [
        {STREAM: stream, DRAFT_STEP: 1.0, **dict(zip(PARTS, (2.0, 6.0, 1.0, 1.0), strict=True))}
        for stream in (9.0, 10.0, 70.0)
    ]
    report = summarise(samples, {DRAFT_STEP: STREAM_BYTES // 20})
    assert report.streaming == STREAM_BYTES / 0.010
    assert report.forwards[0].share == pytest.approx(0.5)
    assert (report.round_ms, report.overhead, report.passes) == (10.0, 0.2, 3)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_a_step_reads_is_every_product_once(kind: str) -> None:
    model = tiny(kind)
    matrices = [source.size for ours, source in model._sources().items() if len(source.size) == 2]
    products = sum(rows * columns for rows, columns in matrices)
    tables = 256 * 32 if kind == "gpt2" else 97 * 32  # positions; an embedding that isn't the head
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        each = 9 / 8 if dtype == torch.int8 else dtype.itemsize  # blocks of 32 have two numbers of float16 besides
        assert bytes_read(model.build(dtype, CPU)) == (products - tables) * each


def test_what_a_copy_reads_is_its_own_bits_and_its_own_layers() -> None:
    shape = replace(SHAPES["neox"], tied_head=False)
    weights = random_weights(shape)
    whole = Transformer(shape, weights)
    less = (bytes_read(whole) - bytes_read(whole.with_layers([0]))) / 4
    layer = sum(each.numel() for name, each in weights.items() if name.startswith("0.") and each.ndim == 2)
    assert less == (shape.layers - 1) * layer
    copy, finer = (SimpleNamespace(shape=shape, storage=Rounding(4, {"head": bits})) for bits in (4, 6))
    head = weights["head.weight"].numel()
    assert bytes_read(finer) - bytes_read(copy) == head * (28 - 20) // 32
    assert (profile._told(copy), profile._told(SimpleNamespace(storage=Rounding(8)))) == ("4 bits", "int8")


def test_a_round_is_split_without_rest() -> None:
    target, draft = tiny().build(torch.float32, CPU), tiny(name="draft").build(torch.int8, CPU)
    subject = profile.ProfiledDecoder("tiny", profile.Decoder(target, DraftModel(draft)), [torch.arange(9)])
    for sample in Profile(subject, 4).passes(2):
        assert all(sample[part] > 0 for part in PARTS)


def test_cases_take_turns_in_changing_order() -> None:
    ran: list[str] = []
    cases = {name: (lambda name=name: ran.append(name)) for name in "abcd"}  # type: ignore[misc]
    samples = list(interleave(cases, 20, CPU))
    assert [list(sample) for sample in samples] == [list("abcd")] * 20
    passes = ["".join(ran[start : start + 4]) for start in range(0, len(ran), 4)]
    assert len(passes) == 21  # one warms up
    assert all(sorted(each) == list("abcd") for each in passes)
    assert len(set(passes)) > 5


@pytest.mark.usefixtures("small_workloads")
def test_the_engines_bars_are_measured() -> None:
    ticks: list[str] = []
    flat = bars.flat(2, ticks.append)
    assert len(ticks) == 6
    assert [bar.at_most for bar in flat.bars].count(1.25) == 3
    step = bars.step(2, ticks.append)
    assert [(bar.at_most, bar.at_least) for bar in step.bars] == [(0.75, None), (0.35, None), (None, 0.7)]
    replay = bars.replay(bars.ReplayPlan(prompts=2, new_tokens=40, repetitions=2), ticks.append)
    assert len(ticks) == 6 + 2 + 4 * (3 + 2)
    by_name = {bar.what.split(" (")[0]: bar for bar in replay.bars}
    assert by_name["opt:1.3b replay: accepted / proposed, measured"].found.value == pytest.approx(0.75, abs=0.02)
    assert by_name["gpt2:medium replay: texts of sybil speculative that are the recorded ones"].met
    assert sum(bar.at_least in (2.2, 2.5, 4.0) for bar in replay.bars) == 3
    assert all(row["replay"] for row in replay.samples["gpt2:medium"]["rows"])
    json.dumps([result.record() for result in (flat, step, replay)])


def test_a_bar_is_met_or_missed() -> None:
    half = Interval(0.5, 0.4, 0.6)
    assert bars.Bar("", half, at_most=0.5).met
    assert not bars.Bar("", half, at_most=0.4).met
    assert bars.Bar("", half, at_least=0.5).met
    assert not bars.Bar("", half, at_least=0.6).met
    assert bars.Bar("", half).met is None


def test_bits_compares_and_a_planted_fault_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "RANDOM_PAIRS", {"gpt2": bars.RANDOM_PAIRS["gpt2"]})
    rows = list(bars.bits(400, (torch.float32,)))
    assert {row.pair for row in rows} == {"embedded", "random gpt2"}
    assert sum(row.compared for row in rows) >= 400
    assert sum(row.differing for row in rows) == 0
    build = RandomModel.build

    def faulty(self: RandomModel, *arguments: Any) -> Any:
        """Verifying shifts every logit but the last token's a little towards its neighbour's."""
        model = build(self, *arguments)
        forward = model.forward

        def wrong(tokens: Tensor, cache: Any) -> Tensor:
            logits = forward(tokens, cache)
            return logits if tokens.shape[1] == 1 else logits + 0.2 * logits.roll(1, -1)

        model.forward = wrong  # type: ignore[method-assign]
        return model

    monkeypatch.setattr(RandomModel, "build", faulty)
    assert sum(row.differing for row in bars.bits(400, (torch.float32,)) if row.pair == "random gpt2") > 0
