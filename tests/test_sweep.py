"""`sybil sweep`: a config's errors by line and key, a cell's hash, and rows that survive whatever ends a run."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeping import ENVIRONMENT, Desk, counts, made_up, planned
from tiny import sybil

from sybil.errors import InvalidSetting, PromptTooLong, ResultsMismatch, ResultsUnwritable
from sybil.loading import load
from sybil.measuring import energy, files
from sybil.measuring.prompts import encode
from sybil.pairs import pair
from sybil.sampling import GREEDY, Sampling
from sybil.sweeping import sweep as sweeping
from sybil.sweeping.cells import TargetBench
from sybil.sweeping.passes import folded
from sybil.sweeping.plan import plan, prompts_of, shipped
from sybil.sweeping.rows import JOURNAL, SweepFile, read
from sybil.sweeping.run import UNCACHED, UNCACHED_PLAIN, VERSION, RunConfig, RunResult
from sybil.sweeping.summary import over_baseline, table
from sybil.sweeping.sweep import failed, sweep
from sybil.sweeping.uncached import Uncached
from sybil.transfer import integers

ROOT = Path(__file__).resolve().parents[1]
TWO = "pairs: [stdlib]\ndrafters: [pair, lookup]\ngammas: [2, 4]\nprompts: 2\nnew_tokens: 8\nrepeats: 3\n"
"""Four cells and their baseline."""


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> type[Desk]:
    made = Desk.fresh()
    monkeypatch.setattr(sweeping, "TargetBench", made)
    return made


# --- a cell, and the plan


def test_the_hash_of_a_cell_stays() -> None:
    """It is how rows of earlier versions are known: a change makes every file of theirs start anew."""
    assert RunConfig(pair="stdlib").hash == "bb69a671096a"
    cell = RunConfig(
        pair="smollm2", drafter="hybrid:lookup,self", rule="block", gamma=4, temperature=0.6, top_k=50, top_p=0.9,
        domain="code", batch=2, seed=7, dtype="float32", device="cpu", prompts=8, new_tokens=64, repeats=2,
    )  # fmt: skip
    assert cell.hash == "aac742383288"
    again = RunConfig.model_validate_json(cell.model_dump_json())
    assert again == cell
    assert again.hash == cell.hash


def test_a_baseline_is_plain_decoding_of_the_same_texts() -> None:
    cell = RunConfig(pair="stdlib", drafter="pair", rule="block", gamma=3, window="heuristic", draft_dtype="int8")
    plain = RunConfig(pair="stdlib")
    assert (cell.label, cell.baseline, cell.baseline.label) == ("SD-K3", plain, "AR")
    assert plain.baseline == plain
    loop = cell.model_copy(update={"drafter": UNCACHED})
    assert loop.label == "SD-K3-uncached"
    assert loop.baseline == plain.model_copy(update={"drafter": UNCACHED_PLAIN})
    assert loop.baseline.label == "AR-uncached"
    assert loop.baseline.baseline == plain


def test_a_plan_is_the_product_and_its_baselines(tmp_path: Path) -> None:
    text = (
        "pairs: [stdlib, smollm2]\ndrafters: [none, pair, 'self:4']\nrules: [token, block]\ngammas: [2, auto]\n"
        "temperatures: [0, 0.7]\ndomains: [code, all]\nbatches: [1, 2]\ntop_k: 5\ndtype: fp32\ndraft_dtype: bf16\n"
    )
    found = planned(tmp_path, text)
    kinds = Counter((cell.pair, cell.drafter) for cell in found.cells)
    plain, drafted = 2 * 2 * 2, 2 * 2 * 2 * 2 * 2  # none has no gammas and rules
    assert kinds == {
        (pair, drafter): plain if drafter == "none" else drafted
        for pair in ("stdlib", "smollm2")
        for drafter in ("none", "pair", "self:4")
    }
    assert len({cell.hash for cell in found.cells}) == len(found.cells)
    for number, cell in enumerate(found.cells):
        assert cell.baseline in found.cells[: number + 1]
        assert cell.dtype == "float32"
        assert cell.draft_dtype == ("bfloat16" if (cell.pair, cell.drafter) == ("stdlib", "pair") else None)
        assert cell.top_k == (5 if cell.temperature else 0)  # nothing is drawn at temperature 0
    assert [group[0].pair for group in found.groups] == ["stdlib", "smollm2"]
    assert found.texts == 6 * len(found.cells)


def test_a_pair_s_other_name_is_the_same_cell(tmp_path: Path) -> None:
    by_alias, by_name = (planned(tmp_path, f"pairs: [{name}]") for name in ("gpt2_dev", "gpt2:xl"))
    assert by_alias.cells == by_name.cells


def test_what_one_pair_can_t_have_is_left_out(tmp_path: Path) -> None:
    found = planned(tmp_path, "pairs: [stdlib, smollm2]\ndrafters: [uncached]\ngammas: [2]")
    assert {(cell.pair, cell.drafter) for cell in found.cells} == {("stdlib", UNCACHED), ("stdlib", UNCACHED_PLAIN)}
    assert found.left_out == ("uncached runs two models, and smollm2 has no second one: use another drafter",)


def test_shipped_sweeps_are_whole() -> None:
    plans = {name: plan(name) for name in shipped()}
    assert set(plans) == {"drafters", "gamma", "gamma_temperature", "pairs", "smoke"}
    assert {cell.gamma for cell in plans["gamma"].cells} >= set(range(1, 9))
    of_both = plans["gamma_temperature"].cells
    assert len({(cell.gamma, cell.temperature) for cell in of_both if not cell.plain}) >= 40
    drafted = [cell for cell in plans["pairs"].cells if not cell.plain]
    assert {len({getattr(cell, name) for cell in drafted}) for name in ("pair", "gamma")} == {4}
    assert len({(cell.pair, cell.domain, cell.gamma) for cell in drafted}) == 4 * 3 * 4
    assert {UNCACHED, UNCACHED_PLAIN, "none"} <= {cell.drafter for cell in plans["drafters"].cells}
    assert {cell.pair for cell in plans["smoke"].cells} == {"stdlib"}


def test_a_domain_is_the_pair_s_own_or_an_english_one() -> None:
    def domains(name: str, domain: str) -> set[str]:
        return {each.text for each in prompts_of(RunConfig(pair=name, domain=domain, prompts=3))}

    assert domains("stdlib", "code") != domains("smollm2", "code")
    assert domains("stdlib", "conversation") == domains("smollm2", "conversation")
    assert len({each.domain for each in prompts_of(RunConfig(pair="smollm2", prompts=4))}) == 4


WRONG = {
    "pairs: [stdlib]\ngamma: [2]": "line 2: there is no key 'gamma': the keys are pairs, drafters",
    "drafters: [self]": "pairs is missing",
    "pairs: stdlib": "line 1: pairs is 'stdlib': give a list, such as ['stdlib']",
    "pairs: []": "line 1: pairs has []",
    "pairs:\n  - stdlib\n  - gpt3": "line 3: pairs: there is no pair 'gpt3'",
    "pairs: [stdlib, stdlib]": "line 1: pairs has 'stdlib' twice",
    "pairs: [stdlib]\ndrafters:\n- self\n- lookpu": "line 4: drafters: there is no drafter 'lookpu'",
    "pairs: [stdlib]\ndrafters: [slef:4]": "line 2: drafters: there is no drafter 'slef:4'",
    "pairs: [stdlib]\ndrafters: [self:9]": "line 2: drafters: draft is 'self:9': a copy has 4, 5, 6 or 8 bits",
    "pairs: [stdlib]\ndrafters: [hybrid:lookup,self]": 'in a list such a name has quotes: "hybrid:lookup,self"',
    "pairs: [stdlib]\nrules: [typical]": "line 2: rules: rule is 'typical': the lossless rules are",
    "pairs: [stdlib]\ngammas: [1, 2,\n  0]": "line 3: gammas has 0: use numbers from 1 to 64, or auto",
    "pairs: [stdlib]\ngammas: [some]": "line 2: gammas has 'some': use numbers from 1 to 64, or auto",
    "pairs: [stdlib]\ngammas: [2.5]": "line 2: gammas has 2.5",
    "pairs: [stdlib]\ngammas: [yes]": "line 2: gammas has True",
    "pairs: [stdlib]\ntemperatures: [-1]": "line 2: temperatures: temperature is -1.0: use 0",
    "pairs: [stdlib]\ntemperatures: [.nan]": "line 2: temperatures has nan",
    "pairs: [stdlib]\ntemperatures: [warm]": "line 2: temperatures has 'warm'",
    "pairs: [stdlib]\ndomains: [poems]": "line 2: domains: there is no domain 'poems': use all, code, prose",
    "pairs: [stdlib]\nprompts: 100": "line 2: prompts is 100 and domain all of stdlib has 64",
    "pairs: [stdlib]\nprompts: 1e3": "line 2: prompts has '1e3'",
    "pairs: [stdlib]\nbatches: [1, 4]": "line 2: batches: 4 doesn't divide prompts, which is 6",
    "pairs: [stdlib]\nbatches: [99999999]": "line 2: batches has 99999999",
    "pairs: [stdlib]\nwindow: wide": "line 2: window: window is 'wide'",
    "pairs: [stdlib]\ntop_p: 0.9": "line 2: top_p is set and every temperature is 0",
    "pairs: [stdlib]\ntemperatures: [1]\ntop_p: 2": "line 3: top_p: top_p is 2.0",
    "pairs: [stdlib]\ndtype: float31": "line 2: dtype: dtype is 'float31'",
    "pairs: [stdlib]\ndrafters: [self]\ndraft_dtype: int8": "line 3: draft_dtype is set and no drafter is a second",
    "pairs: [stdlib]\ndevice: tpu": "line 2: device: device is 'tpu'",
    "pairs: [stdlib]\ndevice: cuda:63": "line 2: device: device cuda:63 was asked for",
    "pairs: [stdlib]\nseed: -1": "line 2: seed has -1",
    "pairs: [stdlib]\nrepeats: 0": "line 2: repeats has 0",
    "pairs: [smollm2]\ndrafters: [uncached]\ngammas: [2]": "line 2: drafters: uncached runs two models, and smollm2",
    "pairs: [stdlib]\ndrafters: [uncached]": "line 2: drafters has uncached, which knows the rule token and gammas",
    "pairs: [stdlib]\ndrafters: [uncached-plain]\nbatches: [2]": "line 2: drafters has uncached-plain, which decodes",
    "pairs: [stdlib]\nseed: 1\nseed: 2": "line 3: seed stands in line 2 too",
    # YAML that is hostile, or none
    "pairs: &a [stdlib]\ndrafters: *a": "line 2, has an alias, *a",
    "pairs: [[[[[[[[[stdlib]]]]]]]]]": "line 1, is more than 8 lists deep",
    "pairs: !!python/object/apply:os.system [true]": "line 1 is no YAML (could not determine a constructor",
    "pairs: [stdlib": "is no YAML",
    "pairs: [stdlib]\n\tx: 1": "line 2 is no YAML",
    "- stdlib": "holds no keys",
    "": "holds no keys",
    "? [a, b]\n: 1": "line 1, has a list or a mapping as a key",
    "pairs: [stdlib]\nseed: " + "9" * 5000: "is no YAML",
    "pairs: [stdlib]\nseed: 2001-99-99": "is no YAML",
    "pairs: [stdlib]\n--- \nseed: 1": "is no YAML",
    "pairs: [\x07]": "is no YAML",
    "#" * (1 << 17): "is larger than 64 KiB",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40].replace("\n", "; "))
def test_a_config_s_error_names_line_and_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidSetting) as error:
        planned(tmp_path, text)
    assert WRONG[text] in str(error.value)
    assert "config.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_too_many_cells_are_refused(tmp_path: Path) -> None:
    lists = f"gammas: {list(range(1, 65))}\ntemperatures: {[number / 100 for number in range(200)]}"
    with pytest.raises(InvalidSetting, match="line 1: the lists make 12800 cells, and a sweep has 10000 at most"):
        planned(tmp_path, f"pairs: [stdlib]\n{lists}")


def test_a_config_that_isn_t_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="no sweep 'gama': name a YAML file, or one of drafters, gamma"):
        plan("gama")
    with pytest.raises(InvalidSetting, match=r"other.yaml can't be read \(No such file"):
        plan(tmp_path / "other.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSetting, match="no UTF-8"):
        plan(tmp_path / "bytes.yaml")


# --- rows that survive


def test_cells_take_turns_and_each_is_a_row(tmp_path: Path, desk: type[Desk]) -> None:
    asked, path = planned(tmp_path, TWO), tmp_path / "out.jsonl"
    told: list[tuple[str, int, int]] = []
    found = sweep(asked, path, lambda *each: told.append(each))
    passes = [cell for what, cell in desk.log if what == "pass"]
    everybody = {cell.hash for cell in asked.cells}
    rounds = [passes[start : start + len(everybody)] for start in range(0, len(passes), len(everybody))]
    assert [set(each) for each in rounds] == [everybody] * 3
    assert len({tuple(each) for each in rounds}) > 1  # orders differ
    assert Counter(desk.log)["load", "stdlib"] == 1
    assert all(Counter(desk.log)["warm up", cell] == 1 for cell in everybody)
    assert read(path) == sorted(found.rows, key=lambda row: passes[-len(everybody) :].index(row.hash))
    assert [row.hash for row in found.rows] == [cell.hash for cell in asked.cells]
    assert (found.known, found.failed, found.dropped) == (0, (), False)
    assert [path.name for path in tmp_path.iterdir() if JOURNAL in path.name] == []
    assert told[-1][1:] == (15, 15)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_the_order_is_the_seed_s(tmp_path: Path, desk: type[Desk]) -> None:
    logs = []
    for number, text in enumerate((TWO, TWO, TWO + "seed: 1\n")):
        desk.log.clear()
        asked = planned(tmp_path, text)
        sweep(asked, tmp_path / f"{number}.jsonl")
        places = {cell.hash: place for place, cell in enumerate(asked.cells)}
        logs.append([places[cell] for what, cell in desk.log if what == "pass"])
    assert logs[0] == logs[1] != logs[2]


@pytest.mark.parametrize("stop", [0, 4, 10, 14])
def test_ctrl_c_loses_no_pass(tmp_path: Path, desk: type[Desk], stop: int) -> None:
    asked, path = planned(tmp_path, TWO), tmp_path / "out.jsonl"
    desk.stop = stop
    with pytest.raises(KeyboardInterrupt):
        sweep(asked, path)
    desk.stop = None
    found = sweep(asked, path)
    assert Counter(cell for what, cell in desk.log if what == "pass") == {cell.hash: 3 for cell in asked.cells}
    assert found.known == max(stop - 10, 0)
    assert sorted(row.hash for row in read(path)) == sorted(cell.hash for cell in asked.cells)
    assert sweep(asked, path).known == 5
    assert Counter(desk.log)["load", "stdlib"] == 2  # nothing is loaded for nothing


def test_passes_of_another_machine_aren_t_mixed_in(
    tmp_path: Path, desk: type[Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, path = planned(tmp_path, TWO), tmp_path / "out.jsonl"
    desk.stop = 7
    with pytest.raises(KeyboardInterrupt):
        sweep(asked, path)
    desk.stop = None
    monkeypatch.setattr(desk, "environment", ENVIRONMENT | {"threads": 2})
    sweep(asked, path)
    assert sum(what == "pass" for what, _ in desk.log) == 7 + 15


def test_a_larger_sweep_goes_on_in_the_same_file(tmp_path: Path, desk: type[Desk]) -> None:
    path = tmp_path / "out.jsonl"
    sweep(planned(tmp_path, TWO), path)
    found = sweep(planned(tmp_path, TWO.replace("[2, 4]", "[2, 4, 6]")), path)
    assert (found.known, len(found.rows), len(read(path))) == (5, 7, 7)


def test_a_cell_that_fails_is_a_row(tmp_path: Path, desk: type[Desk]) -> None:
    asked, path = planned(tmp_path, TWO), tmp_path / "out.jsonl"
    desk.failing = {"lookup": RuntimeError("no\nmemory " + "x" * 900)}
    found = sweep(asked, path)
    assert len(found.failed) == 2
    for row in found.failed:
        assert row.measured is None
        assert str(row.error).startswith("RuntimeError: no memory x")
        assert "\n" not in str(row.error)
    assert len(read(path)) == 5
    desk.log.clear()
    assert sweep(asked, path).failed == found.failed  # they stay
    assert desk.log == []
    desk.failing = {}
    mended = sweep(asked, path, again=True)
    assert (mended.known, mended.failed) == (3, ())
    assert sorted(row.hash for row in read(path)) == sorted(cell.hash for cell in asked.cells)
    assert {what for what, _ in desk.log} == {"load", "warm up", "pass"}


def test_a_pair_that_can_t_be_had_is_rows_and_the_next_goes_on(tmp_path: Path, desk: type[Desk]) -> None:
    asked = planned(tmp_path, 'pairs: ["gpt2:medium", stdlib]\ngammas: [2, 4]\nprompts: 2\n')
    desk.failing = {"gpt2:medium": InvalidSetting("it is away: fetch it")}
    found = sweep(asked, tmp_path / "out.jsonl")
    assert [row.error for row in found.rows] == ["it is away: fetch it"] * 3 + [None] * 3


def torn(path: Path, desk: type[Desk], folder: Path, cut: int) -> list[RunResult]:
    sweep(planned(folder, TWO), path)
    whole = read(path)
    path.write_bytes(path.read_bytes()[:-cut])
    return whole


@pytest.mark.parametrize("cut", [1, 2, 300])
def test_a_torn_last_line_is_dropped(tmp_path: Path, desk: type[Desk], cut: int) -> None:
    path = tmp_path / "out.jsonl"
    whole = torn(path, desk, tmp_path, cut)
    assert read(path) == whole[:-1]
    found = sweep(planned(tmp_path, TWO), path)
    assert (found.known, found.dropped) == (4, True)
    assert [counts(row) for row in read(path)] == [counts(row) for row in whole]


def foreign(row: dict[str, Any]) -> list[tuple[str, bytes]]:
    """What is no sweep's file, and what is said of it. row: a good one."""
    spoilt = (
        {"hash": "0" * 12},
        {"config": {**row["config"], "gamma": 99}},
        {"error": "both"},
        {"measured": None},
        {"version": "1.5"},
        {"measured": {**row["measured"], "ms_per_token": {"count": 1, "at": []}}},
        {"more": 1},
    )
    later = json.dumps({**row, "version": VERSION + 1, "more": 1}).encode() + b"\n"
    return [
        ("line 1, is no row of a sweep", b'{"target": "stdlib", "contender": "sybil"}\n'),
        ("line 1, is no row of a sweep", b"hello"),
        ("line 1, is no row of a sweep", b"\x00" * 100),
        ("line 2, is no row of a sweep", json.dumps(row).encode() + b"\n[]\n"),
        ("line 2, is no row of a sweep", json.dumps(row).encode() + b"\n" + b"[" * 100_000 + b"\n"),
        ("line 1, is of version 2, and this Sybil reads up to 1: take a later one", later),
        *(("line 1, is no row of a sweep", json.dumps({**row, **each}).encode() + b"\n") for each in spoilt),
    ]


