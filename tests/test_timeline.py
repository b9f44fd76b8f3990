"""The timeline of a text's rounds: spans by the loop's own clock, a trace that keeps to its format, and the picture."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import gpt2, letters, perturbed, save, sybil

import sybil as library
from sybil.measuring.timeline import TRACKS, Round, rounds_of, trace, waits
from sybil.reports.timeline import timeline as draw
from sybil.results import Step, Timings


def step(tokens: tuple[int, ...], accepted: int, proposed: int, seconds: Timings, finished: str | None = None) -> Step:
    return Step((tokens,), (accepted,), (proposed,), (finished,), seconds)  # type: ignore[arg-type]


STEPS = [
    step((1, 2, 3), 2, 4, Timings(prefill=0.5, draft=0.25, verify=1.0, sample=0.125, other=0.0625)),
    step((4,), 0, 4, Timings(draft=0.25, verify=1.0, sample=0.125, other=0.0625)),
    step((5, 6, 7, 8, 9), 4, 4, Timings(draft=0.25, verify=1.0, sample=0.125, other=0.0625)),
    step((10, 11), 2, 3, Timings(draft=0.25, verify=2.0, sample=0.125, other=0.0625), "length"),
]


def test_spans_follow_each_other_by_the_loops_clock() -> None:
    rounds = rounds_of(STEPS)
    spans = [span for each in rounds for span in each.spans]
    assert [span.phase for span in rounds[0].spans] == ["prefill", "draft", "verify", "sample", "other"]
    assert [span.phase for span in rounds[1].spans] == ["draft", "verify", "sample", "other"]
    assert spans[0].begin == 0
    assert all(one.end == other.begin for one, other in itertools.pairwise(spans))
    assert spans[-1].end == sum(each.timings.total for each in STEPS)
    assert [(each.number, each.place, each.proposed, each.accepted) for each in rounds] == [
        (1, 0, 4, 2), (2, 3, 4, 0), (3, 4, 4, 4), (4, 9, 3, 2),
    ]  # fmt: skip


def test_a_rejection_is_where_the_targets_token_stands() -> None:
    """Not where all were accepted, and not where the text ended before the rest was looked at."""
    assert [each.rejected for each in rounds_of(STEPS)] == [True, True, False, False]


def test_who_waits_for_whom_adds_up_to_the_text() -> None:
    found = waits(rounds_of(STEPS))
    assert list(found.values()) == [1.0, 5.5, 0.75]  # for the draft; for the target, the prompt too; for the rest
    assert sum(found.values()) == sum(each.timings.total for each in STEPS)


def test_texts_of_rounds_are_the_whole_text() -> None:
    rounds = rounds_of(STEPS, letters())
    assert "".join(each.text for each in rounds) == letters().decode(list(range(1, 12)))
    assert rounds[1].text == letters().decode([4])


def wrong(record: Any) -> list[str]:
    """What a JSON object in the Trace Event Format has that the format doesn't allow, or lacks."""
    found = []
    names = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    named = set()
    if record.get("displayTimeUnit") not in ("ms", "ns"):
        found.append("displayTimeUnit is ms or ns")
    for event in record["traceEvents"]:
        if not isinstance(event.get("name"), str) or not isinstance(event.get("args"), dict):
            found.append("an event has a name and args")
        if not all(type(event.get(each)) is int for each in ("pid", "tid")):
            found.append("pid and tid are integers")
        if event.get("ph") == "M":
            if names.get(event["name"]) not in event["args"]:
                found.append(f"{event['name']} is metadata of another name")
            if event["name"] == "thread_name":
                named.add((event["pid"], event["tid"]))
        elif event.get("ph") == "X":
            times = event.get("ts"), event.get("dur")
            if not all(isinstance(each, int | float) and each >= 0 for each in times):
                found.append("a complete event has ts and dur in microseconds")
                continue
            threads.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
        else:
            found.append(f"ph is {event.get('ph')!r}")
    for thread, spans in threads.items():
        if thread not in named:
            found.append(f"thread {thread} has no name")
        if any(end > begin + 1e-6 for (_, end), (begin, _) in itertools.pairwise(sorted(spans))):
            found.append(f"spans of {thread} overlap")
    return found


