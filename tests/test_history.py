"""The suite sees history: on made ones a step and a slide are found and named, noise alone is silent.

The made histories are a whole run that asv stored (tests/asv-results), scaled and with noise, a commit each; or a row
of numbers, where what is asked is one cell's verdict.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_asv import LOWER, Scratch
from typer.testing import CliRunner

from benchmarks.history import __main__ as command
from benchmarks.history import report, site, stored, verdict
from benchmarks.history.changes import changes
from benchmarks.history.stored import Commit, History, HistoryError, Point, Series
from benchmarks.history.verdict import HistoryFinding, HistoryLimits, Unstable

LIMITS = HistoryLimits()
NOISE = 0.02
"""The standard deviation of a commit's number, as a share of it."""
COUNTERS = ("track_rejection_rate", "track_forwards_per_token")
COMMITS = 30
MANY = 500


def noise(seed: int, count: int = COMMITS, spread: float = NOISE) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, spread, count))


def step(at: int, by: float, count: int = COMMITS) -> np.ndarray:
    return np.where(np.arange(count) < at, 1.0, 1.0 + by)


def slide(start: int, commits: int, each: float, count: int = COMMITS) -> np.ndarray:
    return (1 + each) ** np.clip(np.arange(count) - start + 1, 0, commits)


def history(
    values: np.ndarray,
    track: str = "decoding.Greedy.track_ms_per_token",
    unit: str = "ms/token",
    spreads: np.ndarray | float | None = 0.03,
    control: np.ndarray | None = None,
) -> History:
    """One cell's."""
    each = np.broadcast_to(np.array(spreads, dtype=object), len(values))
    points = tuple(Point(place, float(value), each[place]) for place, value in enumerate(values))
    commits = tuple(Commit(f"{place:040x}", f"commit {place}", place) for place in range(len(values)))
    theirs = np.ones(len(values)) if control is None else control
    return History(
        "vm",
        "an environment",
        "main",
        commits,
        (Series(track, "'code', 4, 'cpu'", "greedy: time a token", unit, points),),
        {place: float(value) for place, value in enumerate(theirs)},
        0,
    )


def judged(values: np.ndarray, known: tuple[Unstable, ...] = (), **told: Any) -> list[HistoryFinding]:
    return verdict.judge(history(values, **told), LIMITS, known)


@pytest.mark.parametrize("seed", range(20))
def test_a_step_is_found_and_named(seed: int) -> None:
    """8 % in noise of 2 %, ten commits before the end: in 20 of 20 rows, at the commit or the one beside it."""
    (found,) = judged(noise(seed) * step(20, 0.08))
    assert found.verdict == "regression"
    assert found.change
    assert found.change.relative == pytest.approx(0.08, abs=0.03)
    assert abs(found.first - 20) <= 1
    assert found.last == found.first


@pytest.mark.parametrize("seed", range(20))
def test_a_slide_is_found_and_named_as_one(seed: int) -> None:
    """1 % a commit over ten commits, of which none is told from noise: in 20 of 20 rows, never one commit's doing."""
    (found,) = judged(noise(seed, spread=0.01) * slide(10, 10, 0.01))
    assert found.verdict == "regression"
    assert found.change
    assert found.change.relative == pytest.approx(0.105, abs=0.03)
    assert found.first == pytest.approx(10, abs=3)
    assert found.last == pytest.approx(19, abs=3)


def test_noise_alone_is_silent() -> None:
    """Null: 30 normal numbers of one level. Of 500 such rows none may be told."""
    told = [each.verdict for seed in range(MANY) for each in judged(noise(seed, spread=0.03))]
    assert set(told) <= {"steady", "too little data"}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (step(20, -0.08), "improvement"),
        (step(20, 0.03), "steady"),
        (step(28, 0.3), "suspicious"),  # two commits don't confirm it
        (np.ones(3), "too little data"),
        (noise(1, 12, 0.1), "too little data"),
        (step(10, 0.1) * step(20, -0.0909), "steady"),  # mended since
        (step(20, 0.08) * step(25, 0.08), "regression"),
    ],
)
def test_the_verdicts(values: np.ndarray, wanted: str) -> None:
    found = judged(values * noise(0, len(values), 0.01))
    assert {each.verdict for each in found} == {wanted}


def test_a_counter_is_proof_at_one_commit_and_has_no_noise() -> None:
    told = {"track": "decoding.Greedy.track_rejection_rate", "unit": "rejected/proposed", "spreads": None}
    (found,) = judged(0.4 * step(29, 0.08), **told)
    assert (found.verdict, found.first) == ("regression", 29)
    (found,) = judged(np.where(np.arange(30) < 15, 0.0, 0.1), **told)
    assert (found.verdict, found.first, found.change and found.change.relative) == ("regression", 15, math.inf)
    assert [each.verdict for each in judged(np.full(30, 0.4), **told)] == ["steady"]