def test_a_file_that_is_no_sweep_s_is_left_alone(tmp_path: Path, desk: type[Desk]) -> None:
    asked, path = planned(tmp_path, TWO), tmp_path / "out.jsonl"
    sweep(asked, path)
    desk.log.clear()
    for reason, content in foreign(json.loads(path.read_text().splitlines()[0])):
        path.write_bytes(content)
        for reading in (lambda: sweep(asked, path), lambda: read(path)):
            with pytest.raises(ResultsMismatch, match=reason) as error:
                reading()
            assert "\n" not in str(error.value)
        assert path.read_bytes() == content
    assert desk.log == []
    path.unlink()
    journal = path.with_name(path.name + JOURNAL)
    journal.write_text("mine\n")
    with pytest.raises(ResultsMismatch, match="line 1, is no pass of a sweep: take the file away"):
        sweep(asked, path)
    assert journal.read_text() == "mine\n"


def test_a_full_disk_loses_nothing(tmp_path: Path, desk: type[Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, path = planned(tmp_path, TWO), tmp_path / "out.jsonl"
    append, room = files.append, [12]

    def full(where: Path, row: dict[str, Any], sync: bool = True) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))
        append(where, row, sync)

    monkeypatch.setattr(files, "append", full)
    with pytest.raises(ResultsUnwritable, match=r"can't be written to \(No space left on device\): make room"):
        sweep(asked, path)
    assert len(read(path)) == 2
    room[0] = 100
    found = sweep(asked, path)
    assert found.known == 2
    assert sorted(row.hash for row in read(path)) == sorted(cell.hash for cell in asked.cells)
    assert sum(what == "pass" for what, _ in desk.log) == 16  # the one that couldn't be written was measured twice


