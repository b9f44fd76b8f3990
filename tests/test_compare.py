"""Prompts, rows, summaries and figures of `sybil compare`, on a pair made here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from tiny import gpt2, letters, perturbed, save, sybil

from sybil import PAIRS
from sybil.errors import InvalidSetting, ResultsMismatch
from sybil.measuring import compare, files
from sybil.measuring.compare import Comparison
from sybil.measuring.contenders import (
    ASSISTED,
    AUTOREGRESSIVE,
    PROMPT_LOOKUP,
    SPECULATIVE,
    TRANSFORMERS,
    SybilContender,
)
from sybil.measuring.prompts import Prompt, encode, load, spread
from sybil.measuring.summaries import summarise
from sybil.measuring.task import Row, Task, read, usual_draft_dtype
from sybil.measuring.timing import Interval, speed_up
from sybil.noise import Noise
from sybil.reports import figures
from sybil.sampling import probabilities, race

PROMPTS = [Prompt("a", "code", "abc"), Prompt("b", "prose", "hello w"), Prompt("c", "prose", "zyx")]
CONTENDERS = (TRANSFORMERS, ASSISTED, AUTOREGRESSIVE, SPECULATIVE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    save(gpt2(), root / "target")
    save(perturbed(gpt2(), 0.05), root / "draft")
    return root


@pytest.fixture(scope="module")
def task(folders: Path) -> Task:
    return Task(
        target=str(folders / "target"),
        draft=str(folders / "draft"),
        max_new_tokens=12,
        gamma=3,
        dtype="float64",
        device="cpu",
        prompts=compare.digest(PROMPTS),
        draft_dtype="float64",
    )


@pytest.fixture(scope="module")
def comparison(task: Task) -> Comparison:
    return Comparison(task)


@pytest.fixture(scope="module")
def rows(comparison: Comparison) -> list[Row]:
    return list(comparison.rows(PROMPTS))


def texts(rows: Sequence[Row], contender: str) -> list[list[int]]:
    return [row["tokens"] for row in rows if row["contender"] == contender]


def test_every_prompt_meets_every_contender_in_alternating_order(rows: list[Row]) -> None:
    order = [row["contender"] for row in rows]
    assert order == [*CONTENDERS, *reversed(CONTENDERS), *CONTENDERS]
    assert [row["prompt"] for row in rows] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4


def test_all_contenders_say_the_same(comparison: Comparison, rows: list[Row]) -> None:
    found = compare.agreements(comparison, rows, PROMPTS)
    assert [(each.contender, each.texts, each.differences) for each in found] == [
        (name, 3, ()) for name in CONTENDERS[1:]
    ]
    assert all(0 < len(row["tokens"]) <= 12 for row in rows)


def test_a_difference_is_placed_and_its_gap_measured(comparison: Comparison, rows: list[Row]) -> None:
    forged = json.loads(json.dumps(rows))
    row = next(row for row in forged if row["contender"] == SPECULATIVE and row["prompt"] == "b")
    row["tokens"][4] = (row["tokens"][4] + 1) % 31

    def differing() -> compare.Agreement:
        *others, found = compare.agreements(comparison, forged, PROMPTS)
        assert not any(each.differences for each in others)
        return found

    (found,) = differing().differences
    assert (differing().contender, found.prompt, found.position) == (SPECULATIVE, "b", 4)
    assert found.gap > 1e-3
    assert differing().unexplained == 1
    row["tokens"] = row["tokens"][:2]
    assert differing().differences[0].position == 2
    forged.remove(row)
    assert differing().texts == 2


@pytest.mark.parametrize(
    ("draft", "names", "accepting"),
    [
        ("lookup", (TRANSFORMERS, PROMPT_LOOKUP, AUTOREGRESSIVE, SPECULATIVE), [SPECULATIVE]),
        (None, (TRANSFORMERS, AUTOREGRESSIVE), []),
    ],
)
def test_contenders_are_those_that_apply_to_the_draft(
    task: Task, tmp_path: Path, draft: str | None, names: tuple[str, ...], accepting: list[str]
) -> None:
    other = replace(task, draft=draft, draft_dtype=None, max_new_tokens=40)
    comparison = Comparison(other)
    rows = list(comparison.rows(PROMPTS))
    summaries = summarise(rows, other.contenders)
    assert tuple(summary.contender for summary in summaries) == names
    assert [each.contender for each in summaries if each.acceptance_rate is not None] == accepting
    for agreement in compare.agreements(comparison, rows, PROMPTS):
        assert (agreement.texts, agreement.differences) == (3, ())
    assert all(texts(rows, name) == texts(rows, TRANSFORMERS) for name in names)
    figures.comparison(summaries, rows, "caption", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    if draft:  # both look tokens up, and find some: fewer forwards than tokens
        assert all(each.tokens_per_round > 1 for each in summaries if each.contender in (PROMPT_LOOKUP, SPECULATIVE))


def test_a_seeds_coupled_texts_are_sybils_own_and_others_are_nobodys(task: Task) -> None:
    sampled = replace(task, temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, seed=3)
    coupled = Comparison(replace(sampled, rule="coupled", window="heuristic"))
    rows = list(coupled.rows(PROMPTS))
    assert texts(rows, SPECULATIVE) == texts(rows, AUTOREGRESSIVE)
    assert texts(rows, AUTOREGRESSIVE) != texts(rows, TRANSFORMERS)
    (agreement,) = compare.agreements(coupled, rows, PROMPTS)
    assert (agreement.contender, agreement.texts, agreement.differences) == (SPECULATIVE, 3, ())
    assert next(coupled.rows(PROMPTS))["tokens"] == rows[0]["tokens"]  # transformers' are seeded, too

    for rule in ("token", "block"):
        drawn = Comparison(replace(sampled, rule=rule, max_new_tokens=8))
        rows = list(drawn.rows(PROMPTS[:2]))
        assert compare.agreements(drawn, rows, PROMPTS) == []
        assert drawn.task.reference is None
        assert len(summarise(rows, drawn.task.contenders)) == 4


def test_the_gap_of_a_draw_is_that_of_the_race(task: Task) -> None:
    """Lowered by less than its gap, a drawn token stays the one that is drawn; lowered by more, it doesn't."""
    drawn = replace(task, temperature=0.7, rule="coupled", seed=11)
    comparison, prompt = Comparison(drawn), [1, 2, 3]
    said = comparison.contenders[AUTOREGRESSIVE].run(torch.tensor(prompt), 10, 11).tokens
    for place, token in enumerate(said):
        gap = comparison.gap(Prompt("a", "code", "abc"), said[:place], 11)
        known = torch.tensor([[*prompt, *said[:place]]])
        with torch.no_grad():
            logits = comparison.target(input_ids=known).logits[0, -1]
        noise = Noise(11).exponentials(torch.tensor([0]), torch.tensor([[known.shape[1]]]), 31)[0, 0]
        for share in (0.0, 0.99, 1.01):
            lowered = logits.index_add(0, torch.tensor([token]), torch.tensor([-share * gap], dtype=logits.dtype))
            winner = race(probabilities(lowered, drawn.sampling), noise)
            assert (int(winner) == token) == (share < 1), (place, share)


