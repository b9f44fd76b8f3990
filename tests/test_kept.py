"""Answers that are kept as they come: a run that was cut off and gone on with gives the report of the whole one and
asks nothing twice; a file of other settings, or none of ours, is refused in a line and left as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_losslessness import ALPHABET, CHAIN, DRAFT, PLAN, PROMPTS, Drawing, Speculating, Tabled, chain
from test_losslessness import prompts as tensors
from tiny import gpt2, in_sybil, letters, perturbed

from sybil import Decoder
from sybil.drafting import DraftModel
from sybil.errors import ResultsMismatch
from sybil.losslessness import kept as keeping
from sybil.losslessness.evidence import Reference
from sybil.losslessness.judge import Plan, Report, verify
from sybil.losslessness.kept import Kept
from sybil.losslessness.samples import Request, Sample, Subject
from sybil.losslessness.speculation import Speculation
from sybil.losslessness.subjects import CallableSubject, SybilSubject, TransformersSubject, derived


class Cut(Kept):
    """Ctrl-C after so many answers."""

    def __init__(self, path: Path, after: int) -> None:
        super().__init__(path)
        self.after = after

    def keep(self, key: str, phase: str, sample: Sample) -> None:
        if self.count == self.after:
            raise KeyboardInterrupt
        super().keep(key, phase, sample)


class Counted:
    """Another subject, and how many prompts it was asked for."""

    def __init__(self, subject: Any) -> None:
        self.name, self.batch, self.subject, self.asked = subject.name, getattr(subject, "batch", 1), subject, 0
        self.notes: list[str] = []

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int = 0) -> Iterator[Sample]:
        for sample in self.subject.sample(prompts, request, seed, first):
            self.asked += 1
            yield sample


class Numbered(Speculating):
    """Can be asked from any prompt on."""

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int = 0) -> Iterator[Sample]:
        for index, prompt in enumerate(prompts, start=first):
            (sample,) = super().sample([prompt], request, derived(seed, index))
            yield replace(
                sample,
                speculation=Speculation(9, 3, "itself"),
                doubt="why?" * (index == 11 and not request.temperature),
            )


LITTLE = Plan(
    request=Request(max_new_tokens=8, eos_token_ids=(0,)), repeats=2, greedy=3, stopping=2, widths=0, resolution=3
)
TEXTS = [prompt.tolist() for prompt in tensors([3, 7, 5, 9, 4, 6])]


def of_sybil() -> SybilSubject:
    decoder = Decoder(in_sybil(gpt2()), DraftModel(in_sybil(perturbed(gpt2(), 0.05))), letters(), frozenset({0}))
    return SybilSubject(decoder, gamma=3, batch=4)


def function(prompt: list[int], *, seed: int, **settings: Any) -> Any:
    request = Request(**{name: settings[name] for name in Request.__dataclass_fields__})
    (sample,) = TransformersSubject(gpt2(), letters()).sample([prompt], request, seed)
    return list(sample.tokens), None, (8, 2)


SUBJECTS = {
    "sybil": of_sybil,
    "transformers": lambda: TransformersSubject(gpt2(), letters(), batch=4),
    "prompt lookup": lambda: TransformersSubject(gpt2(), letters(), prompt_lookup=3),
    "function": lambda: CallableSubject(function, "function"),
}


def judged(subject: Subject, kept: Kept, plan: Plan = LITTLE) -> Report:
    return verify(subject, Reference(gpt2(), letters()), TEXTS, plan, kept=kept)


def chained(subject: Subject, kept: Kept | None, **settings: Any) -> Report:
    return verify(subject, Tabled(CHAIN, DRAFT), PROMPTS, replace(PLAN, **settings), kept=kept)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_run_that_was_cut_off_goes_on_to_the_same_report(name: str, tmp_path: Path) -> None:
    whole = judged(Counted(SUBJECTS[name]()), Kept(tmp_path / "whole.jsonl"))
    answers = rows(tmp_path / "whole.jsonl")[1:]
    for after in (10, 17):
        path = tmp_path / f"{after}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            judged(SUBJECTS[name](), Cut(path, after))
        subject = Counted(SUBJECTS[name]())
        resumed = judged(subject, Kept(path, resumes=True))
        assert resumed.as_dict() == whole.as_dict()
        assert len(answers) - after <= subject.asked < len(answers) - after + subject.batch
        assert {row["question"] for row in rows(path)[1:]} == {row["question"] for row in answers}


def test_the_chain_s_doubts_places_and_counts_come_back(tmp_path: Path) -> None:
    """Places are judged, doubts told and counts summed: nothing of an answer is lost in the file, wherever it was cut
    off."""
    whole, count = chained(Numbered(), None), 69
    assert "why?" in str(whole.reasons)
    assert whole.speculation == Speculation(9 * count, 3 * count, "itself")
    for after in (1, 11, 12, 13, 15, 16, 20, 40, count - 1):
        path = tmp_path / f"{after}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            chained(Numbered(), Cut(path, after))
        subject = Counted(Numbered())
        assert chained(subject, Kept(path, resumes=True)).as_dict() == whole.as_dict()
        assert subject.asked == count - after
        assert len(rows(path)) == 1 + count


def test_a_subject_that_can_only_begin_at_the_first_prompt_is_asked_for_the_phase_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    whole = chained(Drawing(), None)
    with pytest.raises(KeyboardInterrupt):
        chained(Drawing(), Cut(path, 30))
    assert chained(Drawing(), Kept(path, resumes=True)).as_dict() == whole.as_dict()


def test_too_few_tokens_cost_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first = chained(Numbered(), Kept(path), repeats=1, greedy=2, resolution=0.1)
    assert first.verdict == "INCONCLUSIVE"
    assert "too few tokens" in str(first.reasons)
    before, told, subject = len(rows(path)), list[str](), Counted(Numbered())
    more = replace(PLAN, repeats=6)
    report = verify(subject, Tabled(CHAIN, DRAFT), PROMPTS, more, advise=told.append, kept=Kept(path, resumes=True))
    assert told[0] == f"going on with {before - 1} answers of {path}"
    assert report.as_dict() == chained(Numbered(), None, repeats=6).as_dict()
    assert subject.asked == 5 * len(PROMPTS) + 1 + 0  # sampled, and one greedy; no more stops than before
    for bounds in (dict(resolution=3.0), dict(alpha=1e-3), dict(repeats=2)):
        again = Counted(Numbered())
        assert (
            chained(again, Kept(path, resumes=True), **bounds).as_dict()
            == chained(Numbered(), None, **bounds).as_dict()
        )
        assert again.asked == 0


@pytest.mark.parametrize("lost", [1, 2, 30, 150, 400, 1500])
def test_a_last_line_that_is_torn_is_dropped(lost: int, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    whole = chained(Numbered(), Kept(path))
    os.truncate(path, path.stat().st_size - lost)
    assert chained(Numbered(), Kept(path, resumes=True)).as_dict() == whole.as_dict()
    assert all(row.keys() == rows(path)[1].keys() for row in rows(path)[1:])


def refused(path: Path, plan: Plan = PLAN, **more: Any) -> str:
    """Why the file is refused; it is left as it is."""
    before = path.read_bytes() if path.is_file() else b""
    given: dict[str, Any] = {"subject": Numbered(), "reference": Tabled(CHAIN, DRAFT), "prompts": PROMPTS, **more}
    settings = given.pop("settings", {})
    with pytest.raises(ResultsMismatch) as caught:
        verify(**given, plan=plan, kept=Kept(path, resumes=True, settings=settings))
    assert path.is_file() is False or path.read_bytes() == before
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    return str(caught.value)


def test_other_settings_prompts_and_targets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    chained(Numbered(), Kept(path, settings={"target": "mine"}), repeats=0, greedy=1, stopping=0)
    mine: dict[str, Any] = {"settings": {"target": "mine"}}
    other = Numbered()
    other.name = "another"
    for words, given in {
        "seed=0, and this run has seed=1:": dict(plan=replace(PLAN, seed=1)),
        "temperature=0.8, and this run has temperature=0.7:": dict(
            plan=replace(PLAN, request=replace(PLAN.request, temperature=0.7))
        ),
        "eos_token_ids=[7], and this run has eos_token_ids=[]:": dict(
            plan=replace(PLAN, request=replace(PLAN.request, eos_token_ids=()))
        ),
        "prompts=": dict(prompts=[*PROMPTS[1:], PROMPTS[0]]),
        "weights of the target=": dict(reference=Tabled(chain(4))),
        "decoder='speculating', and this run has decoder='another'": dict(subject=other),
        "target='mine', and this run has target='yours'": dict(settings={"target": "yours"}),
        "target='mine', and this run has target=None": dict(settings={}),
    }.items():
        assert words in refused(path, **{**mine, **given})
    assert refused(path, **{**mine, "plan": replace(PLAN, seed=1)}).endswith("use the same, or start anew")
    nudged = chain(3)
    with torch.no_grad():
        nudged.lm_head.weight[0, 0] += 1e-3
    assert "weights of the target" in refused(path, **mine, reference=Tabled(nudged))


HEAD = '{"settings": {"format": 1}}'
ANSWER = {"phase": "probe", "question": "a", "tokens": [1], "places": [0], "doubt": "", "counts": [1, 1, ""]}
ODD: list[Any] = [
    None, 1, True, "a", [], [None], [1.5], [-1], [True], ["1"], [[1]], {"a": 1}, [8], [2**40], [1, 2], [1, 2, 3],
    [2, 1, ""], [1, 2, "\x1b[2J"], [1] * 100_001,
]  # fmt: skip
FIT = [("places", None), ("places", [8]), ("counts", None), ("counts", [2, 1, ""]), ("question", "a"), ("doubt", "a")]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"{}", b"{}\n", b"[]\n", b"\xff\xfe\n", b"\x00" * 100, b'{"settings": 1}\n', b"[" * 100_000 + b"\n",
        b'{"settings": {"\\u001b[2J": "\\u001b[2J"}}\n', b'{"settings": {"seed": ' + b"9" * 5000 + b"}}\n",
        b'{"settings": {' + b", ".join(b'"%d": 1' % each for each in range(1000)) + b"}}\n",
        b"a" * (2**22 + 5), b"a" * (2**22 + 5) + b"\n",
    ],
    ids=range(14),
)  # fmt: skip
def test_a_file_that_is_no_file_of_ours_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    assert str(path) in refused(path)


def test_lines_that_are_no_answers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    chained(Numbered(), Kept(path), repeats=0, greedy=1, stopping=0)
    whole = path.read_text()
    wrong = 0
    for name in ("question", "tokens", "places", "doubt", "counts"):
        for odd in ODD:
            path.write_text(whole + json.dumps({**ANSWER, name: odd}) + "\n")
            fit = (name, odd) in FIT
            if not fit:
                line = f"line {whole.count(chr(10)) + 1}, is no answer that sybil verify kept"
                assert line in refused(path, replace(PLAN, repeats=0, greedy=1, stopping=0)), (name, odd)
                wrong += 1
    assert wrong == 5 * len(ODD) - len(FIT)
    for line in ("", "{}", "[]", "nan", "{" * 10_000, "\x00", json.dumps(ANSWER)[:-3], "a" * (2**22 + 5)):
        path.write_text(whole + line + "\n" + json.dumps(ANSWER) + "\n")
        assert "is no answer" in refused(path, replace(PLAN, repeats=0, greedy=1, stopping=0))


def test_what_a_doubt_says_is_shown_bounded_and_harmless(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    small: dict[str, Any] = dict(repeats=0, greedy=1, stopping=0)
    chained(Numbered(), Kept(path), **small)
    changed = [json.dumps({**row, "doubt": "\x1b[2J\n" * 9999} if "doubt" in row else row) for row in rows(path)]
    path.write_text("".join(f"{line}\n" for line in changed))
    report = chained(Numbered(), Kept(path, resumes=True), **small)
    assert report.verdict == "INCONCLUSIVE"
    assert all(reason.isprintable() and len(reason) < 2500 for reason in report.reasons)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent.jsonl", tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert "is no file" in refused(path)


def test_more_answers_than_anybody_asks_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    chained(Numbered(), Kept(path))
    monkeypatch.setattr(keeping, "MOST_ANSWERS", 20)
    assert "line 21" in refused(path)


def test_answers_reach_the_file_before_the_next_is_asked_for(tmp_path: Path) -> None:
    """So that a process that is killed loses none: how many lines there are is seen from within the subject."""
    path, seen = tmp_path / "answers.jsonl", list[int]()

    class Looking(Numbered):
        def sample(
            self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int = 0
        ) -> Iterator[Sample]:
            for sample in super().sample(prompts, request, seed, first):
                seen.append(path.read_text().count("\n") if path.exists() else 1)
                yield sample

    chained(Looking(), Kept(path))
    assert seen == list(range(1, len(seen) + 1))


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("mine")
    kept = Kept(path)
    chained(Numbered(), kept, repeats=0, greedy=1, stopping=0)
    assert path.read_text() == "mine"
    assert kept.path == tmp_path / "answers-2.jsonl"
    assert ALPHABET.get_vocab_size() == 8


def test_nothing_is_kept_where_nothing_is_asked_for(tmp_path: Path) -> None:
    class Silent(Numbered):
        def sample(
            self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int = 0
        ) -> Iterator[Sample]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chained(Silent(), Kept(tmp_path / "new" / "answers.jsonl"))
    assert not (tmp_path / "new").exists()