@pytest.mark.parametrize("out", ["/dev/full", "/proc/out.jsonl", "/dev", "file.txt/out.jsonl"])
def test_what_can_t_be_written_is_refused_before_anything_loads(tmp_path: Path, desk: type[Desk], out: str) -> None:
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(ResultsUnwritable):
        sweep(planned(tmp_path, TWO), tmp_path / out)
    assert desk.log == []
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_one_sweep_writes_a_file(tmp_path: Path, desk: type[Desk]) -> None:
    asked, path = planned(tmp_path, TWO), tmp_path / "out.jsonl"
    desk.failing = {"lookup": RuntimeError("no")}
    sweep(asked, path)
    with SweepFile(path) as rows:
        with pytest.raises(ResultsUnwritable, match="is being written to by another sweep"):
            sweep(asked, path)
        rows.forget([row.hash for row in rows.rows.values() if row.error])  # the file is another one now
        with pytest.raises(ResultsUnwritable, match="is being written to by another sweep"):
            sweep(asked, path)
    assert len(sweep(asked, path).failed) == 2


def run_killed(config: str, out: Path, kills: int, shortest: float, longest: float) -> int:
    command = [sys.executable, "tests/sweeping.py", config, str(out), *map(str, (kills, shortest, longest))]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def same_rows(one: Path, other: Path) -> None:
    found, wanted = ({row.hash: counts(row) for row in read(path)} for path in (one, other))
    assert found == wanted
    assert len(read(one)) == len(found)  # none twice
    assert one.read_bytes().endswith(b"\n")
    assert not one.with_name(one.name + JOURNAL).exists()