def test_what_slowed_transformers_too_is_the_machine() -> None:
    slower, cell = step(20, 0.1), {"control": step(20, 0.09)}
    (found,) = judged(slower * noise(0, spread=0.01), **cell)
    assert (found.verdict, "transformers' own time changed by +9.0% too" in found.why) == ("suspicious", True)
    (found,) = judged(slower * noise(0, spread=0.01), unit="MB", **cell)  # no slow machine takes more memory
    assert found.verdict == "regression"
    (found,) = judged(slower * noise(0, spread=0.01), control=step(20, -0.09))
    assert found.verdict == "regression"


def test_a_track_known_to_vary_is_suspicious_at_most() -> None:
    known = (Unstable(r"^decoding\.Greedy", 0.04, "gamma is chosen by the clock"),)
    (found,) = judged(step(20, 0.2) * noise(0), known)
    assert (found.verdict, "gamma is chosen by the clock" in found.why) == ("suspicious", True)
    (found,) = judged(step(20, 0.08) * noise(0), known)
    assert found.verdict == "steady"


def test_numbers_of_a_busy_machine_are_left_out_and_told() -> None:
    values, spreads = noise(0, spread=0.01), np.full(30, 0.03)
    values[24:], spreads[24:] = values[24:] * 1.5, 0.4
    told = history(values, spreads=spreads)
    assert told.series[0].busy == set(range(24, 30))
    assert [each.verdict for each in verdict.judge(told, LIMITS, ())] == ["steady"]
    said = report.section(told, verdict.judge(told, LIMITS, ()), LIMITS)
    assert "Busy while these were measured" in said
    assert "`000000000` (100%)" in said
    assert [each.verdict for each in judged(values)] == ["regression"]  # the same numbers, measured in quiet


def test_changes_do_not_depend_on_scale() -> None:
    row = noise(0) * step(20, 0.08)
    assert changes(row, 1e-6, 0.05)[0].first == changes(1e-4 * row, 1e-6, 0.05)[0].first


# What asv stored ------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """A checkout with so many commits and asv's results of each: the stored run's, by a factor and with noise."""

    def make(factor: Callable[[str, int], float], count: int = COMMITS) -> Path:
        tracks = {track["name"]: track for track in json.loads((tmp_path / "tracks.json").read_text())}
        scratch = Scratch(tmp_path, tracks)
        generator = np.random.default_rng(0)
        for commit in range(count):

            def scale(track: str, commit: int = commit) -> float:
                still = track.endswith(COUNTERS)
                return factor(track, commit) * (1.0 if still else math.exp(generator.normal(0, NOISE)))

            scratch.commit(scale)
        return tmp_path

    stored_run = json.loads((Path(__file__).parent / "asv-results" / "result.json").read_text())
    params = stored_run["result_columns"].index("params")
    (tmp_path / "tracks.json").write_text(
        json.dumps(
            [
                {
                    "name": name,
                    "params": row[params],
                    "param_names": [f"p{number}" for number in range(len(row[params]))],
                    "version": "1",
                    "unit": "ms",
                    "pretty_name": name,
                    "type": "track",
                }
                for name, row in stored_run["results"].items()
            ]
        )
    )
    return make


def run(root: Path, *arguments: object) -> tuple[int, str]:
    app = command.typer.Typer()
    app.command()(command.main)
    done = CliRunner().invoke(app, ["--root", str(root), *map(str, arguments)])
    return done.exit_code, done.output


def test_a_whole_history_of_noise_is_silent(made: Callable[..., Path]) -> None:
    """Every cell of a whole run over thirty commits at once."""
    root = made(lambda track, commit: 1.0)
    code, output = run(root)
    assert code == 0, output
    (history,) = stored.read(root)
    assert {LOWER.match(series.track) is not None for series in history.series} == {True}
    found = verdict.judge(history, LIMITS, ())
    assert len(found) == len(history.series) > 200
    assert {each.verdict for each in found} == {"steady"}


def test_a_step_and_a_slide_are_in_the_table_by_their_commits(made: Callable[..., Path], tmp_path: Path) -> None:
    """A step of 8 % in one track, a slide of 1 % a commit over ten commits in another, each named by its very commits;
    what is better higher is not looked at."""
    moved = {
        "decoding.Greedy.track_ms_per_token": step(20, 0.08),
        "decoding.Sampled.track_ms_per_token": slide(10, 10, 0.01),
        "rates.Greedy.track_tokens_per_second": step(20, 0.08),
    }
    root = made(lambda track, commit: moved[track][commit] if track in moved else 1.0)
    files = tmp_path / "history.md", tmp_path / "history.json"
    code, output = run(root, "--markdown", files[0], "--json", files[1])
    assert code == 1, output
    (told,) = json.loads(files[1].read_text())
    regressed = [cell for cell in told["cells"] if cell["verdict"] == "regression"]
    assert {cell["track"] for cell in regressed} == {track for track in moved if LOWER.match(track)}
    assert {cell["verdict"] for cell in told["cells"]} == {"regression", "steady"}
    text = files[0].read_text()
    assert "| regression | `" in text
    (named,) = (line for line in text.splitlines() if "`decoding.Greedy.track_ms_per_token`" in line)
    assert f"| `{told['commits'][20][:9]}` " in named
    assert int(re.search(r"\| (\d+) of 18 \|", named)[1]) > 14
    (named,) = (line for line in text.splitlines() if "`decoding.Sampled.track_ms_per_token`" in line)
    assert f"| a slide from `{told['commits'][10][:9]}` " in named
    assert f" to `{told['commits'][19][:9]}` " in named


