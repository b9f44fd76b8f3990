"""Other systems' decoders: OpenVINO GenAI's and transformers' with two tokenizers as subjects, and docs/verdicts.md."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import gpt2, greedy, perturbed, prompts
from translating import letters_of
from typer.testing import CliRunner

from examples.verdicts import transformers_stop_strings, transformers_two_tokenizers
from sybil.cli.main import app
from sybil.errors import InvalidSetting, NotJudgeable, PackageMissing, VocabularyMismatch
from sybil.losslessness.openvino import OpenVINOSubject
from sybil.losslessness.samples import Request, Speculation
from sybil.losslessness.subjects import TransformersSubject
from tools.verdicts import page
from tools.verdicts.rows import MODELS, ROWS

GREEDY = Request(max_new_tokens=12, temperature=0.0)
PROMPTS = [prompt.tolist() for prompt in prompts([3, 7, 5, 9])]


class Pipeline:
    """Of a made-up OpenVINO GenAI: it says 1, 2, 3 and notes what it is asked."""

    def __init__(self, model: str, device: str, **settings: Any) -> None:
        if "broken" in model:
            raise IndexError("unordered_map::at")
        self.settings, self.converted = settings, model
        PIPELINES.append(self)

    def generate(self, inputs: Any, config: Any) -> Any:
        if inputs.ids.tolist() == [[13]]:
            raise RuntimeError("Check 'content_length <= ...' failed\nat sequence_group.cpp:32")
        ASKED.append(config)
        counts = SimpleNamespace(get_num_draft_tokens=lambda: 4, get_num_accepted_tokens=lambda: 3)
        return SimpleNamespace(tokens=[[1, 2, 3]], extended_perf_metrics=counts)


class Config(SimpleNamespace):
    top_k = 2**64 - 1

    def set_eos_token_id(self, token: int) -> None:
        self.eos_token_id = token


PIPELINES: list[Pipeline] = []
ASKED: list[Config] = []


@pytest.fixture
def genai(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up OpenVINO GenAI in place of the package."""
    made, core = ModuleType("openvino_genai"), ModuleType("openvino")
    made.__dict__.update(
        LLMPipeline=Pipeline, SchedulerConfig=lambda: "no cache of prefixes", GenerationConfig=Config,
        draft_model=lambda folder, device, **settings: (folder, settings),
        TokenizedInputs=lambda ids, mask: SimpleNamespace(ids=ids, mask=mask),
    )  # fmt: skip
    core.__dict__.update(Tensor=lambda values: values)
    monkeypatch.setitem(sys.modules, "openvino_genai", made)
    monkeypatch.setitem(sys.modules, "openvino", core)
    PIPELINES.clear()
    ASKED.clear()


def test_openvino_is_asked_for_what_the_request_says(genai: None) -> None:
    subject = OpenVINOSubject(Path("target.gguf"))
    request = Request(max_new_tokens=9, temperature=0.7, top_p=0.9, eos_token_ids=(5, 6), stop_strings=("x",))
    for each in (request, GREEDY, Request(max_new_tokens=4, top_k=3)):
        (sample,) = subject.sample([[1, 2]], each, 0)
        assert sample.prompt == (1, 2)
        assert sample.tokens == (1, 2, 3)
    full, plain, filtered = ASKED
    assert (full.max_new_tokens, full.do_sample, full.temperature, full.top_p) == (9, True, 0.7, 0.9)
    assert (full.eos_token_id, full.stop_token_ids, full.top_k) == (5, {5, 6}, Config.top_k)
    assert (full.stop_strings, full.include_stop_str_in_output) == ({"x"}, True)
    assert (plain.do_sample, plain.ignore_eos) == (False, True)
    assert filtered.top_k == 3
    assert list(subject.sample([[1]], request, 1))
    assert ASKED[-1].rng_seed != full.rng_seed
    assert subject.widths() == {}
    assert subject.speculation is None
    assert PIPELINES[0].settings["EXECUTION_MODE_HINT"] == "ACCURACY"


