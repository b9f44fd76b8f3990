"""transformers asked for several prompts side by side gives what it gives for each alone, end for end; and whether
speculation happened at all is told by places, by counts, or said not to be known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import gpt2, letters, llama, perturbed, prompts, save, sybil
from torch import Tensor

from sybil.errors import NotJudgeable
from sybil.losslessness.evidence import Reference
from sybil.losslessness.foreign import ForeignSubject
from sybil.losslessness.judge import Plan, Report, verify
from sybil.losslessness.samples import Request, Sample
from sybil.losslessness.speculation import PLACES, Seen, Speculation
from sybil.losslessness.subjects import CallableSubject, TransformersSubject

PROMPTS = [prompt.tolist() for prompt in prompts([3, 17, 5, 9, 1, 12, 7, 7, 20, 2])]
GREEDY = Request(max_new_tokens=12, temperature=0.0)
PLAN = Plan(request=Request(max_new_tokens=24, eos_token_ids=(0, 9)), repeats=4, greedy=10, stopping=3, resolution=0.5,
            uniformity=0.5)  # fmt: skip


@pytest.mark.parametrize("family", [gpt2, llama])
def test_a_batch_ends_each_row_where_it_ends_alone(family: Any) -> None:
    model = family()
    alone, together = (TransformersSubject(model, letters(), batch=batch) for batch in (1, 4))
    free = list(alone.sample(PROMPTS, GREEDY, 0))
    ends = [(free[0].tokens[2],), (free[1].tokens[5], free[2].tokens[1]), (0,), (0, 1), (0, 1, free[3].tokens[0])]
    requests = [
        GREEDY,
        replace(GREEDY, max_new_tokens=1),
        replace(GREEDY, stop_strings=(letters().decode(free[4].tokens[3:5]),)),
    ]
    lengths = set[int]()
    for request in [*requests, *(replace(GREEDY, eos_token_ids=each) for each in ends)]:
        wanted = list(alone.sample(PROMPTS, request, 0))
        assert list(together.sample(PROMPTS, request, 0)) == wanted
        lengths |= {len(sample.tokens) for sample in wanted}
    assert len(lengths) > 4


def test_a_token_that_pads_is_no_end_and_an_end_behind_an_end_is_kept_out() -> None:
    class Written:
        """A model whose generate says what is written for it, padded as transformers pads."""

        device, generation_config = torch.device("cpu"), None

        def generate(self, ids: Tensor, generation_config: Any, **_: Any) -> Tensor:
            padding = generation_config.pad_token_id
            return torch.cat(
                [ids, torch.tensor([[padding if each is None else each for each in row] for row in said])], 1
            )

    subject = TransformersSubject(Written(), None)  # type: ignore[arg-type]
    said: list[list[int | None]] = [
        [1, 2, 7, None, None, None],
        [1, 1, 1, 1, 1, 1],
        [7, None, None, None, None, None],
        [1, 7, 1, 2, 1, 1],  # which went on behind its end token: the judge is to see that
        [1, 0, 0, 0, 0, 0],
    ]
    answers = subject.sample([[3]] * 5, Request(max_new_tokens=6, eos_token_ids=(7,)), 0)
    assert [list(sample.tokens) for sample in answers] == [
        [1, 2, 7],
        [1] * 6,
        [7],
        [1, 7, 1, 2, 1, 1],
        [1, 0, 0, 0, 0, 0],
    ]


def test_batches_of_transformers_are_lossless() -> None:
    report = verify(TransformersSubject(gpt2(), letters()), Reference(gpt2(), letters()), PROMPTS, PLAN)
    assert dict(report.verdicts) == dict.fromkeys(("distribution", "tokens", "endings", "width"), "PASS")


def test_rows_that_read_the_padding_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the mask is lost, so that a shorter prompt begins with padding."""

    def maskless(self: TransformersSubject, ids: Tensor, mask: Tensor, request: Request, **more: Any) -> Tensor:
        return generate(self, ids, torch.ones_like(mask), request, **more)

    generate = TransformersSubject._generate
    monkeypatch.setattr(TransformersSubject, "_generate", maskless)
    asked = [prompt.tolist() for prompt in prompts([9, 9, 9, 3, 9, 9, 9, 9])]
    plan = replace(PLAN, repeats=0, stopping=0)
    report = verify(TransformersSubject(gpt2(), letters()), Reference(gpt2(), letters()), asked, plan)
    assert report.verdicts["tokens"] == report.verdicts["width"] == "FAIL"


def test_a_model_with_a_state_is_asked_alone() -> None:
    model = perturbed(gpt2(), 0.0)  # a copy
    model._is_stateful = True
    assert TransformersSubject(model, None).batch == 1
    assert TransformersSubject(gpt2(), None, prompt_lookup=2).batch == 1
    assert TransformersSubject(gpt2(), None).batch == 8


# --- did speculation happen?