SMALL = (
    "pairs: [stdlib]\ndrafters: [lookup, pair]\ngammas: [3]\ntemperatures: [0.8]\nprompts: 1\nnew_tokens: 6\n"
    "repeats: 3\nwarm_ups: 0\n"
)


def test_a_killed_sweep_has_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SMALL)
    assert run_killed(str(config), tmp_path / "killed.jsonl", 2, 0.3, 1.2) > 0
    sweep(plan(config), tmp_path / "whole.jsonl")
    same_rows(tmp_path / "killed.jsonl", tmp_path / "whole.jsonl")


@pytest.mark.slow
def test_a_sweep_killed_ten_times(tmp_path: Path) -> None:
    assert run_killed("smoke", tmp_path / "killed.jsonl", 10, 0.3, 2.5) >= 3
    assert run_killed("smoke", tmp_path / "whole.jsonl", 0, 0, 0) == 0
    same_rows(tmp_path / "killed.jsonl", tmp_path / "whole.jsonl")


# --- what a row says


def test_passes_fold_into_a_row() -> None:
    cell = RunConfig(pair="stdlib", drafter="pair", gamma=2, prompts=2, batch=2, repeats=2)
    found = folded(cell, [made_up(cell), made_up(cell, 30.0)])
    assert (found.texts, found.rounds, found.emitted, found.proposed, found.accepted) == (4, 8, 16, 16, 8)
    assert found.accepted_in_round == (0, 8)
    assert (found.proposed_at, found.accepted_at, found.survival) == ((8, 8), (8, 0), (1.0, 0.0))
    assert found.text_tokens == (4,) * 4
    assert found.text_acceptance == (0.5,) * 4
    assert found.text_seconds == (0.02, 0.02, 0.06, 0.06)
    assert found.seconds == pytest.approx(0.08)  # of two batches
    assert found.passes == pytest.approx((400, 400 / 3))
    assert (found.ms_per_token.at[0], found.ms_per_token.p50, found.ms_per_token.at[100]) == (5.0, 10.0, 15.0)
    assert (found.ms_per_round.count, found.ms_to_first_token.count) == (8, 4)
    plain = folded(cell.baseline, [made_up(cell.baseline)])
    assert (plain.acceptance_rate, plain.survival, plain.proposed_at) == (None, (), ())
    assert plain.text_acceptance == (None, None)


