"""Sets of prompts: those that ship, the hub's (by a fake of the package datasets), a user's files; sybil prompts.

The rows of the fake are made as those of the three datasets are; no test asks the hub.
"""

from __future__ import annotations

import ast
import doctest
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny import letters, sybil

from sybil.errors import DatasetUnusable, HubUnreachable, InvalidSetting, PackageMissing
from sybil.loading import read
from sybil.measuring import files, hub_prompts, promptset
from sybil.measuring.hub_prompts import LONGEST, ORIGINS, ROWS, cut, fetch
from sybil.measuring.prompts import Prompt, load
from sybil.measuring.promptset import DOMAINS, Lengths, PromptSet, shuffled
from sybil.pairs import PAIRS

REQUEST = "\n\nSummarize the above article:"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return read(PAIRS["stdlib"].target).tokenizer


def row(dataset: str, number: int) -> dict[str, Any]:
    if dataset == "openai/openai_humaneval":
        return {
            "task_id": f"HumanEval/{number}",
            "prompt": f'\ndef f{number}(x):\n    """Return {number}."""\n',
            "test": "",
        }
    if dataset == "tatsu-lab/alpaca":
        return {"instruction": f"Name {number} birds.", "input": "", "output": "", "text": ""}
    return {"article": f"({number}) " + "A town has a mayor. " * 200, "highlights": "", "id": str(number)}


class Hub:
    """The hub as far as it is asked: dataset_info of huggingface_hub, and load_dataset of the package `datasets`."""

    def __init__(self) -> None:
        self.rows: dict[str, Iterable[Any]] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def dataset_info(self, repo_id: str, *, timeout: float) -> SimpleNamespace:
        if self.error is not None:
            raise self.error
        return SimpleNamespace(sha=f"commit of {repo_id}")

    def load_dataset(
        self, path: str, name: str | None = None, *, split: str, revision: str, streaming: bool
    ) -> Iterable[Any]:
        self.asked.append((path, name, split, streaming))
        assert revision == f"commit of {path}"
        return self.rows.get(path, (row(path, number) for number in range(300)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake, module = Hub(), ModuleType("datasets")
    module.load_dataset = fake.load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("huggingface_hub.dataset_info", fake.dataset_info)
    return fake


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)


# what ships


def shared(texts: Iterable[str], words: int = 7) -> set[str]:
    """Runs of so many words that two texts have."""
    seen: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for number, text in enumerate(texts):
        found = re.findall(r"\w+", text.lower())
        for start in range(len(found) - words + 1):
            seen[tuple(found[start : start + words])].add(number)
    return {" ".join(run) for run, where in seen.items() if len(where) > 1}


def test_fifty_prompts_of_each_domain_ship() -> None:
    shipped = PromptSet.load()
    assert {domain: len(prompts) for domain, prompts in shipped.by_domain().items()} == dict.fromkeys(DOMAINS, 50)
    assert len({prompt.id for prompt in shipped.prompts}) == len({prompt.text for prompt in shipped.prompts}) == 150
    assert all(prompt.messages == (("user", prompt.text),) for prompt in shipped.prompts)
    assert not {each.text for each in shipped.prompts} & {each.text for each in load(shipped=PAIRS["smollm2"].prompts)}


def test_a_shipped_function_is_a_signature_with_a_docstring_and_an_example() -> None:
    for prompt in PromptSet.load().by_domain()["code"]:
        functions = [each for each in ast.parse(prompt.text).body if isinstance(each, ast.FunctionDef)]
        said = ast.get_docstring(functions[-1]) or ""
        assert functions[-1].end_lineno == len(prompt.text.splitlines()), prompt.id
        assert doctest.DocTestParser().get_examples(said) or f"{functions[-1].name}(" in said, prompt.id


def test_shipped_instructions_are_one_to_three_sentences() -> None:
    for prompt in PromptSet.load().by_domain()["conversation"]:
        assert 5 <= len(prompt.text.split()) <= 60, prompt.id
        assert "\n" not in prompt.text


def test_shipped_articles_repeat_nothing_of_each_other() -> None:
    articles = []
    for prompt in PromptSet.load().by_domain()["summarization"]:
        assert prompt.text.endswith(REQUEST)
        articles.append(prompt.text.removesuffix(REQUEST))
        assert 230 <= len(articles[-1].split()) <= 410, prompt.id
        assert articles[-1].count("\n\n") >= 3, prompt.id
    assert shared(articles) == set()
    planted = [*articles[:-1], f"{articles[-1]} {articles[0][:60]}"]
    assert shared(planted)


@pytest.mark.real
def test_lengths_by_the_tokenizer_of_smollm2() -> None:
    found = PromptSet.load().lengths(read(PAIRS["smollm2"].source).tokenizer)
    assert 60 <= found["code"].min < found["code"].max <= 250
    assert 5 <= found["conversation"].min < found["conversation"].max <= 100
    assert 300 <= found["summarization"].min < found["summarization"].max <= 512


# sets


def test_a_set_is_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    some = PromptSet((*PromptSet.load().prompts[::10], Prompt("a", "own", "a\u2028b\n\x1b\U0001f41f")))
    some.save(path)
    assert PromptSet.load(path) == some
    assert load(path) == list(some.prompts)
    some.sample(3).save(path)
    assert PromptSet.load(path) == some.sample(3)


def test_a_set_that_can_not_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("before")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InvalidSetting, match=r"some.jsonl can't be written to \(No space left on device\)"):
        PromptSet.load().save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["some.jsonl"]
    assert path.read_text() == "before"
    with pytest.raises(InvalidSetting, match=r"can't be written to \(No such file"):
        PromptSet.load().save(tmp_path / "absent" / "some.jsonl")