def test_every_contender_draws_as_it_is_asked(comparison: Comparison, task: Task) -> None:
    """Null: 200 first tokens of each have the target's distribution after its filters. Chi-square, false alarm 1e-6
    each; a temperature of 1 in place of 0.5 is seen with power 0.99, a filter left out by tokens that it forbids."""
    sampled = Comparison(replace(task, temperature=0.5, top_k=3))
    prompt = torch.tensor([1, 2, 3])
    with torch.no_grad():
        logits = sampled.target(input_ids=prompt[None]).logits[0, -1]
    wanted = probabilities(logits, sampled.task.sampling)
    held = wanted > 0
    for name, contender in sampled.contenders.items():
        tokens = torch.tensor([contender.run(prompt, 1, seed).tokens[0] for seed in range(200)])
        found = torch.bincount(tokens, minlength=31)
        assert not found[~held].any(), name
        assert stats.chisquare(found[held], 200 * wanted[held]).pvalue > 1e-6, name
        assert contender.run(prompt, 1, 7).tokens == [int(tokens[7])], name


def test_a_summary_is_what_the_rows_say(rows: list[Row]) -> None:
    summaries = {summary.contender: summary for summary in summarise(rows, CONTENDERS)}
    assert list(summaries) == list(CONTENDERS)
    spoken = [row for row in rows if row["contender"] == SPECULATIVE]
    found = summaries[SPECULATIVE]
    assert found.acceptance_rate == sum(row["accepted"] for row in spoken) / sum(row["proposed"] for row in spoken)
    assert found.tokens_per_round == sum(len(row["tokens"]) for row in spoken) / sum(row["rounds"] for row in spoken)
    assert summaries[AUTOREGRESSIVE].tokens_per_round == summaries[TRANSFORMERS].tokens_per_round == 1.0
    assert summaries[AUTOREGRESSIVE].acceptance_rate is None
    assert summaries[TRANSFORMERS].over_transformers == Interval(1.0, 1.0, 1.0)
    assert summarise(rows[:3], CONTENDERS) == []
    assert summarise(rows[:7], CONTENDERS)[0].prompts == 1  # what all have finished