def test_a_speed_up_is_over_the_baseline_of_the_same_machine() -> None:
    cell = RunConfig(pair="stdlib", drafter="pair", gamma=2, prompts=3, repeats=2)

    def row(config: RunConfig, *ms: float, **environment: Any) -> RunResult:
        measured = folded(config, [made_up(config, each) for each in ms])
        about = {"hash": config.hash, "label": config.label, "config": config, "finished": "now"}
        return RunResult(measured=measured, environment=ENVIRONMENT | environment, **about)

    base, fast = row(cell.baseline, 10, 10), row(cell, 5, 15)
    rows = {each.hash: each for each in (base, fast)}
    over = over_baseline(fast, rows)
    assert over is not None
    assert over.value == pytest.approx(2.0)  # 80 ms of 8 tokens by 40 ms of 8
    assert over_baseline(base, rows) is None
    assert over_baseline(fast, {fast.hash: fast}) is None
    assert over_baseline(fast, rows | {base.hash: row(cell.baseline, 10, 10, threads=2)}) is None
    assert over_baseline(fast, rows | {base.hash: failed(cell.baseline, OSError("no"), {})}) is None
    shown = [each["over_baseline"] for each in table((base, fast))]
    assert shown == [None, {"value": over.value, "low": over.low, "high": over.high}]