def report_of(subject: Any) -> Report:
    plan = Plan(request=Request(max_new_tokens=8), repeats=1, greedy=2, stopping=0, widths=0)
    return verify(subject, Reference(gpt2(), letters()), PROMPTS[:4], plan)


def test_places_tell_a_decoder_that_accepts_from_one_that_never_does() -> None:
    never = report_of(TransformersSubject(gpt2(), letters()))
    assert never.speculation == Speculation(None, 0, PLACES)
    assert never.speculated == f"speculation not observed: each token came in a block of its own (by {PLACES})"
    assert never.as_dict()["speculation"] == {"drafted": None, "accepted": 0, "source": PLACES, "observed": False}
    often = report_of(TransformersSubject(gpt2(), letters(), perturbed(gpt2(), 0.0)))
    assert often.speculation is not None
    assert often.speculation.observed
    assert "tokens came in a block behind others" in often.speculated


class Counting:
    """transformers' answers, with counts of drafted and accepted tokens."""

    name = "counting"

    def __init__(self, counts: Speculation | None, places: bool = True) -> None:
        self.subject, self.counts, self.places = TransformersSubject(gpt2(), letters()), counts, places

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int) -> Iterator[Sample]:
        for sample in self.subject.sample(prompts, request, seed):
            yield replace(sample, speculation=self.counts, places=sample.places if self.places else None)


def test_counts_come_before_places_and_neither_is_said() -> None:
    assert report_of(Counting(Speculation(0, 0))).speculated.endswith("the decoder counts no drafted token")
    assert "drafted tokens the decoder accepted none" in report_of(Counting(Speculation(3, 0))).speculated
    assert "(33%) accepted" in report_of(Counting(Speculation(3, 1))).speculated
    unknown = report_of(Counting(None, places=False))
    assert unknown.speculation is None
    assert unknown.speculated.startswith("speculation unknown: ")
    assert unknown.as_dict()["speculation"] is None


def test_what_a_subject_counts_itself_comes_before_places() -> None:
    class Server:
        speculation = Speculation(5, 2, "its counters")

    seen = Seen()
    seen.add((0, 1, 2), None)
    assert seen.of(Server()) == Server.speculation
    assert seen.of(object()) == Speculation(None, 2, PLACES)
    seen.add(None, Speculation(4, 4, "itself"))
    seen.add(None, Speculation(4, 0, "itself"))
    assert seen.of(Server()) == Speculation(8, 4, "itself")


@pytest.mark.parametrize("places", [None, [0, 1, 0]])
def test_a_function_may_return_counts(places: list[int] | None) -> None:
    subject = CallableSubject(lambda prompt, **settings: ([1, 2, 3], places, (4, 1)), "mine:counting")
    (sample,) = subject.sample([[1]], GREEDY, 0)
    assert sample == Sample((1,), (1, 2, 3), places and tuple(places), speculation=Speculation(4, 1, "its own counts"))


@pytest.mark.parametrize("counts", [(1, 2), (1,), 3, (1.5, 1), (-1, -2), "ab", (1, 2, 3), ((1, 2), 1)])
def test_counts_that_are_none(counts: Any) -> None:
    subject = CallableSubject(lambda prompt, **settings: ([1, 2, 3], None, counts), "mine:counting")
    with pytest.raises(NotJudgeable, match="gave counts"):
        list(subject.sample([[1]], GREEDY, 0))


def test_a_function_in_a_process_of_its_own_may_return_counts() -> None:
    (sample,) = ForeignSubject("decoders:drafting", 60).sample([[1]], GREEDY, 0)
    assert sample.speculation == Speculation(12, 0, "its own counts")
    assert sample.places is None


def test_terminal_and_report_tell_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(gpt2(), tmp_path / "target")
    (tmp_path / "prompts.jsonl").write_text('{"text": "abc"}\n{"text": "hello"}\n')
    arguments = ("--target", tmp_path / "target", "--prompts", tmp_path / "prompts.jsonl", "--device", "cpu",
                 "--repeats", 0, "--greedy", 2, "--stopping", 0, "--max-new-tokens", 8)  # fmt: skip
    line = "speculation not observed: of 48 drafted tokens the decoder accepted none (by its own counts)\n"
    sybil("verify", *arguments, "--out", tmp_path / "out", "--decoder", "decoders:drafting")
    assert line not in capsys.readouterr().out  # as it is another target's, only its first tokens were looked at
    assert sybil("verify", *arguments, "--out", tmp_path / "sybil") == 0
    assert (
        "speculation not observed: the decoder counts no drafted token (by its own counts)\n" in capsys.readouterr().out
    )
    (path,) = (tmp_path / "sybil").glob("*.json")
    assert json.loads(path.read_text())["speculation"] == {
        "drafted": 0, "accepted": 0, "source": "its own counts", "observed": False,
    }  # fmt: skip
