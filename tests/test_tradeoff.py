"""sybil tradeoff: its metrics of texts, its rows and what they come to, its picture, and the command itself.

One statistical test, with a fixed seed: lossless decoders' drift is within four standard deviations of zero, which
holds but for one seed in 15,000 each; the planted rule is 15 and more away."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from tiny import gpt2, perturbed, save, sybil

from sybil.errors import PromptTooLong, ResultsMismatch, UnsupportedModel
from sybil.losslessness.checks import Drift, drift, drift_of
from sybil.losslessness.evidence import NOTHING
from sybil.measuring.prompts import Prompt
from sybil.measuring.timing import Interval
from sybil.reports import tradeoff as picture
from sybil.trading import metrics
from sybil.trading import run as running
from sybil.trading.candidates import PLAIN, TradeoffCandidate, candidates
from sybil.trading.rows import GREEDY, SAMPLED, Said, Trade, TradeoffRow, read
from sybil.trading.run import Tradeoff
from sybil.trading.summaries import TradeoffPoint, front, summarise

TEXTS = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=5)
WORDS = ("abc", "hello w", "zyx", "qq", "m", "a b c", "the end", "ok then")
PROMPTS = [Prompt(str(number), "letters", text) for number, text in enumerate(WORDS)]


# --- metrics


@settings(max_examples=30)
@given(TEXTS, st.integers(1, 4))
def test_distinct_counts_different_runs(texts: list[list[int]], n: int) -> None:
    found = metrics.distinct(texts, n)
    runs = [text[i : i + n] for text in texts for i in range(len(text)) if i + n <= len(text)]
    assert found == (len({str(run) for run in runs}) / len(runs) if runs else 0.0)
    assert 0 <= found <= 1
    assert metrics.distinct(texts[::-1], n) == found
    if runs:
        assert metrics.distinct([*texts, *texts], n) == pytest.approx(found / 2)


@settings(max_examples=30)
@given(TEXTS)
def test_repetition_is_what_stood_in_the_same_text_before(texts: list[list[int]]) -> None:
    seen = [tuple(text[i : i + 4]) in {tuple(text[j : j + 4]) for j in range(i)} for text in texts
            for i in range(len(text) - 3)]  # fmt: skip
    assert metrics.repetition(texts) == (sum(seen) / len(seen) if seen else 0.0)
    assert metrics.repetition([*texts, *texts]) == pytest.approx(metrics.repetition(texts))
    assert metrics.repetition([list(range(9))]) == 0.0
    assert metrics.repetition([[7] * 8]) == 4 / 5


@settings(max_examples=30)
@given(TEXTS, st.data())
def test_agreement_is_the_share_before_the_first_difference(texts: list[list[int]], data: st.DataObject) -> None:
    whole = sum(map(len, texts))
    assert metrics.agreement(texts, texts) == (1.0 if whole else 0.0)
    if not whole:
        return
    row = data.draw(st.sampled_from([row for row, text in enumerate(texts) if text]))
    place = data.draw(st.integers(0, len(texts[row]) - 1))
    changed = [list(text) for text in texts]
    changed[row][place] += 1
    assert metrics.agreement(changed, texts) == pytest.approx(1 - (len(texts[row]) - place) / whole)
    assert metrics.agreement([[*text, 9] for text in texts], texts) == 1.0  # what comes after the reference's end


# --- candidates, rows


def test_every_candidate_has_a_name_of_its_own_and_lossless_ones_are_named() -> None:
    with_draft, without = candidates("draft", 512), candidates(None, 64)
    for found in (with_draft, without):
        names = [each.name for each in found]
        assert len(set(names)) == len(names)
        assert names[0] == PLAIN
        assert {each.family for each in found} == {*picture.LOOKS}
    assert [each.name for each in with_draft if each.lossless] == ["plain", "draft", "self", "lookup"]
    assert [each.name for each in with_draft if each.family == "quantised"] == ["q8_0", "q5_k", "q4_k"]
    assert [each.name for each in without if each.family == "quantised"] == ["q8_0", "q5_1", "q4_0"]
    assert {each.drafter for each in without if each.rule != "token"} == {"self"}
    assert {each.label for each in with_draft if each.family == "topk"} == {"2", "5", "20"}


TRADE = Trade(target="t", draft="d", max_new_tokens=4, prompts="0" * 16, device="cpu")
CANDIDATES = {
    each.name: each
    for each in (
        TradeoffCandidate(PLAIN, "plain"),
        TradeoffCandidate("self", "lossless", "self"),
        TradeoffCandidate("lenience:0.2", "lenience", "draft", "lenience:0.2"),
        TradeoffCandidate("q4_0", "quantised", dtype="q4_0"),
    )
}


def row(candidate: str, prompt: str = "a", mode: str = GREEDY, **other: Any) -> TradeoffRow:
    said = Said(judged=4, log_prob=-8.0, entropy=8.0, variance=4.0) if mode == SAMPLED else None
    known: dict[str, Any] = dict(
        trade=TRADE, candidate=candidate, mode=mode, prompt=prompt, domain="x", prompt_tokens=3, tokens=[1, 2, 3, 4],
        seconds=0.4, rounds=4, said=said, environment={"commit": "c"},
    )  # fmt: skip
    return TradeoffRow(**{**known, **other})


def rows_of(prompts: Sequence[str] = ("a", "b")) -> list[TradeoffRow]:
    return [row(name, prompt, mode) for prompt in prompts for name in CANDIDATES for mode in (GREEDY, SAMPLED)]


def written(path: Path, rows: Sequence[TradeoffRow], end: str = "") -> Path:
    path.write_text("".join(each.model_dump_json() + "\n" for each in rows) + end)
    return path


def test_rows_come_back_as_they_were_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    rows = rows_of()
    path = written(tmp_path / "rows.jsonl", rows, '{"trade": {"tar')
    assert read(path, TRADE) == rows
    assert path.read_text() == "".join(each.model_dump_json() + "\n" for each in rows)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokens": []}, "line 1, is no row"),
        ({"tokens": [-1]}, "line 1, is no row"),
        ({"tokens": ["1"]}, "line 1, is no row"),
        ({"tokens": [10**30]}, "line 1, is no row"),
        ({"seconds": 0}, "line 1, is no row"),
        ({"seconds": "NaN"}, "line 1, is no row"),
        ({"mode": "warm"}, "line 1, is no row"),
        ({"mode": "sampled"}, "line 1, is no row"),
        ({"said": {"judged": 0, "log_prob": 0.0, "entropy": 0.0, "variance": 0.0}}, "line 1, is no row"),
        ({"more": 1}, "line 1, is no row"),
        ({"trade": {**TRADE.model_dump(), "seed": 3}}, "seed=3, this run asks for seed=0"),
        ({"trade": {**TRADE.model_dump(), "draft": None}}, "draft=None, this run asks for draft='d'"),
    ],
)
def test_a_file_is_not_believed_unchecked(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = json.dumps({**row(PLAIN).model_dump(mode="json"), **change}) + "\n{torn"
    path.write_text(text)
    with pytest.raises(ResultsMismatch) as raised:
        read(path, TRADE)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert path.read_text() == text  # left alone


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe\n", b"[" * 5000 + b"\n"):
        (tmp_path / "rows.jsonl").write_bytes(content)
        with pytest.raises(ResultsMismatch):
            read(tmp_path / "rows.jsonl", TRADE)
    with pytest.raises(ResultsMismatch, match="can't be resumed"):
        read(tmp_path / "nothing.jsonl", TRADE)


# --- what rows come to


def test_a_point_is_what_its_rows_come_to() -> None:
    rows = rows_of()
    rows[2] = row("self", "a", GREEDY, seconds=0.2, tokens=[1, 2, 9, 4])
    rows[3] = row("self", "a", SAMPLED, seconds=0.2, proposed=6, accepted=3,
                  said=Said(judged=4, log_prob=-4.0, entropy=8.0, variance=12.0))  # fmt: skip
    plain, drafted, *_ = summarise(rows, CANDIDATES)
    assert (plain.tokens_per_second, plain.over_plain) == (10.0, Interval(1, 1, 1))
    assert plain.drift == Drift(0.0, pytest.approx(-1.96 * math.sqrt(8) / 8), pytest.approx(1.96 * math.sqrt(8) / 8))
    assert (plain.perplexity, plain.agreement, plain.same_texts) == (pytest.approx(math.exp(2)), 1.0, 2)
    assert (plain.distinct, plain.repetition, plain.acceptance_rate) == ((0.5, 0.5, 0.5), 0.0, None)
    assert drafted.drift.value == pytest.approx(4 / 8)
    assert drafted.drift.high == pytest.approx(4 / 8 + 1.96 * 4 / 8)
    assert drafted.perplexity == pytest.approx(math.exp(12 / 8))
    assert drafted.tokens_per_second == pytest.approx(1e3 / 75)  # 50 and 100 ms a token
    assert drafted.over_plain.value == pytest.approx(1.5)
    assert (drafted.agreement, drafted.same_texts, drafted.acceptance_rate) == (6 / 8, 1, 0.5)


def test_only_prompts_that_all_have_finished_count() -> None:
    rows = rows_of(("a", "b", "c"))
    assert {point.prompts for point in summarise(rows[:-1], CANDIDATES)} == {2}
    assert summarise(rows[:7], CANDIDATES) == []


def test_the_drift_is_the_judges() -> None:
    generator = np.random.default_rng(0)
    log_prob, entropy, variance = -generator.random(9), generator.random(9), generator.random(9)
    evidence = replace(NOTHING, tail=log_prob, log_prob=log_prob, entropy=entropy, variance=variance)
    found = drift_of(float((log_prob + entropy).sum()), float(variance.sum()), 9)
    assert drift(evidence) == found
    assert found.value == pytest.approx(float((log_prob + entropy).mean()))


def point(name: str, family: str, speed: float, value: float, half: float = 0.1) -> TradeoffPoint:
    one = Interval(1.0, 1.0, 1.0)
    return TradeoffPoint(
        candidate=TradeoffCandidate(name, family), prompts=2, tokens=9, tokens_per_second=speed, over_plain=one,  # type: ignore[arg-type]
        acceptance_rate=None, drift=Drift(value, value - half, value + half), perplexity=9.0,
        distinct=(0.1, 0.2, 0.3), repetition=0.0, greedy_tokens_per_second=speed, greedy_over_plain=one,
        agreement=1.0, same_texts=2,
    )  # fmt: skip


def test_the_front_holds_what_nothing_beats() -> None:
    plain, lossless = point("plain", "plain", 10, 0.05), point("self", "lossless", 18, -0.08)
    fast, near = point("topk:5", "topk", 40, 0.5), point("q8_0", "quantised", 30, -0.01)
    slow, twin = point("typical:0.3", "typical", 17, 0.001), point("q5_1", "quantised", 30, 0.02)
    assert front([plain, lossless, fast, near, slow, twin]) == [fast, near, lossless]
    assert lossless.distance == 0


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-5, 5)), min_size=1, max_size=9))
def test_every_point_off_the_front_is_beaten_by_one_on_it(pairs: list[tuple[int, int]]) -> None:
    points = [point(f"topk:{number}", "topk", speed, value / 10) for number, (speed, value) in enumerate(pairs)]
    best = front(points)
    for one, other in itertools.permutations(best, 2):
        assert not (other.tokens_per_second >= one.tokens_per_second and other.distance <= one.distance)
    for each in points:
        assert any(one.tokens_per_second >= each.tokens_per_second and one.distance <= each.distance for one in best)


# --- the picture


def crowded() -> list[TradeoffPoint]:
    """Nineteen candidates, half of them nearly in one place."""
    found = candidates("d", 64)
    generator = np.random.default_rng(1)
    near = generator.normal([50, 0.1], [1.0, 0.02], (10, 2)).tolist()
    far = generator.uniform([20, -0.6], [100, 0.6], (len(found) - 10, 2)).tolist()
    return [point(each.name, each.family, speed, value) for each, (speed, value) in zip(found, near + far, strict=True)]


def test_no_label_covers_another_or_is_cut_off() -> None:
    figure = picture.draw(crowded(), "caption")
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]  # Agg's
    (axes,) = figure.axes
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # without the line to its point
    texts = [text.get_text() for text in axes.texts]
    assert sorted(texts) == sorted(each.candidate.label for each in crowded())
    for one, other in itertools.combinations(range(len(boxes)), 2):
        assert not boxes[one].padded(-0.5).overlaps(boxes[other].padded(-0.5)), (texts[one], texts[other])
    for box in [*boxes, *(text.get_window_extent(renderer) for text in figure.texts)]:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_the_picture_is_written_as_png_and_svg_and_its_numbers_as_csv(tmp_path: Path) -> None:
    points = [point("plain", "plain", 10, 0.05), point("self", "lossless", 18, -0.08), point("topk:5", "topk", 9, 0.5)]
    picture.pareto(points, "a $caption_1", tmp_path / "chart.png")
    picture.table(points, tmp_path / "chart.csv")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "chart.svg").read_bytes()
    with (tmp_path / "chart.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["candidate"] for line in lines] == ["plain", "self", "topk:5"]
    assert [line["on_front"] for line in lines] == ["False", "True", "False"]
    assert float(lines[2]["drift"]) == 0.5
    assert lines[0]["acceptance_rate"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chart.csv", "chart.png", "chart.svg"]


# --- the run


FEW = ("plain", "draft", "self", "lookup", "lenience:0.05", "topk:20", "q8_0", "q4_0")


def few(draft: str | None, width: int) -> tuple[TradeoffCandidate, ...]:
    return tuple(each for each in candidates(draft, width) if each.name in FEW)


@pytest.fixture(scope="module", autouse=True)
def _few() -> Iterator[None]:
    """Some of the candidates run, of every kind: the others differ in a rule's name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "candidates", few)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    save(gpt2(), root / "target")
    save(perturbed(gpt2(), 0.3), root / "draft")
    lines = [json.dumps({"text": text}) for text in WORDS]
    (root / "prompts.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def run(folders: Path) -> Tradeoff:
    return Tradeoff(
        Trade(
            target=str(folders / "target"), draft=str(folders / "draft"), max_new_tokens=40, prompts="x", device="cpu"
        )
    )


@pytest.fixture(scope="module")
def measured(run: Tradeoff) -> list[TradeoffRow]:
    return list(run.rows(PROMPTS))


def test_every_prompt_meets_every_candidate_in_alternating_order(run: Tradeoff, measured: list[TradeoffRow]) -> None:
    assert run.left_out == {}
    assert tuple(run.candidates) == FEW
    order = [(name, mode) for name in run.candidates for mode in (GREEDY, SAMPLED)]
    found = [(each.candidate, each.mode) for each in measured]
    assert found == [*order, *reversed(order)] * 4


def test_lossless_candidates_say_what_plain_decoding_says_and_do_not_drift(
    run: Tradeoff, measured: list[TradeoffRow]
) -> None:
    points = {each.candidate.name: each for each in summarise(measured, run.candidates)}
    for each in points.values():
        deviation = (each.drift.high - each.drift.value) / 1.96
        if each.candidate.lossless:
            assert (each.agreement, each.same_texts) == (1.0, 8)
            assert abs(each.drift.value) < 4 * deviation
    strong = points["lenience:0.05"]
    assert strong.drift.value < -3 * (strong.drift.high - strong.drift.value) / 1.96
    assert strong.same_texts < 8
    assert points["topk:20"].same_texts < 8
    assert points["q8_0"].acceptance_rate is None
    assert points["self"].acceptance_rate is not None


def test_what_is_done_is_not_done_again(run: Tradeoff, measured: list[TradeoffRow]) -> None:
    done = frozenset(each.key for each in measured[:-3])
    again = list(run.rows(PROMPTS, done))
    assert [each.key for each in again] == [each.key for each in measured[-3:]]
    assert [each.tokens for each in again] == [each.tokens for each in measured[-3:]]
    assert [each.said for each in again] == [each.said for each in measured[-3:]]


def test_a_prompt_that_leaves_no_room_is_refused_before_anything_runs(run: Tradeoff) -> None:
    long = Prompt("long", "letters", "a" * 33)
    with pytest.raises(PromptTooLong, match="prompt long has 33 tokens and max_new_tokens is 40"):
        next(run.rows([PROMPTS[0], long]))


def test_a_candidate_that_can_t_be_had_is_left_out(run: Tradeoff, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: Any, **settings: Any) -> Any:
        if settings["dtype"] == "q4_0":
            raise UnsupportedModel("no blocks for it")
        return run.decoder

    monkeypatch.setattr(running, "load", refusing)
    other = Tradeoff(run.trade)
    assert other.left_out == {"q4_0": "no blocks for it"}
    assert "q4_0" not in other.candidates
    assert other.total(PROMPTS) == 8 * 2 * len(other.candidates)


# --- the command


def command(folders: Path, out: Path, *arguments: object) -> tuple[object, ...]:
    models = ("--target", folders / "target", "--draft", folders / "draft", "--device", "cpu")
    return (
        "tradeoff",
        *models,
        "--prompts",
        folders / "prompts.jsonl",
        "--out",
        out,
        "--max-new-tokens",
        8,
        *arguments,
    )


def test_the_command_interrupted_goes_on_to_the_same_rows(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said, made = running.Tradeoff._said, SimpleNamespace(count=0)

    def interrupted(self: Tradeoff, *arguments: Any) -> Said:
        made.count += 1
        if made.count == 11:
            raise KeyboardInterrupt
        return said(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(running.Tradeoff, "_said", interrupted)
        assert sybil(*command(folders, tmp_path, "--count", 2)) == 130
    out = capsys.readouterr().out
    assert "go on with --resume" in out
    assert out.count("| plain ") == 2  # of the prompt that all have finished
    assert out.count(" yes |") == 4
    assert "there a lossless decoder's drift is 0, as is proved" in out
    (path,) = tmp_path.glob("*.jsonl")
    kept = path.read_text().splitlines()
    assert 16 < len(kept) < 32  # one prompt of 8 candidates in two modes, and part of the other
    assert sybil(*command(folders, tmp_path, "--count", 2, "--resume", path, "--json")) == 0
    record = json.loads(capsys.readouterr().out)
    lines = path.read_text().splitlines()
    assert lines[: len(kept)] == kept
    keys = [(each["prompt"], each["candidate"], each["mode"]) for each in map(json.loads, lines)]
    assert len(keys) == len(set(keys)) == 32
    for suffix in (".png", ".svg", ".csv"):
        assert path.with_suffix(suffix).exists()
    assert [each["candidate"] for each in record["points"]] == [*FEW]
    assert {each["candidate"] for each in record["points"] if each["lossless"]} == {"plain", "draft", "self", "lookup"}
    assert record["trade"]["max_new_tokens"] == 8

    assert sybil(*command(folders, tmp_path, "--count", 2, "--resume", path, "--seed", 4)) == 2
    assert "seed=0, this run asks for seed=4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--max-new-tokens", 0), "max_new_tokens is 0: use an integer of 1 or more"),
        (("--count", 0), "count is 0"),
        (("--seed", -1), "seed is -1: use an integer of 0 or more"),
        (("--resume", "nothing.jsonl"), "can't be resumed"),
        (("--device", "cuda:77"), "cuda:77"),
        (("--max-new-tokens", 63), "more together than the context of 64"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[object, ...], told: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sybil(*command(folders, tmp_path / "out", *arguments)) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))