def test_cells_decode_what_the_decoder_decodes(tmp_path: Path) -> None:
    """Every kind of cell over the embedded pair: its counters are those of generate() with the same settings."""
    text = (
        "pairs: [stdlib]\ndrafters: [pair, lookup]\ngammas: [3]\nbatches: [1, 2]\ntemperatures: [0.7]\ntop_k: 20\n"
        "prompts: 2\nnew_tokens: 10\n"
    )
    found = sweep(planned(tmp_path, text), tmp_path / "out.jsonl")
    decoders = {"pair": load("stdlib"), "lookup": load("stdlib", draft="lookup")}
    decoders["none"] = decoders["pair"].without_draft()
    assert len(found.rows) == 6
    for row in found.rows:
        assert row.measured is not None, row.error
        config, decoder = row.config, decoders[row.config.drafter]
        texts = [integers(encode(each, decoder)) for each in prompts_of(config)]
        stats = [
            decoder.generate(
                texts[start : start + config.batch], max_new_tokens=10, do_sample=True, temperature=0.7, top_k=20,
                gamma=3, seed=start,
            ).stats
            for start in range(0, 2, config.batch)
        ]  # fmt: skip
        for name in ("emitted", "rounds", "proposed", "accepted"):
            assert getattr(row.measured, name) == sum(getattr(each, name) for each in stats), (config, name)
        assert row.measured.lossless
        assert row.measured.memory.weights == sum(model.weight_bytes for model in decoder.models)
        assert row.measured.seconds >= sum(getattr(row.measured.phases, name) for name in ("draft", "verify")) > 0