def test_files_are_domains(tmp_path: Path) -> None:
    mails, mixed = tmp_path / "mails.txt", tmp_path / "mixed.jsonl"
    mails.write_text('Dear all,\r\n\n  {"no": JSON}  \n')
    mixed.write_text('{"text": "a"}\n{"text": "b", "domain": "code", "id": "x"}\n')
    found = PromptSet.load(mails, str(mixed))
    assert found.prompts == (
        Prompt("mails-1", "mails", "Dear all,"),
        Prompt("mails-3", "mails", '{"no": JSON}'),
        Prompt("mixed-1", "mixed", "a"),
        Prompt("x", "code", "b"),
    )
    assert list(found.by_domain()) == ["mails", "mixed", "code"]
    assert found.only(["code", "mails"]).prompts == (*found.prompts[:2], found.prompts[3])
    with pytest.raises(InvalidSetting, match="there is no domain 'prose': the domains are mails, mixed, code"):
        found.only(["code", "prose"])
    with pytest.raises(InvalidSetting, match="two files have a prompt with id 'mails-1'"):
        PromptSet.load(mails, mails)
    assert load(mails) == [Prompt("1", "own", "Dear all,"), Prompt("3", "own", '{"no": JSON}')]


def test_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.txt"
    monkeypatch.setattr("sybil.measuring.prompts.LARGEST", 1 << 20)
    path.write_bytes(b"a" * (1 << 20))
    assert len(load(path)) == 1
    path.write_bytes(b"a" * ((1 << 20) + 1))
    with pytest.raises(InvalidSetting, match="is larger than 1 MiB"):
        load(path)
    if Path("/dev/zero").exists():
        with pytest.raises(InvalidSetting, match="is larger than 1 MiB"):
            load(Path("/dev/zero"))


def test_a_sample_follows_from_its_seed_and_begins_the_larger_one() -> None:
    shipped = PromptSet.load()
    few = shipped.sample(promptset.TINY)
    assert {domain: len(prompts) for domain, prompts in few.by_domain().items()} == dict.fromkeys(DOMAINS, 5)
    assert few.prompts == shipped.sample(60).prompts[:15]
    assert set(few.prompts) == set(PromptSet(shipped.prompts[::-1]).sample(15).prompts)  # whatever order they had
    assert shipped.sample(15, seed=1) != few
    assert sorted(each.id for each in shipped.sample(1000).prompts) == sorted(each.id for each in shipped.prompts)
    # the digests of "0 a", "0 b", "0 c" and "0 d": no version of Python, and no hash of a process, changes their order
    assert shuffled("abcd", 0) == ["b", "a", "c", "d"]
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(InvalidSetting, match="count is"):
            shipped.sample(wrong)  # type: ignore[arg-type]


def test_lengths_are_of_the_texts_alone() -> None:
    prompts = [Prompt("1", "own", "abc"), Prompt("2", "own", "abcdef", (("user", "abcdef"),)), Prompt("3", "b", "a")]
    assert PromptSet(tuple(prompts)).lengths(letters()) == {"own": Lengths(2, 3, 4.5, 6), "b": Lengths(1, 1, 1.0, 1)}


# the hub


