"""Prompts, rows, summaries and figures of `sybil compare`, on a pair made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import gpt2, perturbed, save

from sybil.errors import InvalidSetting, ResultsMismatch
from sybil.measuring import compare, files
from sybil.measuring.compare import AUTOREGRESSIVE, CONTENDERS, SPECULATIVE, TRANSFORMERS, Comparison, Row, Task
from sybil.measuring.prompts import Prompt, load, spread
from sybil.measuring.timing import Interval, speed_up
from sybil.reports import figures

PROMPTS = [Prompt("a", "code", "abc"), Prompt("b", "prose", "hello w"), Prompt("c", "prose", "zyx")]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("pair")
    target = save(gpt2(), folder / "target")
    draft = save(perturbed(gpt2(), 0.05), folder / "draft")
    return Task(
        str(target),
        str(draft),
        max_new_tokens=12,
        gamma=3,
        dtype="float64",
        device="cpu",
        prompts=compare.digest(PROMPTS),
    )


@pytest.fixture(scope="module")
def comparison(task: Task) -> Comparison:
    return Comparison(task)


@pytest.fixture(scope="module")
def rows(comparison: Comparison) -> list[Row]:
    return list(comparison.rows(PROMPTS))


def test_every_prompt_meets_every_contender_in_alternating_order(rows: list[Row]) -> None:
    order = [row["contender"] for row in rows]
    assert order == [*CONTENDERS, *reversed(CONTENDERS), *CONTENDERS]
    assert [row["prompt"] for row in rows] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4


def test_all_contenders_say_the_same(comparison: Comparison, rows: list[Row]) -> None:
    assert compare.differences(comparison, rows, PROMPTS) == []
    assert all(0 < len(row["tokens"]) <= 12 for row in rows)


def test_a_difference_is_placed_and_its_gap_measured(comparison: Comparison, rows: list[Row]) -> None:
    forged = json.loads(json.dumps(rows))
    row = next(row for row in forged if row["contender"] == SPECULATIVE and row["prompt"] == "b")
    row["tokens"][4] = (row["tokens"][4] + 1) % 31
    (found,) = compare.differences(comparison, forged, PROMPTS)
    assert (found.prompt, found.contender, found.position) == ("b", SPECULATIVE, 4)
    assert found.gap > 1e-3
    row["tokens"] = row["tokens"][:2]
    assert compare.differences(comparison, forged, PROMPTS)[0].position == 2


def test_a_summary_is_what_the_rows_say(rows: list[Row]) -> None:
    summaries = {summary.contender: summary for summary in compare.summarise(rows)}
    assert list(summaries) == list(CONTENDERS)
    spoken = [row for row in rows if row["contender"] == SPECULATIVE]
    found = summaries[SPECULATIVE]
    assert found.acceptance_rate == sum(row["accepted"] for row in spoken) / sum(row["proposed"] for row in spoken)
    assert found.tokens_per_round == sum(len(row["tokens"]) for row in spoken) / sum(row["rounds"] for row in spoken)
    assert summaries[AUTOREGRESSIVE].tokens_per_round == summaries[TRANSFORMERS].tokens_per_round == 1.0
    assert summaries[AUTOREGRESSIVE].acceptance_rate is None
    assert summaries[TRANSFORMERS].over_transformers == Interval(1.0, 1.0, 1.0)
    assert compare.summarise(rows[:3]) == []
    assert compare.summarise(rows[:7])[0].prompts == 1  # what all have finished


def test_rows_describe_machine_versions_and_task(rows: list[Row], task: Task) -> None:
    for name in ("processor", "threads", "torch", "transformers", "commit", "python"):
        assert name in rows[0]
    assert rows[0]["gamma"] == task.gamma


def test_a_run_cut_off_goes_on_where_it_was(
    comparison: Comparison, rows: list[Row], task: Task, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    for row in rows[:6]:
        files.append(path, row)
    with path.open("a") as file:
        file.write('{"contender": "sybil spec')  # killed in the middle of a line
    kept = compare.read(path, task)
    assert kept == rows[:6]
    assert path.read_text().count("\n") == 6
    rest = list(comparison.rows(PROMPTS, frozenset((row["prompt"], row["contender"]) for row in kept)))
    assert [(row["prompt"], row["contender"]) for row in kept + rest] == [
        (row["prompt"], row["contender"]) for row in rows
    ]


def test_rows_of_another_task_are_not_resumed(rows: list[Row], task: Task, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    files.append(path, rows[0] | {"gamma": 7})
    with pytest.raises(ResultsMismatch, match=r"gamma=7.*gamma=3"):
        compare.read(path, task)
    path.write_text('{"model_type": "gpt2"}')  # not ours, and no line end: left as it is
    with pytest.raises(ResultsMismatch, match="no whole row"):
        compare.read(path, task)
    assert path.read_text() == '{"model_type": "gpt2"}'
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ResultsMismatch, match="no text file"):
        compare.read(path, task)
    path.write_text("{}\n")
    with pytest.raises(ResultsMismatch, match="line 1"):
        compare.read(path, task)
    with pytest.raises(ResultsMismatch, match="No such file"):
        compare.read(tmp_path / "none.jsonl", task)


def test_the_chart_is_a_png(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    figures.comparison(compare.summarise(rows), rows, "caption", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Null: 95 % intervals hold the true median; 200 samples of 31, so under 170 hits has probability 3e-8."""
    import numpy as np

    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        ratios = random.lognormal(np.log(2), 0.3, 31)
        found = speed_up(list(ratios), [1.0] * 31)
        hits += found.low <= 2.0 <= found.high
    assert hits >= 170


def test_prompts_are_spread_over_domains() -> None:
    shipped = load()
    assert len(shipped) >= 60
    assert {prompt.domain for prompt in shipped} == {"code", "prose", "structured"}
    assert len({prompt.id for prompt in shipped}) == len(shipped)
    few = spread(shipped, 12)
    assert [sum(prompt.domain == domain for prompt in few) for domain in ("code", "prose", "structured")] == [4, 4, 4]
    assert len(spread(shipped, 1000)) == len(shipped)


def test_own_prompts(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "abc"}\n')
    assert load(path) == [Prompt("1", "own", "abc")]
    for content, named in (
        ('{"txt": "abc"}', "no prompts"),
        ('{"text": 5}', "line 1"),
        ('{"text": ""}', "line 1"),
        ('{"text": "a", "id": 1}\n{"text": "b", "id": 1}', "line 2"),
        ("", "empty"),
        ("[1]", "no prompts"),
    ):
        path.write_text(content)
        with pytest.raises(InvalidSetting, match=named):
            load(path)
    path.write_text('{"text": "a\u2028b"}')
    assert load(path)[0].text == "a\u2028b"
