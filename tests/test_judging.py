"""sybil.judge: whatever a caller has is judged, over one copy of the target where it can be shared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import gpt2, greedy, in_sybil, letters, perturbed, save
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

import sybil
from sybil.drafting import DraftModel
from sybil.errors import InvalidSetting, NotJudgeable, SybilError
from sybil.judging.asked import FULL, QUICK, planned
from sybil.judging.decoders import Bench, Endpoint, Models
from sybil.judging.original import Original
from sybil.judging.wording import chosen
from sybil.losslessness.checks import Drift
from sybil.losslessness.control import beside
from sybil.losslessness.report import Plan, Report, Ruling, Verdict
from sybil.losslessness.samples import Request
from sybil.losslessness.subjects import TransformersSubject
from sybil.measuring.prompts import Prompt

PROMPTS = [[1 + (7 * i + 3 * j) % 30 for j in range(6)] for i in range(20)]
FEW: dict[str, Any] = dict(repeats=0, greedy=3, stopping=2, widths=0, max_new_tokens=8)
ENOUGH: dict[str, Any] = dict(
    repeats=1, greedy=2, stopping=1, widths=0, max_new_tokens=24, resolution=1.0, uniformity=0.6
)


def likeliest(prompt: list[int], max_new_tokens: int, temperature: float, eos_token_ids: Any = ()) -> list[int]:
    """Of the tiny target, whatever the temperature."""
    said = greedy(gpt2(), torch.tensor(prompt), max_new_tokens)
    ends = [place for place, token in enumerate(said) if token in eos_token_ids]
    return said[: ends[0] + 1] if ends else said


def silent(prompt: list[int], max_new_tokens: int, temperature: float) -> list[int]:
    return []


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save(gpt2(), root / "target")
    save(perturbed(gpt2(), 0.05), root / "draft")
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=31, hidden_size=16, num_hidden_layers=1, state_size=4, eos_token_id=0, pad_token_id=0
    )
    MambaForCausalLM(config).save_pretrained(root / "mamba")
    letters().save(str(root / "mamba" / "tokenizer.json"))
    return root


def loaded() -> sybil.Decoder:
    return sybil.Decoder(in_sybil(gpt2()), DraftModel(in_sybil(perturbed(gpt2(), 0.05))), letters(), frozenset({0}))


DECODERS: dict[str, tuple[Callable[[], Any], str]] = {
    "a name": (lambda: "transformers", "transformers generate"),
    "sybil's by name": (lambda: "sybil", "sybil, rule block, gamma 3"),
    "a decoder of Sybil's": (loaded, "sybil, rule block, gamma 3"),
    "a model": (gpt2, "transformers generate"),
    "a function": (lambda: likeliest, "test_judging:likeliest"),
    "a subject": (lambda: TransformersSubject(gpt2(), letters()), "transformers generate"),
}


@pytest.mark.parametrize("kind", DECODERS)
def test_whatever_a_caller_has(folders: Path, kind: str) -> None:
    made, name = DECODERS[kind]
    report = sybil.judge(
        made(), folders / "target", ["abc", "hello", PROMPTS[0]], draft=folders / "draft", dtype="float64",
        device="cpu", gamma=3, rule="block", **FEW,
    )  # fmt: skip
    assert (report.verdict, report.subject) == ("PASS", name)
    assert report.plan.request.eos_token_ids == (0,)
    assert str(report).startswith(f"PASS: {name}\n  tokens: PASS\n")


def test_an_object_is_judged_and_left_as_it_was() -> None:
    model = gpt2().train()
    try:
        report = sybil.judge("transformers", model, PROMPTS, **ENOUGH)
        assert report.verdict == "PASS"
        assert report.reasons[-1] == "other widths were not tried"
        assert model.training
        assert model.dtype == torch.float64
    finally:
        model.eval()


def test_a_decoder_that_is_not_lossless_fails() -> None:
    seen: list[str] = []
    report = sybil.judge(likeliest, gpt2(), PROMPTS, progress=lambda phase, done, total: seen.append(phase), **ENOUGH)
    assert report.verdicts == {"distribution": "FAIL", "tokens": "PASS", "endings": "PASS"}
    assert {"greedy", "sampling", "evidence"} <= set(seen)
    assert "it takes no stop_strings: none was tried" in report.reasons
    assert "it takes no seed: it may never say the same again" in report.reasons


def test_advice_is_told() -> None:
    told: list[str] = []
    report = sybil.judge(gpt2(), gpt2(), PROMPTS[:2], advise=told.append, **{**ENOUGH, "max_new_tokens": 4})
    assert report.verdict == "INCONCLUSIVE"
    assert "too few for a PASS" in told[0]


def test_a_precision_that_nobody_states_is_in_doubt(folders: Path) -> None:
    def plan(decoder: Any, **stated: Any) -> Plan:
        return sybil.judge(decoder, folders / "target", PROMPTS[:3], **stated, **FEW).plan

    assert plan(likeliest).doubtful is not None
    assert plan(likeliest, tolerance=0.25).doubtful is None
    assert plan(likeliest, tolerance="q8 activations").near_tie.absolute == 0.6
    assert plan("transformers").doubtful is None
    assert plan(gpt2()).doubtful is None


# --- one copy


def test_the_judge_and_the_judged_share_one_copy(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sybil.models import pretrained

    loads: list[str] = []
    load = pretrained.load_transformers

    def counting(checkpoint: Any, *where: Any) -> Any:
        loads.append(Path(checkpoint.name).name)
        return load(checkpoint, *where)

    monkeypatch.setattr(pretrained, "load_transformers", counting)
    draft = dict(draft=folders / "draft")
    for decoder, more, expected in (
        ("transformers", {}, ["target"]),
        ("assisted", draft, ["draft", "target"]),
        ("assisted", {**draft, "control": "transformers"}, ["draft", "target"]),
        (likeliest, {}, ["target"]),
        ("sybil", {"control": "transformers"}, ["target"]),
        (likeliest, {"control": "prompt-lookup", "dtype": "bfloat16"}, ["target", "target"]),  # one is rounded
    ):
        loads.clear()
        sybil.judge(decoder, folders / "target", PROMPTS[:3], device="cpu", **more, **FEW)
        assert sorted(loads) == expected


def test_sybil_loads_nothing_that_it_does_not_decode(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    load = sybil.load
    monkeypatch.setattr(
        "sybil.judging.decoders.load", lambda *names, **said: loads.append(names[1]) or load(*names, **said)
    )
    for decoder, control, expected in (
        (likeliest, None, []),
        ("transformers", None, []),
        ("sybil", "sybil", [folders / "draft"]),
        (likeliest, "sybil", [None]),
    ):
        loads.clear()
        sybil.judge(
            decoder, folders / "target", PROMPTS[:3], control=control, draft=folders / "draft", device="cpu", **FEW
        )
        assert loads == expected


def test_weights_are_rounded_as_the_decoder_has_them_and_computed_in_float32(folders: Path) -> None:
    half = Original(folders / "target", "bfloat16", "cpu")
    assert half.model.dtype == torch.bfloat16
    assert half.reference.dtype == torch.float32
    weight = next(half.reference.parameters())
    assert torch.equal(weight, weight.bfloat16().float())
    alone = Original(gpt2(), None)
    assert alone.reference is alone.model is gpt2()
    narrow = Original(perturbed(gpt2(), 0.0).bfloat16())
    assert (narrow.model.dtype, narrow.reference.dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(InvalidSetting, match="convert it"):
        Original(gpt2(), "float16")


def test_a_target_that_only_transformers_can_load(folders: Path) -> None:
    with pytest.raises(SybilError):
        sybil.load(str(folders / "mamba"), device="cpu")
    report = sybil.judge("transformers", folders / "mamba", PROMPTS[:4], device="cpu", **FEW)
    assert report.verdict == "PASS"
    with pytest.raises(InvalidSetting, match="a state that can't be rolled back"):
        sybil.judge("prompt-lookup", folders / "mamba", PROMPTS[:4], device="cpu", **FEW)


# --- a control


def test_what_a_control_gets_wrong_too_is_not_speculations_fault() -> None:
    report = sybil.judge(likeliest, gpt2(), PROMPTS, control=gpt2(), **ENOUGH)
    assert report.control is not None
    assert (report.verdict, report.control.report.verdict) == ("FAIL", "PASS")
    assert report.control.told[0].startswith("distribution: the control passes")
    assert "control: PASS: transformers generate" in report.lines
    assert report.as_dict()["control"]["verdict"] == "PASS"
    assert report.as_dict()["control"]["told"] == list(report.control.told)
    both = sybil.judge(likeliest, gpt2(), PROMPTS, control=likeliest, **ENOUGH).control
    assert both is not None
    assert "the control fails too" in both.told[0]
    assert "the two drifts are the same as far as can be seen" in both.told[0]
    other = sybil.judge(gpt2(), gpt2(), PROMPTS, control=likeliest, **ENOUGH)
    assert other.verdict == "PASS"
    assert other.control is not None
    assert other.control.told == ("distribution: the control fails where the first decoder doesn't",)
    neither = sybil.judge(gpt2(), gpt2(), PROMPTS[:3], control=gpt2(), **FEW).control
    assert neither is not None
    assert neither.told == ("neither fails where the other doesn't",)


def made(verdict: Verdict, drift: float = 0.0) -> Report:
    """A report on the distribution alone."""
    rulings = (Ruling("distribution", verdict, ("why",)),)
    plan = Plan(request=Request(max_new_tokens=8))
    return Report("it", verdict, rulings, ("why",), (), plan, Drift(drift, drift - 0.1, drift + 0.1))


@pytest.mark.parametrize(
    ("drift", "words"), [(0.0, "the two drifts are the same"), (-0.7, "speculation adds a fault of its own")]
)
def test_drifts_are_compared(drift: float, words: str) -> None:
    (told,) = beside(made("FAIL", drift - 0.77), made("FAIL", -0.77)).told
    assert words in told
    assert f"{drift:+.4f} nats" in told


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("FAIL", "PASS", "the control passes, so neither the target as it was imported nor the sampler is to blame"),
        ("FAIL", "INCONCLUSIVE", "whether speculation is to blame is open"),
        ("INCONCLUSIVE", "INCONCLUSIVE", "open for the control too"),
        ("PASS", "FAIL", "the control fails where the first decoder doesn't"),
        ("PASS", "PASS", "neither fails where the other doesn't"),
        ("INCONCLUSIVE", "PASS", "neither fails where the other doesn't"),
    ],
)
def test_what_two_verdicts_say_together(first: Verdict, second: Verdict, words: str) -> None:
    (told,) = beside(made(first), made(second)).told
    assert words in told


# --- what is asked


def test_what_is_left_out_is_as_quick_or_full_has_it() -> None:
    for quick, sizes in ((False, FULL), (True, QUICK)):
        plan, settings = planned({}, quick)
        assert plan.request.max_new_tokens == sizes["max_new_tokens"]
        assert plan.resolution == sizes["resolution"]
        assert (settings.gamma, settings.rule, settings.do_sample) == (4, "token", True)
    plan, settings = planned(
        {"temperature": 0.5, "top_k": 3, "repeats": 5, "alpha": 0.1, "seed": 7, "gamma": 2, "stop_strings": False}
    )
    assert (plan.request.temperature, plan.request.top_k, plan.repeats, plan.alpha, plan.seed) == (0.5, 3, 5, 0.1, 7)
    assert settings.gamma == 2
    assert not plan.stop_strings


def test_prompts_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "abc"}\n{"text": "def"}\n')
    assert len(chosen(None, "stdlib", 5)) == 5
    assert [each.text for each in chosen(tmp_path / "own.jsonl", "x", 1) if isinstance(each, Prompt)] == ["abc"]
    said = [{"role": "user", "content": "Why?"}]
    text, messages, ids, tensor = chosen(["abc", said, [1, 2], torch.tensor([3])], "x", 1)
    assert text == Prompt("0", "own", "abc")
    assert messages == Prompt("1", "own", "Why?", (("user", "Why?"),))
    assert (ids, tensor) == ((1, 2), (3,))
    for wrong in ("abc", 3, [None], [[1.5]], [[]], [[{"role": "user"}]]):
        with pytest.raises(InvalidSetting, match="prompt"):
            chosen(wrong, "x", 1)  # type: ignore[arg-type]


def test_end_tokens_by_id_or_text(folders: Path) -> None:
    settings = planned({})[1]
    assert Bench(Models(target=folders / "target"), settings).end_tokens == (0,)
    named = Bench(Models(target=folders / "target"), settings, [3, "z"]).end_tokens
    assert named == (3, letters().token_to_id("z"))


@pytest.mark.parametrize("strings", [True, False])
def test_stop_strings_may_be_left_out(strings: bool) -> None:
    asked: list[Any] = []

    def noting(prompt: list[int], stop_strings: Any, **settings: Any) -> list[int]:
        asked.append(stop_strings)
        (sample,) = TransformersSubject(gpt2(), letters()).sample(
            [prompt],
            Request(
                stop_strings=stop_strings,
                **{name: settings[name] for name in ("max_new_tokens", "temperature", "eos_token_ids")},
            ),
            0,
        )
        return list(sample.tokens)

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters())
    sizes = dict(repeats=0, greedy=6, stopping=6, widths=0, max_new_tokens=16)
    report = sybil.judge(
        noting, gpt2(), PROMPTS, tokenizer=tokenizer, stop_strings=strings, tolerance="float32", **sizes
    )
    assert report.verdict == "PASS"
    assert any(asked) == strings
    assert ("stop strings were left out" in report.reasons) != strings


def plain(prompt: list[int], max_new_tokens: int) -> list[int]:
    return likeliest(prompt, max_new_tokens, 0.0, (0,))


@pytest.mark.parametrize(
    ("decoder", "settings", "words"),
    [
        ("nonesuch", {}, ["'nonesuch'", "file.py:function"]),
        (3, {}, ["decoder is 3", "a function"]),
        (lambda: [], {}, ["it takes no prompt"]),
        (lambda prompt, model: [], {}, ["it asks for model", "give that a default"]),
        (lambda prompt, max_new_tokens, /: [], {}, ["it asks for max_new_tokens"]),
        (lambda prompt: [], {}, ["takes no max_new_tokens"]),
        (plain, {"repeats": 1}, ["takes no temperature", "repeats 0"]),
        (silent, {"repeats": 1, "top_p": 0.5}, ["top_p is 0.5", "takes no top_p"]),
        (likeliest, {"temprature": 1}, ["'temprature'", "did you mean temperature"]),
        (likeliest, {"tolerance": "q9"}, ["'q9'"]),
        (likeliest, {"prompts": ["abc"]}, ["prompts are texts", "tokenizer"]),
        (likeliest, {"eos": ["z"]}, ["eos is given", "tokenizer"]),
        ("http://127.0.0.1:9/v1", {}, ["a server is judged", "tokenizer"]),
        ("assisted", {}, ["no draft"]),
        (likeliest, {"draft": "self"}, None),
    ],
)
def test_bad_requests(decoder: Any, settings: dict[str, Any], words: list[str] | None) -> None:
    asked: dict[str, Any] = {"prompts": PROMPTS[:3], **FEW, **settings}
    if words is None:
        assert sybil.judge(decoder, gpt2(), **asked).verdict == "PASS"
        return
    with pytest.raises(SybilError) as caught:
        sybil.judge(decoder, gpt2(), **asked)
    for word in words:
        assert word in str(caught.value)


def test_a_function_without_a_temperature_is_judged_by_half() -> None:
    report = sybil.judge(plain, gpt2(), PROMPTS[:4], **FEW)
    assert report.verdict == "PASS"
    assert (
        "it takes no eos_token_ids: it is held to the target's own end tokens, and no other was tried" in report.reasons
    )


def test_a_function_that_raises_gets_no_verdict() -> None:
    def fails(prompt: list[int], max_new_tokens: int, temperature: float) -> list[int]:
        raise ValueError("no")

    with pytest.raises(NotJudgeable, match="fails raised ValueError: no"):
        sybil.judge(fails, gpt2(), PROMPTS[:2], **FEW)


def test_an_address_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(SybilError, match="ftp"):
        Endpoint(url="ftp://host/v1")


def test_importing_sybil_imports_neither_the_judge_nor_transformers() -> None:
    code = (
        "import sys, sybil; assert not {'transformers', 'scipy', 'sybil.judging'} & {*sys.modules}; "
        "assert sybil.judge.__module__ == 'sybil.judging'"
    )
    root = Path(sybil.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
    assert "judge" in sybil.__all__


def test_what_is_no_name_of_sybils() -> None:
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = SimpleNamespace(it=sybil).it.nonesuch
