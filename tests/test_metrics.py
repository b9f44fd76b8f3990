"""--metrics-file: what was decoded, in Prometheus' text format, read here by a strict parser of that format."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
from talker import talker
from tiny import gpt2, perturbed, save, sybil

from sybil.errors import InvalidSetting
from sybil.measuring.metrics import Metrics, MetricsFile, escaped
from sybil.results import Step, Timings

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')
SAMPLE = re.compile(rf"({NAME})\{{(.*)\}} (\S+)")
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Samples:
    """The samples of an exposition, or ValueError: each family announced by HELP and TYPE, its samples together, labels
    escaped, no sample twice; counters end in _total; a histogram's buckets ascend to +Inf, which is its count."""
    if not text.endswith("\n"):
        raise ValueError("the last line is not ended")
    kinds: dict[str, str] = {}
    found: Samples = {}
    family, helped = "", ""
    for line in text.removesuffix("\n").split("\n"):
        if helpful := re.fullmatch(rf"# HELP ({NAME}) (?:[^\\\n]|\\\\|\\n)+", line):
            helped = helpful[1]
        elif typed := re.fullmatch(rf"# TYPE ({NAME}) (counter|histogram)", line):
            family = typed[1]
            if family in kinds or family != helped:
                raise ValueError(f"{family} is announced twice, or without help")
            kinds[family] = typed[2]
            if typed[2] == "counter" and not family.endswith("_total"):
                raise ValueError(f"{family} is a counter")
        elif sample := SAMPLE.fullmatch(line):
            name, told, value = sample.groups()
            suffixes = ("",) if kinds.get(family) == "counter" else ("_bucket", "_sum", "_count")
            if name not in {family + suffix for suffix in suffixes}:
                raise ValueError(f"{name} stands in {family}")
            labels = LABEL.findall(told)
            if ",".join(f'{label}="{text}"' for label, text in labels) != told:
                raise ValueError(f"{told} are no labels")
            key = name, tuple(labels)
            if key in found or not (math.isfinite(float(value)) and float(value) >= 0):
                raise ValueError(f"{line}: twice, or no number")
            found[key] = float(value)
        else:
            raise ValueError(f"{line!r} is no line of the format")
    for name in (name for name, kind in kinds.items() if kind == "histogram"):
        buckets = [(dict(labels)["le"], value) for (each, labels), value in found.items() if each == f"{name}_bucket"]
        bounds, counts = [float(bound) for bound, _ in buckets], [count for _, count in buckets]
        (total,) = (value for (each, _), value in found.items() if each == f"{name}_count")
        if bounds != sorted(set(bounds)) or bounds[-1] != math.inf or counts != sorted(counts) or counts[-1] != total:
            raise ValueError(f"{name} is no histogram")
    return found


def by_name(text: str) -> dict[str, float]:
    """A value a name; of a name with positions, name/position."""
    return {
        "/".join([name, *(value for label, value in labels if label == "position")]): value
        for (name, labels), value in parsed(text).items()
        if "le" not in dict(labels)
    }


def step(
    tokens: list[tuple[int, ...]], accepted: list[int], proposed: list[int], seconds: float, read: int = 0
) -> Step:
    rows = len(tokens)
    prefilled = (read,) * rows if read else ()
    return Step(
        tuple(tokens), tuple(accepted), tuple(proposed), (None,) * rows, Timings(verify=seconds), prefilled=prefilled
    )


def test_a_generation_is_counted_as_vllm_counts() -> None:
    metrics = Metrics("target")
    steps = [
        step([(1, 2, 3), (1,)], [2, 0], [4, 4], 0.5, read=7),
        step([(4,), (2, 3)], [0, 1], [0, 2], 0.25),  # nothing was proposed for the first row: no draft
        step([(5, 6, 7, 8, 9), ()], [4, 0], [4, 0], 0.0625),  # the second row has ended
    ]
    metrics.observe(steps)
    found = by_name(metrics.text())
    pos = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert {name: value for name, value in found.items() if "spec_decode" in name} == {
        "vllm:spec_decode_num_drafts_total": 4,
        "vllm:spec_decode_num_draft_tokens_total": 14,
        "vllm:spec_decode_num_accepted_tokens_total": 7,
        f"{pos}/0": 3,
        f"{pos}/1": 2,
        f"{pos}/2": 1,
        f"{pos}/3": 1,
    }
    assert (found["vllm:prompt_tokens_total"], found["vllm:generation_tokens_total"]) == (14, 12)
    assert found["vllm:time_to_first_token_seconds_count"] == 2
    assert found["vllm:time_to_first_token_seconds_sum"] == 1.0
    assert found["vllm:inter_token_latency_seconds_count"] == 3
    assert found["vllm:inter_token_latency_seconds_sum"] == 0.25 + 0.25 + 0.0625
    before = metrics.text()
    metrics.observe(steps)
    assert all(value == 2 * found[name] for name, value in by_name(metrics.text()).items())
    assert before != metrics.text()