def test_the_trace_keeps_to_its_format() -> None:
    record = json.loads(json.dumps(trace(rounds_of(STEPS, letters()), 'a "title"')))
    assert wrong(record) == []
    spans = [event for event in record["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == 17
    first, last = spans[0], spans[-1]
    assert (first["name"], first["ts"], first["dur"], first["args"]["waiting"]) == ("prefill", 0, 500_000, "draft")
    assert (last["name"], last["ts"] + last["dur"]) == ("other", 7_250_000)
    assert {key: last["args"][key] for key in ("round", "proposed", "accepted", "tokens", "text")} == {
        "round": 4, "proposed": 3, "accepted": 2, "tokens": [10, 11], "text": letters().decode([10, 11]),
    }  # fmt: skip
    tracks = {event["tid"]: event["args"]["name"] for event in record["traceEvents"] if event["name"] == "thread_name"}
    assert list(tracks.values()) == ["target", "draft", "sampling"]
    assert all(tracks[event["tid"]] == TRACKS[event["name"]] for event in spans)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda events: events[-1].update(ph="B"),
        lambda events: events[-1].update(ts=-1),
        lambda events: events[-1].pop("dur"),
        lambda events: events[-1].update(tid="3"),
        lambda events: events[-1].update(tid=4),
        lambda events: events[0].update(name="process_title"),
        lambda events: events[7].update(dur=events[7]["dur"] + 9e6),
    ],
)
def test_what_breaks_the_format_is_seen(spoil: Callable[[list[dict[str, Any]]], None]) -> None:
    record = copy.deepcopy(trace(rounds_of(STEPS), "spoilt"))
    spoil(record["traceEvents"])
    assert wrong(record)


@pytest.mark.parametrize("steps", [STEPS, STEPS * 5, STEPS[:1], [step((1,), 0, 0, Timings(0.1, 0.1, 0.1, 0.1, 0.1))]])
def test_the_picture_is_drawn(steps: list[Step], tmp_path: Path) -> None:
    draw(rounds_of(steps), "a caption with $ and _", tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(gpt2(context=128), root / "target")
    save(perturbed(gpt2(context=128), 0.05), root / "draft")
    return root


def test_a_generations_rounds_are_its_steps(folders: Path) -> None:
    """Of a real loop: every token once, and the seconds of the whole."""
    decoder = library.load(folders / "target", draft=folders / "draft", dtype="float64", device="cpu")
    steps = list(decoder.stream("abc", max_new_tokens=40, gamma=3))
    rounds: list[Round] = rounds_of(steps, decoder.tokenizer)
    tokens = [token for each in rounds for token in each.tokens]
    assert tokens == [token for each in steps for token in each.tokens[0]]
    assert "".join(each.text for each in rounds) == letters().decode(tokens)
    assert rounds[-1].end == pytest.approx(sum(each.timings.total for each in steps))
    assert wrong(trace(rounds, "tiny")) == []


def test_profile_leaves_a_trace_a_picture_and_metrics(
    folders: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models = ("--target", folders / "target", "--draft", folders / "draft", "--dtype", "float64")
    out, metrics = tmp_path / "out", tmp_path / "sybil.prom"
    assert sybil("profile", *models, "--passes", 1, "--gamma", 3, "--out", out, "--metrics-file", metrics) == 0
    printed = capsys.readouterr().out
    assert "| target waits for the draft" in printed
    (path,), (picture,) = out.glob("*.trace.json"), out.glob("*.timeline.png")
    assert str(path) in printed
    assert str(picture) in printed
    record = json.loads(path.read_text())
    assert wrong(record) == []
    spans = [event for event in record["traceEvents"] if event["ph"] == "X"]
    assert {event["name"] for event in spans} == set(TRACKS)
    generated = sum(len(event["args"]["tokens"]) for event in spans if event["name"] == "verify")
    assert f'vllm:generation_tokens_total{{model_name="{folders / "target"}",engine="0"}} {generated}\n' in (
        metrics.read_text()
    )
    (numbers,) = out.glob("*[0-9].json")
    total = sum(event["dur"] for event in spans) / 1e6
    assert sum(json.loads(numbers.read_text())["waits"].values()) == pytest.approx(total, rel=1e-3)