def test_errors_are_one_line_and_exit_2(made: Callable[..., Path], tmp_path: Path) -> None:
    root = made(lambda track, commit: 1.0, 2)
    for arguments, said in (
        (["--results", tmp_path / "none"], "Run `nox -s asv` first"),
        (["--branch", "none"], "no branch 'none'"),
        (["--machine", "none"], "no machine 'none' has results"),
        (["--least", "5"], "least is 5.0"),
        (["--markdown", tmp_path / "none" / "history.md"], "is in no folder that is there"),
        (["--root", tmp_path / "none"], "asv.conf.json"),
    ):
        code, output = run(root, *arguments)
        assert (code, said in output, output.count("\n")) == (2, True, 1), output
    code, output = run(root)
    assert (code, "too little data" in output) == (0, True)


def test_what_asv_stored_wrongly_is_left_out(made: Callable[..., Path]) -> None:
    root = made(lambda track, commit: 1.0, 2)
    first, second, *_ = sorted((root / ".asv" / "results" / "vm").glob("*-*.json"))
    results = json.loads(first.read_text())
    column = results["result_columns"].index("result")
    name = "decoding.Autoregressive.track_ms_per_token"
    results["results"][name][column] = ["12", None, float("nan"), -1.0]
    first.write_text(json.dumps(results))
    second.write_text("{")
    (history,) = stored.read(root)
    assert len(history.commits) == 1
    assert not [series for series in history.series if series.track == name]


def test_a_busy_machine_is_marked_on_the_site(made: Callable[..., Path]) -> None:
    """In the grid by track, in the list by cell and machine; asv publishes, and the mark is put on twice as on once."""
    root = made(lambda track, commit: 1.0, 4)
    *_, newest = sorted(
        (root / ".asv" / "results" / "vm").glob("*-*.json"), key=lambda file: json.loads(file.read_text())["date"]
    )
    results = json.loads(newest.read_text())
    columns, name = results["result_columns"], "decoding.Autoregressive.track_ms_per_token"
    results["results"][name][columns.index("stats_q_75")][1] *= 2
    newest.write_text(json.dumps(results))
    busy = site.last_busy(root)
    assert busy == {("vm", name, "'prose', 'cpu'")}
    command = [sys.executable, "-m", "asv", "publish", "--no-pull"]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    html = root / ".asv" / "html"
    for _ in range(2):
        assert site.mark(html, busy) == 2
    index = json.loads((html / "index.json").read_text())["benchmarks"]
    assert [track for track, each in index.items() if each["pretty_name"].startswith(site.MARK)] == [name]
    (summary,) = (html / "graphs").glob("**/summary.json")
    rows = [row["pretty_name"] for row in json.loads(summary.read_text())]
    assert [row for row in rows if row.startswith(site.MARK)] == [f"{site.MARK}{name}('prose', 'cpu')"]


def test_commits_elsewhere_and_those_not_measured_are_told() -> None:
    told = history(step(20, 0.08) * noise(0))
    commits = tuple(Commit(each.hash, each.subject, 3 * each.number) for each in told.commits)
    spread_out = History("vm", "e", "main", commits, told.series, told.control, elsewhere=4)
    said = report.section(spread_out, verdict.judge(spread_out, LIMITS, ()), LIMITS)
    assert "commit 20, or one of the 2 before it |" in said
    assert "4 measured commits are not on main" in said


def test_a_subject_draws_no_table_and_calls_nobody() -> None:
    said = report.plain("a | b\n`c` @everyone <img src=x> [x](y) " + "long " * 50)
    assert not set("|\n`<[") & set(said)
    assert "@everyone" not in said
    assert len(said) < 150


def test_the_list_of_unstable_tracks_names_tracks(tmp_path: Path) -> None:
    names = json.loads((Path(__file__).parent / "asv-results" / "result.json").read_text())["results"]
    for each in verdict.unstable():
        assert 0 < each.spread < 1, each
        assert each.why, each
        assert any(re.search(each.pattern, name) for name in names), each
    for wrong in ("[]", "{", '{"a": {"spread": "x", "why": ""}}', '{"(": {"spread": 0.1, "why": ""}}'):
        (tmp_path / "list.json").write_text(wrong)
        with pytest.raises(HistoryError, match="is no list of unstable tracks"):
            verdict.unstable(tmp_path / "list.json")