def test_a_value_on_a_bound_is_within_it() -> None:
    metrics = Metrics("target")
    metrics.observe([step([(1,)], [0], [0], 0.25)])
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in parsed(metrics.text()).items()
        if name == "vllm:time_to_first_token_seconds_bucket"
    }
    assert (buckets["0.1"], buckets["0.25"], buckets["+Inf"]) == (0, 1, 1)


def test_what_was_never_decoded_is_zero() -> None:
    found = by_name(Metrics("target").text())
    assert set(found.values()) == {0}
    assert "vllm:spec_decode_num_drafts_total" in found


@pytest.mark.parametrize("name", ["plain", 'a "quoted" name', "back\\slash\\", "two\nlines", 'x",le="1', "日本"])
def test_names_of_models_are_escaped(name: str) -> None:
    (labels,) = {labels for (each, labels) in parsed(Metrics(name).text()) if each == "vllm:prompt_tokens_total"}
    value = dict(labels)["model_name"]
    assert value == escaped(name)
    assert re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), value) == name


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("# TYPE vllm:prompt_tokens_total counter\n", ""),
        ("# HELP vllm:prompt_tokens_total", "# HELP vllm:other_total"),
        ("generation_tokens_total", "generation_tokens"),
        ('model_name="target"', "model_name=target"),
        ('model_name="target"', 'model_name="tar"get"'),
        (",engine", ", engine"),
        ('le="+Inf"', 'le="9"'),
        ("_sum{", "_total{"),
        (" 0\n", " NaN\n"),
        ("# HELP vllm:generation", "\n# HELP vllm:generation"),
    ],
)
def test_the_parser_is_strict(there: str, instead: str) -> None:
    text = Metrics("target").text()
    assert there in text
    with pytest.raises(ValueError, match=r" (is|are|stands) |: twice"):
        parsed(text.replace(there, instead))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(gpt2(), root / "target")
    save(perturbed(gpt2(), 0.05), root / "draft")
    return root


def pair(folders: Path) -> tuple[object, ...]:
    return ("--target", folders / "target", "--draft", folders / "draft", "--dtype", "float64")


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_generate_writes_what_it_decoded(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    path = tmp_path / "sybil.prom"
    arguments = ("generate", "abc", *pair(folders), "--max-new-tokens", 12, "--gamma", 4, "--metrics-file", path)
    assert sybil(*arguments, *more) == 0
    found = by_name(path.read_text())
    capsys.readouterr()
    assert sybil(*arguments, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert found["vllm:generation_tokens_total"] == len(record["tokens"])
    assert found["vllm:spec_decode_num_draft_tokens_total"] == record["proposed"]
    assert found["vllm:spec_decode_num_accepted_tokens_total"] == record["accepted"]
    assert found["vllm:inter_token_latency_seconds_count"] == record["rounds"] - 1
    assert [each.name for each in tmp_path.iterdir()] == ["sybil.prom"]


def test_chat_adds_up_its_answers_whatever_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sybil.prom"
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n/reset\na\n"))
    assert sybil("chat", "--target", talker(tmp_path / "talker"), "--metrics-file", path) == 0
    found = by_name(path.read_text())
    assert found["vllm:time_to_first_token_seconds_count"] == 2
    assert found["vllm:generation_tokens_total"] == 6  # "hi" and the end token, twice


def test_a_file_that_can_not_be_written_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for path, said in (
        (tmp_path, "is a folder: name a file"),
        (tmp_path / "none" / "m.prom", "is no folder"),
        (tmp_path / "file" / "m.prom", "is no folder"),
        (Path(os.devnull), "is no plain file"),
    ):
        for command in (("generate", "abc"), ("chat",), ("profile",)):
            assert sybil(*command, "--pair", "stdlib", "--metrics-file", path) == 2
            line = capsys.readouterr().err
            assert line.startswith("sybil: metrics_file is ")
            assert said in line
            assert line.count("\n") == 1


def test_a_disk_that_fills_up_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricsFile(tmp_path / "m.prom", "target")
    file.add([step([(1,)], [0], [0], 0.5, read=3)])
    before = (tmp_path / "m.prom").read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidSetting, match=r"metrics_file is .*No space left on device"):
        file.add([step([(1,)], [0], [0], 0.5)])
    assert (tmp_path / "m.prom").read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["m.prom"]