def test_the_loop_without_a_cache_says_what_decoding_with_one_says() -> None:
    """Greedily the target's own tokens; drawn, all of them accepted where the draft is the target."""
    decoder = load("stdlib", dtype="float32").without_draft()
    prompt = integers(encode(prompts_of(RunConfig(pair="stdlib", prompts=1))[0], decoder))
    wanted = decoder.generate([prompt], max_new_tokens=12).tokens[0].tolist()
    sources = pair("stdlib")
    greedy, drawn = GREEDY, Sampling(0.9)
    for draft, gamma in ((None, 0), (sources.draft, 3)):
        loop = Uncached(sources.source, draft, "float32", torch.device("cpu"), frozenset())
        steps = list(loop.stream([prompt], max_new_tokens=12, gamma=gamma, sampling=greedy, seed=0))
        assert [token for step in steps for token in step.tokens[0]] == wanted
        assert (len(steps) < 12) == (gamma > 0)
    twin = Uncached(sources.source, sources.source, "float32", torch.device("cpu"), frozenset())
    steps = list(twin.stream([prompt], max_new_tokens=12, gamma=3, sampling=drawn, seed=5))
    assert [(step.proposed, step.accepted) for step in steps] == [((3,), (3,))] * 3
    assert steps[-1].finished == ("length",)
    ending = Uncached(sources.source, None, "float32", torch.device("cpu"), frozenset(wanted[4:5]))
    said = list(ending.stream([prompt], max_new_tokens=12, gamma=0, sampling=greedy, seed=0))
    assert said[-1].finished == ("eos",)
    assert [step.tokens[0][0] for step in said] == wanted[: wanted.index(wanted[4]) + 1]
    with pytest.raises(InvalidSetting, match="batch is 2"):
        next(twin.stream([prompt, prompt], max_new_tokens=2, gamma=1, sampling=greedy, seed=0))


