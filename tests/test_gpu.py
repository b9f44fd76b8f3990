"""`python -m benchmarks.gpu`, on a CPU and tiny; and its checks on a GPU, where there is one (marker cuda)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, work
from benchmarks.gpu.rows import FULL, PARTS, TINY, GpuPlan, GpuRow, table
from sybil import noise
from sybil.models.operators import blocks, cache, static

CPU = torch.device("cpu")
STUB = """
import json, os, sys, time
asked = json.loads(sys.stdin.readline())
def tell(**line):
    print(json.dumps(line), flush=True)
def row(part, found):
    return dict(part=part, what="said", found=found, ok=True, numbers={}, error="")
for part in asked["parts"]:
    if part == "memory":  # which this process can't begin
        os._exit(5)
    tell(begins=part)
    tell(row=row(part, asked["device"]))
    if part == "checks":
        os._exit(3)
    if part == "texts":
        time.sleep(600)
    if part == "noise":  # half a line
        print('{"row": ', end="", flush=True)
        os._exit(0)
    tell(done=part, seconds=0.1)
    if part == "graphs":  # a GPU that answers no more
        os._exit(0)
"""


@pytest.mark.parametrize(
    ("device", "plan"), [("cpu", TINY), pytest.param("cuda", FULL, marks=pytest.mark.cuda)], ids=["cpu", "cuda"]
)
@pytest.mark.parametrize("check", checks.CHECKS)
def test_each_check_finds_nothing_wrong(check: str, device: str, plan: GpuPlan) -> None:
    found = checks.CHECKS[check](plan, torch.device(device))
    assert found
    assert device == "cpu" or found == "needs two GPUs" or not found.startswith("needs")


def bucket_too_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(static, "bucket", lambda keys: keys - 1)


def wrong_mask(patch: pytest.MonkeyPatch) -> None:
    original = cache._mask
    patch.setattr(cache, "_mask", lambda positions, end, window: original(positions + 1, end, window))


def arithmetic_shifts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(noise, "_logically_shifted", lambda x, by: x >> by)


def rounded_head(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(blocks, "is_half", lambda weight: False)


def no_noise_of_the_row(patch: pytest.MonkeyPatch) -> None:
    original = noise.Noise.keys
    calls: list[int] = []

    def keys(self: Any, rows: Any, positions: Any) -> Any:
        calls.append(1)
        return original(self, rows, positions + len(calls))

    patch.setattr(noise.Noise, "keys", keys)


def memory_without_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checks.Transformer, "new_cache", lambda self, batch, capacity: None)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (bucket_too_small, "fixed shapes say what plain ones do"),
        (wrong_mask, "greedy texts are plain ones and transformers'"),
        (no_noise_of_the_row, "a seed's tokens with any draft"),
        (arithmetic_shifts, "noise is the host's"),
        (rounded_head, "logits are float32"),
        (memory_without_end, "out of memory is one line"),
    ],
)
def test_a_check_sees_a_planted_fault(fault: Any, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    (row,) = work.run("checks", TINY, "cpu", {"checks": checks._as_part(checks.CHECKS[check])})
    assert row.ok is False, row


@pytest.mark.parametrize("part", [part for part in PARTS if part != "checks"])
def test_each_part_has_rows_on_a_cpu(part: str) -> None:
    rows = list(work.run(part, TINY, "cpu"))
    assert rows
    for row in rows:
        assert not row.is_failure, row
        assert row.part == part
        assert row.found
        assert GpuRow(**json.loads(json.dumps(asdict(row)))) == row


def test_the_checks_are_a_part() -> None:
    assert {row.what for row in work.run("checks", GpuPlan(families=()), "cpu")} == set(checks.CHECKS)


def test_a_part_that_raises_is_a_row_and_the_rest_goes_on() -> None:
    told: list[dict[str, Any]] = []

    def raises(plan: GpuPlan, device: Any) -> Iterator[GpuRow]:
        yield GpuRow("device", "first", "found")
        raise RuntimeError("CUDA error: an illegal access\nand much more")

    rows = list(work.run("device", TINY, "cpu", {"device": raises}))
    assert rows[0].found == "found"
    assert rows[1].error == "RuntimeError: CUDA error: an illegal access"
    assert rows[1].is_failure
    work.serve(["noise"], TINY, "cpu", told.append)
    assert [next(iter(line)) for line in told] == ["begins", "row", "done"]


def test_a_gpu_that_answers_no_more_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronise() -> None:
        raise RuntimeError("CUDA error: an illegal access")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronise)
    monkeypatch.setattr(work, "run", lambda *_: iter(()))
    told: list[dict[str, Any]] = []
    work.serve(["device", "noise"], TINY, "cuda", told.append)
    assert [line.get("begins") for line in told if "begins" in line] == ["device"]


def test_processes_that_end_or_hang_cost_their_part_alone() -> None:
    parts = ["device", "checks", "graphs", "noise", "texts", "memory", "self"]
    plan = GpuPlan(seconds=5.0)
    found = list(command.rows(parts, plan, "cpu", worker=(sys.executable, "-c", STUB)))
    said = [(row.part, row.found) for row in found if not row.error]
    assert said == [(part, "cpu") for part in parts if part != "memory"]
    errors = {row.part: row.error for row in found if row.error}
    assert set(errors) == {"checks", "noise", "texts", "memory"}
    assert errors["checks"] == "its process ended with 3"
    assert errors["texts"].startswith("it took more than ")
    assert errors["memory"] == "its process ended with 5"


def test_parts_without_time_are_said_to_be_left_out() -> None:
    found = list(command.rows(["device", "noise"], TINY, "cpu", seconds=0.0))
    assert [(row.part, row.error) for row in found] == [("device", "0 s were over"), ("noise", "0 s were over")]


def test_the_command_ends_with_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, as people run it."""
    out = tmp_path / "gpu.json"
    assert command.main(["--device", "cpu", "--tiny", "--parts", "device,noise", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert [row["part"] for row in record["rows"]] == ["device", "noise"]
    assert record["rows"][0]["numbers"]["torch"] == torch.__version__
    assert math.isfinite(record["seconds"])
    printed = capsys.readouterr().out
    assert "exponentials of 5000 tokens" in printed.split("\n\n")[1]
    assert str(out) in printed


def test_failures_are_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = ((GpuRow("device", "a"), 0), (GpuRow("device", "a", ok=False), 1), (GpuRow("device", "a", error="c"), 1))
    for row, status in cases:
        monkeypatch.setattr(command, "rows", lambda *_, row=row: iter([row]))
        assert command.main(["--out", str(tmp_path / "gpu.json")]) == status
    with pytest.raises(SystemExit) as end:
        command.main(["--parts", "device,nothing"])
    assert end.value.code == 2


def test_the_table_lines_up() -> None:
    rows = [GpuRow("device", "a", "found", True), GpuRow("longer part", "what it is", error="KeyError: 3")]
    assert table([*rows, GpuRow("x", "y", "z", False)]).splitlines() == [
        "part         what        found",
        "device       a           found        ok",
        "longer part  what it is  KeyError: 3  error",
        "x            y           z            NOT OK",
    ]


def test_the_full_plan_is_the_published_one() -> None:
    assert FULL.workload == "gpt2:medium"
    assert set(FULL.families) == set(checks.RANDOM_PAIRS)
    tensor: Tensor = torch.ones(1)
    assert checks._tolerance(torch.float16, tensor) > checks._tolerance(torch.float32, tensor)
