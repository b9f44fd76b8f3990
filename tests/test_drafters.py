"""`sybil compare --drafters`: several drafters over one target, on a pair made here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_compare import PROMPTS
from test_compare import folders as folders
from test_compare import task as task
from tiny import sybil

from sybil.decoding import Decoder
from sybil.drafting import DraftLookup
from sybil.errors import InvalidSetting, ResultsMismatch
from sybil.measuring import compare, files
from sybil.measuring.compare import Comparison
from sybil.measuring.contenders import ASSISTED, PROMPT_LOOKUP, TRANSFORMERS, PromptResult, SybilContender
from sybil.measuring.drafters import EVERY, Way, drafters_named, gammas_named, ways
from sybil.measuring.summaries import by_domain, summarise
from sybil.measuring.task import Row, Task, read
from sybil.measuring.timing import Interval
from sybil.reports import figures

ABSENT = "self:7"
WAYS = ("none", "draft, gamma 3", "draft, gamma 1", "lookup, gamma 3", "lookup, gamma 1")


@pytest.fixture(scope="module")
def comparison(task: Task) -> Comparison:
    return Comparison(replace(task, drafters=f"none,draft,{ABSENT},lookup", gammas="3,1"))


@pytest.fixture(scope="module")
def rows(comparison: Comparison) -> list[Row]:
    return list(comparison.rows(PROMPTS))


@pytest.mark.parametrize(
    ("text", "draft", "found"),
    [
        ("lookup", None, ("none", "lookup")),
        ("lookup,none, self:4 ,lookup", None, ("none", "lookup", "self:4")),
        ("hybrid,cascade", None, ("none", "hybrid:lookup,self", "cascade:lookup,self")),
        ("hybrid:lookup,self:5,skip:3", None, ("none", "hybrid:lookup,self:5", "skip:3")),
        (
            "hybrid:lookup,cascade:lookup,self:5,cascade:self:4,self:8,self",
            None,
            ("none", "hybrid:lookup,cascade:lookup,self:5", "cascade:self:4,self:8", "self"),
        ),
        ("all", "folder", EVERY),
        ("all", None, tuple(name for name in EVERY if name != "draft")),
        ("draft", None, ("none", "draft")),
    ],
)
def test_a_list_names_drafters(text: str, draft: str | None, found: tuple[str, ...]) -> None:
    assert drafters_named(text, draft) == found
    assert drafters_named(",".join(found), draft) == found  # what rows keep


def test_a_list_names_gammas() -> None:
    assert gammas_named("auto, 4,8,4") == ("auto", 4, 8)
    assert [way.name for way in ways(("none", "self"), ("auto", 2))] == ["none", "self, gamma auto", "self, gamma 2"]
    for text in ("", "0", "-1", "4,,8", "four", "²", "99999"):
        with pytest.raises(InvalidSetting, match="gammas is"):
            gammas_named(text)
    for text in ("", "lookup,,self", "lookup,"):
        with pytest.raises(InvalidSetting, match="drafters is"):
            drafters_named(text, None)


def test_the_target_is_one_and_a_drafter_is_made_once(comparison: Comparison) -> None:
    decoders = [each.decoder for each in comparison.contenders.values() if isinstance(each, SybilContender)]
    assert len({id(decoder.target) for decoder in decoders}) == 1
    assert [None if decoder.draft is None else type(decoder.draft).__name__ for decoder in decoders] == [
        None, "DraftModel", "DraftModel", "DraftLookup", "DraftLookup",
    ]  # fmt: skip
    assert decoders[1].draft is decoders[2].draft
    other = decoders[0].with_draft(DraftLookup())
    assert (other.target, other.tokenizer, type(other.draft)) == (
        decoders[0].target,
        decoders[0].tokenizer,
        DraftLookup,
    )


def test_every_prompt_meets_every_drafter_but_those_that_can_not_be_had(
    comparison: Comparison, rows: list[Row]
) -> None:
    names = (TRANSFORMERS, ASSISTED, PROMPT_LOOKUP, *WAYS)
    assert [row["contender"] for row in rows] == [*names, *reversed(names), *names]
    assert list(comparison.left_out) == [f"{ABSENT}, gamma 3", f"{ABSENT}, gamma 1"]
    assert all(ABSENT in why and "\n" not in why for why in comparison.left_out.values())
    assert {row["contender"]: row["gamma"] for row in rows if "draft" in row["contender"]} == {
        "draft, gamma 3": 3,
        "draft, gamma 1": 1,
    }
    assert json.loads(json.dumps(rows)) == rows


def test_every_drafter_says_what_plain_decoding_says(comparison: Comparison, rows: list[Row]) -> None:
    found = compare.agreements(comparison, rows, PROMPTS)
    others = {ABSENT: 0}
    assert {each.contender: (each.texts, each.differences) for each in found} == {
        name: (others.get(name.split(",")[0], 3), ()) for name in comparison.task.contenders if name != "none"
    }
    forged = json.loads(json.dumps(rows))
    row = next(row for row in forged if row["contender"] == "lookup, gamma 1" and row["prompt"] == "b")
    row["tokens"][4] = (row["tokens"][4] + 1) % 31
    wrong = [each for each in compare.agreements(comparison, forged, PROMPTS) if each.differences]
    assert [(each.contender, each.unexplained) for each in wrong] == [("lookup, gamma 1", 1)]


def test_a_drafter_that_fails_takes_no_further_part(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison, run = Comparison(replace(task, drafters="none,draft,lookup", gammas="2")), SybilContender.run

    def failing(self: SybilContender, prompt: torch.Tensor, *others: Any) -> PromptResult:
        if isinstance(self.decoder.draft, DraftLookup) and len(prompt) == 7:
            raise InvalidSetting("the text is used up")
        return run(self, prompt, *others)

    monkeypatch.setattr(SybilContender, "run", failing)
    rows = list(comparison.rows(PROMPTS))
    assert comparison.left_out == {"lookup, gamma 2": "the text is used up"}
    assert [row["prompt"] for row in rows if row["contender"] == "lookup, gamma 2"] == ["a"]
    assert [row["prompt"] for row in rows if row["contender"] == "none"] == ["a", "b", "c"]

    def plainly(self: SybilContender, prompt: torch.Tensor, *others: Any) -> PromptResult:
        raise InvalidSetting("nothing works")

    monkeypatch.setattr(SybilContender, "run", plainly)
    with pytest.raises(InvalidSetting, match="nothing works"):
        list(Comparison(replace(task, drafters="none", gammas="2")).rows(PROMPTS))


def test_speed_ups_are_over_plain_decoding_by_kind_of_prompt(rows: list[Row], comparison: Comparison) -> None:
    timed = json.loads(json.dumps(rows))
    seconds = {"none": 4.0, "lookup, gamma 1": 1.0, "draft, gamma 3": 2.0}
    for row in timed:
        row["seconds"] = seconds.get(row["contender"], 8.0) * len(row["tokens"])
        if (row["contender"], row["domain"]) == ("draft, gamma 3", "code"):
            row["seconds"] *= 4
    found = {each.contender: each for each in summarise(timed, tuple(comparison.contenders), "none")}
    assert found["lookup, gamma 1"].over_autoregressive == Interval(4.0, 4.0, 4.0)
    assert found["lookup, gamma 1"].over_transformers.value == 8.0
    assert found["draft, gamma 3"].weight_bytes > found["none"].weight_bytes == found["lookup, gamma 1"].weight_bytes
    names = ("draft, gamma 3", "lookup, gamma 1", f"{ABSENT}, gamma 1")
    domains = by_domain(timed, names, "none")
    assert {domain: {name: each.value for name, each in of.items()} for domain, of in domains.items()} == {
        "code": {"draft, gamma 3": 0.5, "lookup, gamma 1": 4.0},
        "prose": {"draft, gamma 3": 2.0, "lookup, gamma 1": 4.0},
    }


def test_a_run_of_several_drafters_is_gone_on_with(
    comparison: Comparison, rows: list[Row], task: Task, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    for row in rows[:11]:
        files.append(path, row)
    kept = read(path, comparison.task)
    assert kept == rows[:11]
    rest = list(comparison.rows(PROMPTS, frozenset((row["prompt"], row["contender"]) for row in kept)))
    assert [(row["prompt"], row["contender"]) for row in kept + rest] == [
        (row["prompt"], row["contender"]) for row in rows
    ]
    for other in (task, replace(comparison.task, drafters="none,lookup"), replace(comparison.task, gammas="3")):
        with pytest.raises(ResultsMismatch, match=r"drafters=|gammas="):
            read(path, other)
    path.write_text("")
    files.append(path, rows[0] | {"contender": "lookup, gamma 2"})
    with pytest.raises(ResultsMismatch, match="line 1, is no row of a comparison"):
        read(path, comparison.task)


def test_the_chart_is_a_png(comparison: Comparison, rows: list[Row], tmp_path: Path) -> None:
    task = comparison.task
    summaries = summarise(rows, tuple(comparison.contenders), task.plain)
    for names in (WAYS, ("none",)):
        path = tmp_path / f"{len(names)}.png"
        figures.drafters(summaries, by_domain(rows, names, "none"), {name: Way(name) for name in names}, "what", path)
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def command(folders: Path, tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "abcabcab", "domain": "code"}\n{"text": "hello"}\n')
    pair = ("--target", folders / "target", "--draft", folders / "draft", "--dtype", "float64", "--device", "cpu")
    return ("compare", *pair, "--prompts", path, "--max-new-tokens", 8, "--out", tmp_path / "out")


def test_the_command_compares_several_drafters(
    command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sybil(*command, "--drafters", f"lookup,draft,{ABSENT}", "--gammas", "2", "--check") == 0
    out = capsys.readouterr().out
    for line in (f"| {ABSENT} ", "| lookup ", "| none ", "| transformers assisted ", "| lookup, gamma 2 "):
        assert out.count(line) == 1, line
    assert f"\n{ABSENT}, gamma 2: " in f"\n{out}"
    (left,) = (line for line in out.splitlines() if line.startswith(f"| {ABSENT} "))
    assert [cell.strip() for cell in left.split("|")[1:5]] == [ABSENT, "2", "left out", ""]
    assert "target with its drafters, greedy, 2 prompts, 8 new tokens, float64 on" in out
    assert "| over none, by kind of prompt | " in out
    assert "PASS: 0 of 4 texts leave the tokens of none" in out
    (rows,) = (tmp_path / "out").glob("*.jsonl")
    assert rows.with_suffix(".png").exists()
    resumed = ("--drafters", f"lookup,draft,{ABSENT}", "--gammas", "2", "--resume", rows)
    before = rows.read_text()
    assert sybil(*command, *resumed) == 0
    assert rows.read_text() == before

    drawn = ("--temperature", 0.9, "--rule", "coupled", "--drafters", "lookup,draft", "--gammas", "3,1", "--check")
    assert sybil(*command, *drawn) == 0
    out = capsys.readouterr().out
    assert "with its drafters, temperature 0.9, rule coupled, seed 0, 2 prompts" in out
    assert "PASS: 0 of 8 texts leave the tokens of none" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gammas", "4"), ["gammas is 4", "--drafters"]),
        (("--drafters", "lookup", "--gamma", 3), ["gamma is 3 beside --drafters", "--gammas 3"]),
        (("--drafters", "lookup", "--gammas", "0"), ["gammas is '0'", "auto,4,8"]),
        (("--drafters", ""), ["drafters is ''", "all"]),
        (("--drafters", "all", "--temperature", 1, "--check"), ["temperature 1", "rule token", "rule coupled"]),
    ],
    ids=str,
)
def test_what_can_not_be_compared_is_one_line(
    command: tuple[object, ...], capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], words: list[str]
) -> None:
    assert sybil(*command, *arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_without_a_draft_its_row_says_so(task: Task) -> None:
    comparison = Comparison(replace(task, draft=None, draft_dtype=None, drafters="none,draft", gammas="2"))
    assert comparison.left_out == {"draft, gamma 2": "there is no draft beside this target: name one by --draft"}
    decoder = comparison.decoder
    assert isinstance(decoder, Decoder)
    assert decoder.draft is None