def test_rows_describe_machine_versions_and_task(rows: list[Row], task: Task) -> None:
    for name in ("processor", "threads", "torch", "transformers", "commit", "python"):
        assert name in rows[0]
    assert {name: rows[0][name] for name in asdict(task)} == asdict(task)


def test_a_run_cut_off_goes_on_where_it_was(
    comparison: Comparison, rows: list[Row], task: Task, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    for row in rows[:6]:
        files.append(path, row)
    with path.open("a") as file:
        file.write('{"contender": "sybil spec')  # killed in the middle of a line
    kept = read(path, task)
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
        read(path, task)
    path.write_text('{"model_type": "gpt2"}')  # not ours, and no line end: left as it is
    with pytest.raises(ResultsMismatch, match="no whole row"):
        read(path, task)
    assert path.read_text() == '{"model_type": "gpt2"}'
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ResultsMismatch, match="no text file"):
        read(path, task)
    path.write_text("{}\n")
    with pytest.raises(ResultsMismatch, match="line 1"):
        read(path, task)
    with pytest.raises(ResultsMismatch, match="No such file"):
        read(tmp_path / "none.jsonl", task)


def test_rows_of_older_runs_are_gone_on_with_at_the_defaults_of_then(
    rows: list[Row], task: Task, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    settings = {each.name for each in fields(Task)}
    first = {"target", "draft", "max_new_tokens", "gamma", "dtype", "device", "prompts"}  # those of 0.1.0
    older = {name: value for name, value in rows[0].items() if name in first or name not in settings}
    assert usual_draft_dtype(task.draft, "float64", "cpu") == task.draft_dtype
    files.append(path, older)
    assert read(path, task) == [older]
    for changed in ({"temperature": 0.5}, {"seed": 1}, {"draft_dtype": "int8"}, {"window": "confident"}):
        with pytest.raises(ResultsMismatch) as refusal:
            read(path, replace(task, **changed))
        (name, value) = *changed, *changed.values()
        usual = getattr(task, name)
        assert f"was measured with {name}={usual!r}, this run asks for {name}={value!r}:" in str(refusal.value)
    assert usual_draft_dtype("a folder", "float32", "cpu") == "int8"
    assert usual_draft_dtype("lookup", "float32", "cpu") is usual_draft_dtype(None, "float32", "cpu") is None


@pytest.mark.parametrize(
    "spoilt",
    [
        {"contender": "vllm"}, {"contender": PROMPT_LOOKUP}, {"prompt": 3}, {"domain": None}, {"tokens": []},
        {"tokens": "abc"}, {"tokens": [1, None]}, {"seconds": 0}, {"seconds": "1"}, {"seconds": float("nan")},
        {"rounds": 0}, {"weight_bytes": None}, {"proposed": 0.5}, {"time_to_first_token": -1}, {"memory_growth": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_a_row_that_no_comparison_wrote_is_refused(
    rows: list[Row], task: Task, tmp_path: Path, spoilt: dict[str, Any]
) -> None:
    path = tmp_path / "rows.jsonl"
    files.append(path, rows[0])
    files.append(path, rows[1] | spoilt)
    with pytest.raises(ResultsMismatch, match="line 2, is no row of a comparison"):
        read(path, task)
    path.write_text(json.dumps([1, 2]) + "\n")
    with pytest.raises(ResultsMismatch, match="line 1"):
        read(path, task)


def test_the_chart_is_a_png(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    figures.comparison(summarise(rows, CONTENDERS), rows, "caption", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def command(folders: Path, tmp_path: Path) -> tuple[object, ...]:
    """`sybil compare` over two short prompts on the target; the draft is still to be said."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "abcabcab"}\n{"text": "hello"}\n')
    target = ("--target", folders / "target", "--dtype", "float64", "--device", "cpu")
    return ("compare", *target, "--prompts", path, "--max-new-tokens", 10, "--out", tmp_path / "out")


def test_the_command_compares_every_drafter(
    command: tuple[object, ...], folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a draft, with lookup, and drawing: who is in the table, what the caption says, who must agree."""

    def printed(*arguments: object) -> str:
        assert sybil(*command, *arguments) == 0
        return capsys.readouterr().out

    out = printed("--check")
    assert "| sybil autoregressive" in out
    assert "assisted" not in out
    assert "speculative" not in out
    assert "target without a draft, greedy, 2 prompts, 10 new tokens, float64 on" in out
    assert "PASS: 0 of 2 texts" in out

    out = printed("--draft", "lookup", "--check", "--gamma", 3)
    assert "| transformers prompt lookup" in out
    assert "target with lookup, greedy, gamma 3, 2 prompts, 10 new tokens, float64 on" in out
    assert "transformers prompt lookup: the tokens of transformers generate on 2 of 2 prompts" in out
    assert "PASS: 0 of 4 texts leave the tokens of transformers generate" in out

    drawn = ("--draft", folders / "draft", "--temperature", 0.8, "--top-k", 9, "--top-p", 0.9, "--min-p", 0.02)
    out = printed(*drawn, "--rule", "block", "--draft-dtype", "float32", "--window", "confident")
    said = (
        "temperature 0.8, top-k 9, top-p 0.9, min-p 0.02, rule block, seed 0, gamma auto, window confident, 2 prompts"
    )
    assert said in out
    assert "10 new tokens, float64 (Sybil's draft float32) on" in out
    assert "every decoder drew tokens of its own" in out
    out = printed(*drawn, "--rule", "coupled", "--seed", 7, "--check")
    assert "sybil speculative: the tokens of sybil autoregressive on 2 of 2 prompts" in out
    assert "PASS: 0 of 2 texts leave the tokens of sybil autoregressive" in out
    newest = max((tmp_path / "out").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    row = json.loads(newest.read_text().splitlines()[0])
    wanted = {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "rule": "coupled", "seed": 7}
    assert {name: row[name] for name in wanted} == wanted
    assert (row["draft_dtype"], row["window"]) == ("float64", "constant")
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_what_a_check_of_draws_sees(
    command: tuple[object, ...], folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coupled text that isn't the one without a draft fails, with its place and gap."""
    run = SybilContender.run

    def wrong(self: SybilContender, *asked: Any) -> Any:
        measured = run(self, *asked)
        if self.decoder.draft is None:
            return measured
        return replace(measured, tokens=[*measured.tokens[:3], (measured.tokens[3] + 1) % 31, *measured.tokens[4:]])

    monkeypatch.setattr(SybilContender, "run", wrong)
    drawn = ("--draft", folders / "draft", "--temperature", 1, "--rule", "coupled", "--check")
    assert sybil(*command, *drawn) == 1
    out = capsys.readouterr().out
    assert "FAIL: 2 of 2 texts leave the tokens of sybil autoregressive" in out
    assert "leaves them at token 3, where the target's two best of the draw are" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--temperature", 1, "--check"), ["temperature 1", "no draft", "rule coupled", "sybil verify"]),
        (("--temperature", 0.5, "--draft", "lookup", "--check"), ["temperature 0.5", "rule token", "rule coupled"]),
        (("--temperature", 1, "--draft", "lookup", "--rule", "block", "--check"), ["rule block", "rule coupled"]),
        (("--top-k", 5), ["top_k is 5", "--temperature"]),
        (("--temperature", 0, "--top-p", 0.5, "--min-p", 0.1), ["top_p is 0.5 and min_p is 0.1", "--temperature"]),
        (("--temperature", -1), ["temperature is -1"]),
        (("--temperature", "nan"), ["temperature is nan"]),
        (("--temperature", 1, "--top-p", 0), ["top_p is 0"]),
        (("--rule", "lucky"), ["'lucky'", "coupled"]),
        (("--window", "round"), ["'round'", "constant"]),
        (("--draft", "lookup", "--gamma", 0), ["gamma is 0"]),
        (("--draft", "lookup", "--draft-dtype", "int4"), ["draft_dtype is int4"]),
        (("--draft", "lookup", "--draft-dtype", "int8"), ["draft_dtype is int8", "no second model"]),
        (("--max-new-tokens", 0), ["max_new_tokens is 0"]),
        (("--draft", "self:7"), ["4, 5, 6 or 8 bits"]),
    ],
    ids=str,
)
def test_what_can_not_be_compared_is_one_line(
    command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...], words: list[str],
) -> None:  # fmt: skip
    assert sybil(*command, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("sybil: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
    assert not (tmp_path / "out").exists()


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


def test_english_prompts_are_messages() -> None:
    shipped = load(shipped=PAIRS["smollm2"].prompts)
    domains = ("code", "conversation", "summarization", "editing")
    assert [sum(prompt.domain == domain for prompt in shipped) for domain in domains] == [20, 20, 20, 16]
    assert len({prompt.id for prompt in shipped}) == len({prompt.text for prompt in shipped}) == 76
    assert all([role for role, _ in prompt.messages] == ["user"] for prompt in shipped)
    for prompt in shipped:
        if prompt.domain == "summarization":
            article, request = prompt.text.rsplit("\n\n", 1)
            assert 150 <= len(article.split()) <= 300
            assert len(request.split()) < 20
        if prompt.domain == "editing":  # a small file, and one change to it
            before, file, after = prompt.text.split("```")
            assert 10 <= len(file.splitlines()) - 1 <= 40
            assert "but" in (before + after).split()


def test_messages_are_said_by_the_models_template_and_are_text_where_it_has_none() -> None:
    class Template:
        def render(self, messages: list[dict[str, str]]) -> str:
            return "".join(f"{each['role']}{each['content']}" for each in messages) + "z"

    tokenizer = letters()
    prompt = Prompt("a", "own", "ab\n\ncd", (("user", "ab"), ("system", "cd")))
    with_one, without = (SimpleNamespace(tokenizer=tokenizer, chat_template=each) for each in (Template(), None))
    assert encode(prompt, with_one) == tokenizer.encode("userabsystemcdz", add_special_tokens=False).ids
    assert encode(prompt, without) == tokenizer.encode("ab\n\ncd").ids
    plain = Prompt("a", "own", "ab")
    assert encode(plain, with_one) == tokenizer.encode("ab").ids  # a text is a text


def test_own_prompts(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "abc"}\n')
    assert load(path) == [Prompt("1", "own", "abc")]
    for content, named in (
        ('{"txt": "abc"}', "line 1 has no text: give JSON lines such as"),
        ('{"text": 5}', "line 1: text is 5"),
        ('{"text": ""}', "line 1: text is '': give a string"),
        ('{"text": "a", "id": 1}\n\n{"text": "b", "id": 1}', "line 3: an earlier line has id '1' too"),
        ("", "own.jsonl is empty"),
        ("[1]", "line 1 has no text"),
        ("null", "line 1 has no text"),
        ('{"text": "a"}\n{"text": ', "line 2 is no JSON"),
        ("[" * 100_000, "line 1 is no JSON"),
        ("9" * 5_000, "line 1 is no JSON"),
        ('{"text": "\\ud800"}', "half a character"),
        ('{"text": "a", "id": "\\u001b"}', "control character"),
    ):
        path.write_text(content)
        with pytest.raises(InvalidSetting, match=named):
            load(path)
    path.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(InvalidSetting, match="is no UTF-8 text: name a JSONL file"):
        load(path)
    for absent, named in ((tmp_path, "Is a directory"), (tmp_path / "absent.jsonl", "No such file")):
        with pytest.raises(InvalidSetting, match=rf"can't be read \({named}"):
            load(absent)
    for content in ('{"messages": 3}', '{"messages": [3]}', '{"messages": [{"role": "user"}]}', '{"messages": []}'):
        path.write_text(content)
        with pytest.raises(InvalidSetting, match="line 1"):
            load(path)
    path.write_text('{"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]}')
    assert load(path) == [Prompt("1", "own", "be\n\nhi", (("system", "be"), ("user", "hi")))]
    path.write_text('{"text": "a\u2028b"}')
    assert load(path)[0].text == "a\u2028b"