def test_prompts_of_the_hub(hub: Hub, tokenizer: Any) -> None:
    found = fetch(tokenizer)
    assert {domain: len(prompts) for domain, prompts in found.by_domain().items()} == dict.fromkeys(DOMAINS, 50)
    assert hub.asked == [
        ("openai/openai_humaneval", None, "test", True),
        ("tatsu-lab/alpaca", None, "train", True),
        ("abisee/cnn_dailymail", "3.0.0", "test", True),
    ]
    by_domain = found.by_domain()
    for domain, prompts in by_domain.items():
        assert all(each.messages == (("user", each.text),) for each in prompts)
        assert len({each.id for each in prompts}) == 50
        assert all(re.fullmatch(rf"{domain}-\d+", each.id) for each in prompts)
    number = by_domain["code"][0].id.removeprefix("code-")
    assert by_domain["code"][0].text == f'def f{number}(x):\n    """Return {number}."""'
    articles = [each.text.removesuffix(REQUEST) for each in by_domain["summarization"]]
    counts = {len(tokenizer.encode(article, add_special_tokens=False).ids) for article in articles}
    assert counts <= {511, 512}
    assert fetch(tokenizer, 15).prompts == found.prompts[:15]
    assert fetch(tokenizer, 15, seed=1).prompts != found.prompts[:15]


def test_rows_that_are_passed_over(hub: Hub, tokenizer: Any) -> None:
    """An instruction about an input that would be missing, an empty text, one too long, one seen before, and one that
    would write to a terminal."""
    good = {"instruction": "Name a bird.", "input": ""}
    changes = (
        {"input": "wren"},
        {"instruction": " \n"},
        {"instruction": "a" * (LONGEST + 1)},
        {},
        {"instruction": "\x1b[2J"},
    )
    hub.rows["tatsu-lab/alpaca"] = [good, *(good | each for each in changes)]
    assert [prompt.text for prompt in fetch(tokenizer, domains=["conversation"]).prompts] == ["Name a bird."]
    hub.rows["tatsu-lab/alpaca"] = [good | each for each in changes if each]
    with pytest.raises(DatasetUnusable, match="none of the first 2000 rows of tatsu-lab/alpaca has a text"):
        fetch(tokenizer, domains=["conversation"])


def test_a_dataset_without_end_and_an_article_without_end(hub: Hub, tokenizer: Any) -> None:
    taken = count()

    def rows() -> Iterator[Any]:
        while True:
            yield {"article": f"{next(taken)} " + "la " * 400_000}

    hub.rows["abisee/cnn_dailymail"] = rows()
    found = fetch(tokenizer, 3, domains=["summarization", "summarization"]).prompts
    assert len(found) == 3
    assert next(taken) <= ROWS + 1
    assert all(len(each.text) < LONGEST for each in found)


@pytest.mark.parametrize("wrong", [{"article": 5}, {"article": None}, {"text": "a"}, {}, "article", None, ["article"]])
def test_a_row_that_is_made_otherwise(hub: Hub, tokenizer: Any, wrong: Any) -> None:
    hub.rows["abisee/cnn_dailymail"] = [row("abisee/cnn_dailymail", 0), wrong]
    with pytest.raises(DatasetUnusable, match=r"a row of abisee/cnn_dailymail has .* as its article, where a text"):
        fetch(tokenizer, domains=["summarization"])


def test_an_error_of_the_hub_at_once_and_between_rows(hub: Hub, tokenizer: Any) -> None:
    def broken() -> Iterator[Any]:
        yield row("tatsu-lab/alpaca", 0)
        raise TimeoutError("read\ntimed\x1bout")

    hub.rows["tatsu-lab/alpaca"] = broken()
    with pytest.raises(HubUnreachable, match=r"tatsu-lab/alpaca can't be had from the hub \(read timed\ufffdout\)"):
        fetch(tokenizer)
    hub.error = ConnectionError("no route")
    with pytest.raises(HubUnreachable, match=r"openai/openai_humaneval can't be had from the hub \(no route\): check"):
        fetch(tokenizer)


def test_without_the_package(no_package: None, tokenizer: Any) -> None:
    with pytest.raises(PackageMissing, match="the package datasets, which reads openai/openai_humaneval, isn't"):
        fetch(tokenizer)