def test_openvino_drafts_and_looks_up_with_the_gamma_that_is_asked_for(genai: None, tmp_path: Path) -> None:
    (tmp_path / "draft.gguf").touch()
    subject = OpenVINOSubject(Path("target.gguf"), tmp_path / "draft.gguf", gamma=3)
    assert list(subject.sample([[1], [2]], GREEDY, 0))
    assert [asked.num_assistant_tokens for asked in ASKED] == [3, 3]
    assert subject.speculation == Speculation(8, 6, "OpenVINO GenAI's metrics")
    converted, drafting = PIPELINES  # the draft's file is converted to a folder first
    assert converted.settings == {"enable_save_ov_model": True}
    assert drafting.settings["draft_model"][0] == str(Path(converted.converted).parent)
    for name, other in subject.widths().items():
        ASKED.clear()
        assert list(other.sample([[1]], GREEDY, 0))
        assert getattr(ASKED[0], "num_assistant_tokens", None) == {"plain": None, "gamma 1": 1, "gamma 8": 8}[name]
    ASKED.clear()
    assert list(OpenVINOSubject(Path("target.gguf"), lookup=True, gamma=5).sample([[1]], GREEDY, 0))
    assert (ASKED[0].num_assistant_tokens, ASKED[0].max_ngram_size) == (5, 3)


def test_openvino_says_what_it_cant_do(genai: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSetting, match=r"broken.gguf .*unordered_map::at"):
        OpenVINOSubject(Path("broken.gguf"))
    with pytest.raises(NotJudgeable, match=r"content_length .* failed at sequence_group.cpp:32 \(prompt 1 of 2"):
        list(OpenVINOSubject(Path("target.gguf")).sample([[1], [13]], GREEDY, 0))
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    with pytest.raises(PackageMissing, match=r"pip install project-sybil\[openvino\]"):
        OpenVINOSubject(Path("target.gguf"))


def universal() -> TransformersSubject:
    """A draft that has a token of its own and lacks two of the target's."""
    alphabet = "!abcdefghijklmnopqrstuvwxyz ABC"
    return TransformersSubject(
        perturbed(gpt2(), 0.0), letters_of(alphabet), perturbed(gpt2(vocab=30), 0.0),
        assistant_tokenizer=letters_of(alphabet[:1:-1] + "~"),
    )  # fmt: skip


def test_two_tokenizers_give_the_targets_greedy_tokens_at_every_width() -> None:
    subject = universal()
    assert subject.name == "transformers universal assisted generation"
    for judged in (subject, *subject.widths().values()):
        for sample in judged.sample(PROMPTS, GREEDY, 0):
            assert list(sample.tokens) == greedy(gpt2(), torch.tensor(sample.prompt), 12)


def test_two_tokenizers_sample_by_seed() -> None:
    one, same, other = (list(universal().sample(PROMPTS, Request(max_new_tokens=12), seed)) for seed in (1, 1, 2))
    assert [sample.prompt for sample in one] == [tuple(prompt) for prompt in PROMPTS]
    assert one != other
    assert all(len(sample.tokens) == 12 for sample in [*one, *same])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pair", "stdlib", "--decoder", "usd", "--draft", "lookup"], "decoder is usd and draft lookup"),
        (["--target", "embedded:stdlib/target", "--decoder", "usd"], "decoder is usd and the target has no draft"),
        (["--pair", "stdlib", "--decoder", "usd"], "have logits for 4096 tokens each"),
    ],
)
def test_usd_needs_a_draft_with_other_tokens(options: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["verify", "--quick", *options])
    assert isinstance(done.exception, InvalidSetting | VocabularyMismatch)
    assert words in str(done.exception)


def test_the_page_is_what_its_records_say() -> None:
    assert page.PAGE.read_text() == page.rendered(page.load())
    assert page.lines(page.load()) == page.RECORDS.read_text()


def test_each_row_is_one_and_names_what_is_there() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert {row.target, row.draft or "STDLIB"} <= {*MODELS, "lookup"}
        assert all((page.EXAMPLES / name).is_file() for name in row.because)


def test_a_failing_row_is_explained_on_the_page() -> None:
    assert any(record.get("verdict") == "FAIL" for record in page.load().values())
    assert "Without a reproduction" not in page.PAGE.read_text()


def test_a_reproduction_is_shown_for_what_it_explains_alone() -> None:
    kept = page.load()
    (row,) = (each for each in ROWS if each.key == "transformers, universal assisted generation, STDLIB")
    record = kept[row.key] | {"verdicts": {"distribution": "PASS", "endings": "FAIL", "width": "FAIL"}}
    shown = page.rendered({row.key: record})
    assert "transformers_stop_strings.py" in shown
    assert "transformers_two_tokenizers.py" not in shown
    assert "Without a reproduction yet: transformers, universal assisted generation, STDLIB (width)." in shown


def test_the_reproductions_for_transformers_show_their_faults() -> None:
    """Where one shows none any more, transformers has mended it, and docs/verdicts.md is to be made anew."""
    assert transformers_two_tokenizers.main() > 0.1
    plain, assisted = transformers_stop_strings.main()
    assert assisted > plain