def test_a_text_beyond_the_context_is_refused(tmp_path: Path) -> None:
    (cell, *_) = planned(tmp_path, "pairs: [stdlib]\ndrafters: [none]\nnew_tokens: 500\n").cells
    bench = TargetBench(cell)
    with pytest.raises(PromptTooLong, match="more together than the context of stdlib, 512: lower new_tokens"):
        bench.cell(cell)


def test_energy_is_what_the_counters_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    cpu = torch.device("cpu")

    def spent(*readings: tuple[int, int]) -> float | None:
        """From one reading (two processors) to the next."""
        for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "max_energy_range_uj").write_text("10000000")
            (tmp_path / name / "energy_uj").write_text(str(readings[0][name == "intel-rapl:1"]))
        with energy.Energy(cpu) as found:
            for number in (0, 1):
                (tmp_path / f"intel-rapl:{number}" / "energy_uj").write_text(str(readings[1][number]))
            (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("9999999")  # a part of the first
        return found.joules

    assert spent((1_000_000, 0), (3_500_000, 1_000_000)) == pytest.approx(3.5)
    assert spent((9_000_000, 0), (1_000_000, 0)) == pytest.approx(2.0)  # the counter began anew
    (tmp_path / "intel-rapl:1" / "max_energy_range_uj").write_text("secret")
    with energy.Energy(cpu) as found:
        pass
    assert found.joules is None


# --- the command


def test_the_command_measures_and_goes_on(tmp_path: Path, desk: type[Desk], capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "mine.yaml", tmp_path / "rows.jsonl"
    config.write_text(TWO)
    assert sybil("sweep", config, "--dry-run") == 0
    said = capsys.readouterr()
    assert "5 cells, 30 texts, 240 tokens at most; warm-ups a cell: 1" in said.out
    assert desk.log == []
    assert not out.exists()
    desk.stop = 12
    assert sybil("sweep", config, "--results", out) == 130
    assert capsys.readouterr().err == f"interrupted: the same command goes on from {out}\n"
    desk.stop, desk.failing = None, {"lookup": InvalidSetting("it is away: fetch it")}
    path_of_rows = len(read(out))
    assert sybil("sweep", config, "--results", out) == 1
    said = capsys.readouterr()
    assert "| stdlib |    pair | token |     2 |           0 |    all |     1 |" in said.out
    assert "2.00 (2.00 to 2.00) |      50% |" in said.out
    failures = [line for line in said.out.splitlines() if line.startswith("failed: ")]
    assert failures
    assert f"5 cells, {path_of_rows} of them from an earlier run: {out}" in said.out
    assert f"{len(failures)} of 5 cells failed: their rows hold the error, and --again measures them again" in said.out
    desk.failing = {}
    assert sybil("sweep", config, "--results", out, "--again", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cells"], found["failed"], found["known"]) == (5, 0, 5 - len(failures))
    assert [row["label"] for row in found["rows"]] == ["AR", "SD-K2", "SD-K4", "SD-K2", "SD-K4"]


def test_the_command_lists_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("sweep", "--list") == 0
    said = capsys.readouterr().out
    assert all(f"| {name}" in said for name in shipped())
    assert sybil("sweep", "--list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["smoke"]["cells"] == len(plan("smoke").cells)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "there is no config: name a YAML file, or one of drafters, gamma"),
        (("gama",), "there is no sweep 'gama'"),
        (("smoke", "--results", "/dev/full"), "is no file that a sweep could write"),
    ],
)
def test_the_command_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert sybil("sweep", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