def test_a_cut_text_is_counted_again() -> None:
    """Where a token is half a letter, and where the cut makes more tokens of the same words."""
    tokenizer = read(PAIRS["stdlib"].target).tokenizer
    for text in ("🐟" * 40, "naïve ✓ " * 30, "abc def " * 30, "x" * 100):
        for most in range(1, 24):
            found = cut(text, tokenizer, most)
            assert text.startswith(found)
            assert len(tokenizer.encode(found, add_special_tokens=False).ids) <= most
    assert cut("abc", tokenizer, 100) == "abc"


# sybil prompts


def table(out: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in rows if not cells[0].startswith("-")}


def test_a_table_of_lengths(hub: Hub, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert sybil("prompts", "--pair", "stdlib", "--count", 30) == 0
    out, error = capsys.readouterr()
    found = table(out)
    assert found.pop("domain") == ["n", "min", "mean", "max"]
    wanted = fetch(tokenizer, 30).lengths(tokenizer)
    assert found == {
        domain: [str(each.n), str(each.min), f"{each.mean:.1f}", str(each.max)] for domain, each in wanted.items()
    }
    assert "tokens by the tokenizer of stdlib; prompts: hub, seed 0" in out
    assert error == ""


@pytest.mark.parametrize("missing", ["package", "network"])
def test_without_network_the_shipped_ones(
    missing: str, request: pytest.FixtureRequest, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing == "package":
        request.getfixturevalue("no_package")
    else:
        request.getfixturevalue("hub").error = ConnectionError("no route")
    assert sybil("prompts", "--pair", "stdlib", "--tiny", "--json") == 0
    out, error = capsys.readouterr()
    told = {"package": "isn't installed: pip install datasets", "network": "can't be had from the hub (no route)"}
    assert error.startswith("the prompts are those that ship with Sybil: ")
    assert told[missing] in error
    record = json.loads(out)
    lengths = PromptSet.load().sample(15).lengths(tokenizer)
    assert record["domains"] == {
        domain: {"n": each.n, "min": each.min, "mean": each.mean, "max": each.max} for domain, each in lengths.items()
    }
    assert (record["source"], record["seed"], record["tokenizer"], record["saved"]) == ("shipped", 0, "stdlib", None)
    assert sybil("prompts", "--pair", "stdlib", "--source", "hub") == 2
    assert told[missing] in capsys.readouterr().err


def test_shipped_prompts_ask_nobody(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.jsonl"
    arguments = ("prompts", "--pair", "stdlib", "--source", "shipped", "--domain", "code", "--count", 6, "--seed", 3)
    assert sybil(*arguments, "--save", path) == 0
    assert hub.asked == []
    out = capsys.readouterr().out
    assert list(table(out)) == ["domain", "code"]
    assert f"saved: {path}" in out
    assert PromptSet.load(path) == PromptSet.load().only(["code"]).sample(6, 3)
    before = path.read_bytes()
    assert sybil(*arguments, "--save", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["saved"] == str(tmp_path / "some-2.jsonl")
    assert path.read_bytes() == before


def test_a_file_of_ones_own(tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("Why?\nWhat is that?\n")
    assert sybil("prompts", path, "--pair", "stdlib") == 0
    out = capsys.readouterr().out
    assert table(out)["questions"][0] == "2"
    assert "prompts: files, seed 0" in out
    assert hub.asked == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--source", "web"), "source is 'web': use one of auto, hub, shipped"),
        (("mine.txt", "--source", "hub"), "source is 'hub' and mine.txt is a file of your own"),
        (("--tiny", "--count", 3), "count is 3 and a tiny set has 15 prompts"),
        (("--count", 0), "count is 0: use an integer of 1 or more"),
        (("--domain", "prose"), "there is no domain 'prose' on the hub: use code, conversation, summarization"),
        (("--domain", "prose", "--source", "shipped"), "there is no domain 'prose': the domains are code"),
        (("mine.txt",), "mine.txt can't be read (No such file or directory)"),
        (("--save", "."), "save is ., which is a folder: name a file"),
        (
            ("--source", "shipped", "--save", "absent/a.jsonl"),
            "save is absent/a.jsonl, and absent is no folder",
        ),
        (("--pair", "nobody"), "there is no pair 'nobody'"),
    ],
)
def test_what_can_not_be_done_is_one_line(
    arguments: tuple[object, ...], told: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    pair = () if "--pair" in arguments else ("--pair", "stdlib")
    assert sybil("prompts", *arguments, *pair) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_the_origins_are_those_of_the_domains() -> None:
    assert tuple(ORIGINS) == DOMAINS
    assert hub_prompts.ORIGINS["summarization"].request == REQUEST
