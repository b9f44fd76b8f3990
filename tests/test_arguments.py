"""Arguments of every type: each is taken as transformers takes it, or is refused in one line that names it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import foreign, gpt2, greedy, in_sybil, letters, perturbed, prompts
from torch import nn
from transformers import (
    CanineTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
)

import sybil
from sybil import Decoder, Sampling, Settings
from sybil.drafting import DraftModel
from sybil.errors import InvalidSetting, NumericalFailure, SybilError
from sybil.interop import custom_generate

COUNT = 8
IDS = prompts([5])[0]


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no words for it")


class Lines:
    def __repr__(self) -> str:
        return "two\nlines"


class Puts:
    """Half a streamer."""

    def put(self, _: Any) -> None: ...


def same(scores_of: Any, scores: Any) -> Any:
    return scores


def decoder() -> Decoder:
    return Decoder(in_sybil(gpt2()), DraftModel(in_sybil(perturbed(gpt2(), 0.05))), letters())


def said(inputs: Any = (IDS,), **settings: Any) -> list[list[int]]:
    return [row.tolist() for row in decoder().generate(inputs, **{"max_new_tokens": COUNT, **settings}).tokens]


PLAIN = greedy(gpt2(), IDS, COUNT)
END = PLAIN[3]
ENDED = PLAIN[: PLAIN.index(END) + 1]

TAKEN: list[tuple[dict[str, Any], dict[str, Any]]] = [  # the same as
    (dict(eos_token_id=torch.tensor([END])), dict(eos_token_id=END)),
    (dict(eos_token_id=torch.tensor(END)), dict(eos_token_id=END)),
    (dict(eos_token_id=np.int64(END)), dict(eos_token_id=END)),
    (dict(eos_token_id=np.array([END, 99])), dict(eos_token_id=END)),
    (dict(eos_token_id=(END,)), dict(eos_token_id=END)),
    (dict(eos_token_id={END}), dict(eos_token_id=END)),
    (dict(eos_token_id=[-1]), {}),  # as transformers has it, "none"
    (dict(eos_token_id=-1), {}),
    (dict(eos_token_id=10**9), {}),
    (dict(eos_token_id=[]), {}),
    (dict(max_new_tokens=np.int32(5)), dict(max_new_tokens=5)),
    (dict(max_new_tokens=torch.tensor(5)), dict(max_new_tokens=5)),
    (dict(max_new_tokens=None, max_length=np.int64(9)), dict(max_new_tokens=4)),
    (dict(max_length=7), {}),  # max_new_tokens comes first
    (dict(max_new_tokens=10**30), dict(max_new_tokens=59)),  # to the context's end
    (dict(num_return_sequences=np.int64(2)), dict(num_return_sequences=2)),
    (dict(gamma=np.int64(2)), dict(gamma=2)),
    (dict(do_sample=np.bool_(False)), {}),
    (dict(do_sample=True, seed=np.int64(3), top_k=np.int64(5)), dict(do_sample=True, seed=3, top_k=5)),
    (dict(do_sample=True, seed=torch.tensor(3)), dict(do_sample=True, seed=3)),
    (dict(do_sample=True, seed=-1), dict(do_sample=True, seed=2**64 - 1)),  # as torch.manual_seed has it
    (
        dict(do_sample=True, seed=3, temperature=np.float32(0.5), top_p=np.float64(0.5), min_p=torch.tensor(0.25)),
        dict(do_sample=True, seed=3, temperature=0.5, top_p=0.5, min_p=0.25),
    ),
    (dict(do_sample=True, seed=3, temperature=torch.tensor(2)), dict(do_sample=True, seed=3, temperature=2.0)),
    (dict(do_sample=True, seed=3, top_k=None), dict(do_sample=True, seed=3, top_k=0)),
    (dict(repetition_penalty=np.float64(1.5)), dict(repetition_penalty=1.5)),
    (dict(repetition_penalty=2), dict(repetition_penalty=2.0)),
    (dict(stop_strings=["a", "zz"]), dict(stop_strings=("zz", "a"))),
    (dict(stop_strings=[]), {}),
    (dict(stop_strings=np.str_("a")), dict(stop_strings="a")),
    (dict(logits_processor=LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)])), dict(no_repeat_ngram_size=2)),
    (dict(logits_processor=iter([same])), {}),
    (dict(logits_processor=LogitsProcessorList()), {}),
    (dict(stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(7)])), dict(max_new_tokens=2)),
    (dict(stopping_criteria=(lambda ids, _: ids.shape[1] >= 7,)), dict(max_new_tokens=2)),
    (dict(generation_config=GenerationConfig(suppress_tokens=[PLAIN[0]])), dict(suppress_tokens=[PLAIN[0]])),
    (dict(generation_config=GenerationConfig(max_new_tokens=3), max_new_tokens=5), dict(max_new_tokens=5)),
    (dict(generation_config=None), {}),
    (dict(suppress_tokens=np.array([PLAIN[0]])), dict(suppress_tokens=[PLAIN[0]])),
    (dict(bad_words_ids=[[PLAIN[0]]]), dict(suppress_tokens=[PLAIN[0]])),
    (dict(pad_token_id=0, use_cache=True, bos_token_id=3, num_beams=1, guidance_scale=None), {}),
    (dict(max_time=1e9), {}),
    (dict(inputs=IDS[None].int()), {}),
    (dict(inputs=[IDS.to(torch.uint8)]), {}),
    (dict(inputs=IDS[None].numpy()), {}),
    (dict(inputs=[IDS.numpy().astype(np.uint16)]), {}),
    (dict(inputs=[IDS.tolist()]), {}),  # as a tokenizer gives them
    (dict(inputs=[tuple(IDS.tolist())]), {}),
    (dict(inputs=iter([IDS])), {}),
    (dict(inputs=[IDS, IDS.tolist()[:3]]), dict(inputs=[IDS, IDS[:3]])),
    (dict(inputs=letters().decode(IDS.tolist())), {}),
]


@pytest.mark.parametrize(("settings", "wanted"), TAKEN, ids=[" ".join(each[0]) for each in TAKEN])
def test_it_is_taken(settings: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert said(**settings) == said(**wanted)
    if "eos_token_id" in wanted:
        assert said(**settings) == [ENDED]


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        (dict(inputs=inputs), named)
        for inputs, named in [
            (5, "inputs is 5"),
            (1.5, "inputs is 1.5"),
            (None, "inputs is None"),
            (True, "inputs is True"),
            (b"abc", "inputs is b'abc'"),
            (Path("a"), "inputs is PosixPath"),
            (Unprintable(), "inputs is an object of Unprintable"),
            (torch.tensor(3), r"inputs is a tensor of shape \(\)"),
            (np.array(3), r"inputs is an array of shape \(\)"),
            (torch.tensor([1, 2]), r"1-d LongTensors"),
            (torch.ones(1, 2, dtype=torch.bool), r"torch.bool"),
            (torch.ones(1, 2, dtype=torch.complex64), r"torch.complex64"),
            (torch.ones(1, 2), r"torch.float32"),
            (torch.ones(1, 2, 3, dtype=torch.int64), r"\(2, 3\)"),
            (torch.ones(1, 2, dtype=torch.int64, device="meta"), r"on meta"),
            ([torch.ones(2, dtype=torch.int64).to_sparse()], r"1-d LongTensors"),
            (np.ones((1, 2)), r"torch.float64"),
            (np.array([["a", "b"]]), r"inputs holds an array"),
            (np.array([[None, 1]]), r"inputs holds an array"),
            ([1, 2], "inputs holds 1:"),
            ([None], "inputs holds None"),
            ([b"ab"], "inputs holds b'ab'"),
            ([[1, "a"]], r"inputs holds \[1, 'a'\]"),
            ([[True, False]], r"inputs holds \[True, False\]"),
            ([[1.0, 2.0]], r"inputs holds \[1.0, 2.0\]"),
            ([[[1, 2]]], r"inputs holds \[\[1, 2\]\]"),
            ([["ab", "cd"]], r"inputs holds \['ab', 'cd'\]"),
            ([[10**30]], "token ids from 1000.* to 1000"),
            ([[-1, 2]], "token ids from -1 to 2"),
            ([[]], "0 tokens"),
            ([{"role": "user", "content": "hi"}], "chat template"),
            ({"input_ids": [[1]]}, "inputs is a mapping"),
            ({"role": "user", "content": "hi"}, "inputs is one message"),
        ]
    ),
    *(
        (dict([pair]), named)
        for pair, named in [
            (("eos_token_id", "x"), "eos_token_id is 'x'"),
            (("eos_token_id", 1.5), "eos_token_id is 1.5"),
            (("eos_token_id", True), "eos_token_id is True"),
            (("eos_token_id", [2, "x"]), r"eos_token_id is \[2, 'x'\]"),
            (("eos_token_id", torch.tensor([2.0])), r"eos_token_id is a tensor"),
            (("eos_token_id", torch.tensor([[2]])), r"eos_token_id is a tensor"),
            (("eos_token_id", {2: 3}), r"eos_token_id is \{2: 3\}"),
            (("stop_strings", b"ab"), "stop_strings is b'ab'"),
            (("stop_strings", 5), "stop_strings is 5"),
            (("stop_strings", ["a", 5]), r"stop_strings is \['a', 5\]"),
            (("stop_strings", [["a"]]), r"stop_strings is \[\['a'\]\]"),
            (("stop_strings", ""), "''"),
            (("top_k", 5.5), "top_k is 5.5"),
            (("top_k", 5.0), "top_k is 5.0"),
            (("top_k", True), "top_k is True"),
            (("top_k", "5"), "top_k is '5'"),
            (("top_k", -1), "top_k is -1"),
            (("temperature", "0.8"), "temperature is '0.8'"),
            (("temperature", float("inf")), "temperature is inf"),
            (("temperature", -1.0), "temperature is -1.0"),
            (("temperature", True), "temperature is True"),
            (("temperature", 1j), "temperature is 1j"),
            (("temperature", [0.5]), r"temperature is \[0.5\]"),
            (("temperature", torch.tensor([0.5])), "temperature is a tensor"),
            (("temperature", torch.tensor(0.5, device="meta")), "temperature is a tensor"),
            (("temperature", 10**400), "temperature is 1000"),
            (("top_p", "a"), "top_p is 'a'"),
            (("top_p", np.array([0.5])), "top_p is an array"),
            (("min_p", float("nan")), "min_p is nan"),
            (("repetition_penalty", "1"), "repetition_penalty is '1'"),
            (("typical_p", "x"), "typical_p is 'x'"),
            (("max_new_tokens", 5.0), "max_new_tokens is 5.0"),
            (("max_new_tokens", "5"), "max_new_tokens is '5'"),
            (("max_new_tokens", True), "max_new_tokens is True"),
            (("max_new_tokens", -1), "max_new_tokens is -1"),
            (("max_new_tokens", np.float64(5)), "max_new_tokens is np.float64"),
            (("num_return_sequences", 0), "num_return_sequences is 0"),
            (("num_return_sequences", 1.5), "num_return_sequences is 1.5"),
            (("seed", 1.5), "seed is 1.5"),
            (("seed", "1"), "seed is '1'"),
            (("seed", True), "seed is True"),
            (("seed", 2**64), "seed is 18446744073709551616"),
            (("seed", -(2**63) - 1), "seed is -9223372036854775809"),
            (("gamma", 2.0), "gamma is 2.0"),
            (("gamma", "many"), "gamma is 'many'"),
            (("gamma", True), "gamma is True"),
            (("rule", 3), "rule is 3"),
            (("rule", ["token"]), r"rule is \['token'\]"),
            (("rule", same), "rule is <function"),
            (("window", {}), r"window is \{\}"),
            (("window", 4), "window is 4"),
            (("do_sample", "yes"), "do_sample is 'yes'"),
            (("do_sample", 1), "do_sample is 1"),
            (("logits_processor", same), "logits_processor is <function same.*in a list"),
            (("logits_processor", NoRepeatNGramLogitsProcessor(2)), "logits_processor is <.*in a list"),
            (("logits_processor", [NoRepeatNGramLogitsProcessor]), "logits_processor holds <class"),
            (("logits_processor", [5]), "logits_processor holds 5"),
            (("logits_processor", "abc"), "logits_processor is 'abc'"),
            (("logits_processor", {"a": same}), "logits_processor is {"),
            (("stopping_criteria", MaxLengthCriteria(5)), "stopping_criteria is <.*in a list"),
            (("stopping_criteria", [None]), "stopping_criteria holds None"),
            (("stopping_criteria", Lines()), "stopping_criteria is two lines"),
            (("streamer", 5), "streamer is 5"),
            (("streamer", Puts()), "streamer is <.*put and end"),
            (("streamer", Puts), "streamer is <class"),
            (("generation_config", {"top_k": 5}), r"generation_config is \{'top_k': 5\}"),
            (("generation_config", GenerationConfig), "generation_config is <class"),
            (("generation_config", GenerationConfig(num_beams=3)), "num_beams=3"),
            (("generation_config", GenerationConfig(temperature="x")), "temperature is 'x'"),
            (("num_beams", 3), "num_beams is 3"),
            (("guidance_scale", 2.0), "guidance_scale is 2.0"),
            (("tokenizer", 1), "unknown setting tokenizer"),
            (("attention_mask", torch.ones(1, 5)), "unknown setting attention_mask"),
            (("tempreature", 1), "did you mean temperature"),
            (("min_new_tokens", -1), "min_new_tokens is -1"),
            (("no_repeat_ngram_size", 2.5), "no_repeat_ngram_size is 2.5"),
            (("suppress_tokens", "abc"), "suppress_tokens is 'abc'"),
            (("bad_words_ids", torch.ones(2)), "bad_words_ids is a tensor"),
            (("sequence_bias", np.ones(2)), "sequence_bias is an array"),
        ]
    ),
    (dict(max_new_tokens=None, max_length=5), "max_length is 5 and the prompt has 5 tokens"),
    (dict(do_sample=True, temperature=0), "temperature is 0 with do_sample=True"),
]


@pytest.mark.parametrize(("settings", "named"), REFUSED, ids=[each[1][:40] for each in REFUSED])
def test_it_is_refused_in_one_line(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SybilError, match=named) as raised:
        said(**settings)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1200
    assert isinstance(raised.value, ValueError)
    if "streamer" not in settings:
        with pytest.raises(SybilError, match=named):
            decoder().stream(**{"inputs": [IDS], "max_new_tokens": COUNT, **settings})


@pytest.mark.parametrize("more", [{}, {"repetition_penalty": 1.1}, {"do_sample": True, "typical_p": 0.9}])
def test_what_processors_and_criteria_give_is_checked(more: dict[str, Any]) -> None:
    """Scores of another shape would be spread over the vocabulary without a word."""
    for gives, named in (
        (lambda _, scores: None, "gave None: return scores of shape .1, "),
        (lambda _, scores: scores[0], "gave a tensor of shape"),
        (lambda _, scores: scores[:, :1], "gave a tensor of shape .1, 1."),
        (lambda _, scores: scores[:, :-1], "gave a tensor of shape"),
        (lambda _, scores: scores.tolist(), "gave "),
    ):
        with pytest.raises(InvalidSetting, match=named):
            said(logits_processor=[gives], seed=1, **more)
    for answer in (None, "yes", [True]):
        with pytest.raises(InvalidSetting, match=r"stopping_criteria holds .* which gave .*: return True or False"):
            said(stopping_criteria=[lambda *_, answer=answer: answer], seed=1, **more)
    for met in (True, 1, np.True_, torch.tensor([True]), torch.tensor(True)):
        assert len(said(stopping_criteria=[lambda *_, met=met: met], seed=1, **more)[0]) == 1


def test_processors_that_leave_no_token_are_named() -> None:
    everything = list(range(decoder().target.vocab_size))
    for settings in (
        dict(suppress_tokens=everything),
        dict(logits_processor=[lambda _, scores: scores - math.inf]),
        dict(suppress_tokens=everything, do_sample=True),
    ):
        with pytest.raises(NumericalFailure, match="no token that may follow, once processors have seen them"):
            said(**settings)


def test_there_are_many() -> None:
    assert len(TAKEN) + len(REFUSED) >= 120


@pytest.mark.parametrize("name", Settings.__dataclass_fields__)
def test_no_value_of_any_setting_ends_in_another_error(name: str) -> None:
    """Every setting, given values of every type."""
    values: list[Any] = [
        "x", b"x", 1.5, -1, 10**30, 2**63, True, float("nan"), float("-inf"), 1j, (), {}, [[]], [None], [[1], 2], ["a"],
        [-1], [10**30], {"a": 1}, object(), int, same, Unprintable(), torch.tensor([[1]]), torch.tensor(1.5),
        torch.empty(0), torch.ones((), device="meta"), np.array([[1]]), np.float16(0.5), np.array("x"), Lines(),
    ]  # fmt: skip
    loaded = decoder()
    for value, do_sample in itertools.product(values, (False, True)):
        asked = {"max_new_tokens": 2, "do_sample": do_sample, name: value}
        with suppress(SybilError):
            loaded.stream([IDS[:2]], **asked)


def test_sampling_and_settings_by_themselves() -> None:
    for wrong in (dict(temperature="x"), dict(top_k=1.5), dict(top_p=None), dict(min_p=[0.1]), dict(processors=same)):
        with pytest.raises(SybilError, match=next(iter(wrong))):
            Sampling(**wrong)  # type: ignore[arg-type]
    assert Sampling(np.float32(0.5), np.int8(3)) == Sampling(0.5, 3)  # type: ignore[arg-type]
    with pytest.raises(SybilError, match="gamma is"):
        Settings(gamma=[3])  # type: ignore[arg-type]
    assert Settings(gamma=None).gamma == "auto"  # type: ignore[arg-type]


def test_custom_generate_refuses_what_generate_refuses() -> None:
    model = gpt2()
    ids = IDS[None]
    asked: dict[str, Any] = dict(
        attention_mask=torch.ones_like(ids), custom_generate=custom_generate, max_new_tokens=4, pad_token_id=0
    )
    wanted = model.generate(ids, draft=None, **asked).tolist()
    assert model.generate(ids, gamma=np.int64(3), draft=perturbed(model, 0.1), **asked).tolist() == wanted
    for wrong, named in (
        (dict(gamma=2.5), "gamma is 2.5"),
        (dict(gamma="x"), "gamma is 'x'"),
        (dict(rule=["token"]), "rule is"),
        (dict(seed="a"), "seed is 'a'"),
        (dict(seed=2**70), "seed is 118"),
        (dict(window=3), "window is 3"),
    ):
        with pytest.raises(SybilError, match=named):
            model.generate(ids, draft=None, **asked, **wrong)


LOADED: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "an empty target": (lambda _: dict(target=""), "target is '': give"),
    "an empty draft": (lambda _: dict(target="stdlib", draft=""), "draft is '': give"),
    "no target": (lambda _: dict(target=None), "target is None"),
    "a number": (lambda _: dict(target=5), "target is 5"),
    "bytes": (lambda folder: dict(target=str(folder).encode()), "target is b'"),
    "a class": (lambda _: dict(target=type(gpt2())), "target is <class"),
    "a layer": (lambda _: dict(target=nn.Linear(2, 2)), "the model is of type Linear"),
    "a state dict": (lambda _: dict(target=gpt2().state_dict()), "target is a mapping of weights"),
    "a config": (lambda _: dict(target=gpt2().config), "target is GPT2Config"),
    "a decoder": (lambda _: dict(target=decoder()), "target is <sybil.decoding.Decoder"),
    "a list": (lambda _: dict(target=[gpt2()]), "target is "),
    "a number for a draft": (lambda _: dict(target=gpt2(), draft=5), "draft is 5"),
    "no draft": (lambda _: dict(target=gpt2(), draft=False), "draft is False"),
    "a draft's state": (lambda _: dict(target=gpt2(), draft=gpt2().state_dict()), "draft is a mapping of weights"),
    "a path to a tokenizer": (lambda folder: dict(target=gpt2(), tokenizer=folder), "tokenizer is PosixPath"),
    "a tokenizer's name": (lambda _: dict(target=gpt2(), tokenizer="gpt2"), "tokenizer is 'gpt2'"),
    "a tokenizer's class": (lambda _: dict(target=gpt2(), tokenizer=PreTrainedTokenizerFast), "tokenizer is <class"),
    "a slow tokenizer": (lambda _: dict(target=gpt2(), tokenizer=CanineTokenizer()), "tokenizer is Canine.*fast"),
    "a tokenizer for a folder": (lambda _: dict(target="stdlib", tokenizer=letters()), "a folder has its own"),
    "a dtype's number": (lambda _: dict(target=gpt2(), dtype=16), "dtype is 16"),
    "a dtype of integers": (lambda _: dict(target=gpt2(), dtype=torch.int64), "dtype is torch.int64"),
    "a uint8 target": (lambda _: dict(target=gpt2(), dtype=torch.uint8), "dtype is torch.uint8"),
    "numpy's dtype": (lambda _: dict(target=gpt2(), dtype=np.float32), "dtype is <class"),
    "a draft's dtype": (lambda _: dict(target=gpt2(), draft=gpt2(), draft_dtype=8), "draft_dtype is 8"),
    "a device's type": (lambda _: dict(target=gpt2(), device=1.5), "device is 1.5"),
    "a device's name": (lambda _: dict(target=gpt2(), device="tpu"), "device is 'tpu'"),
    "a list of devices": (lambda _: dict(target=gpt2(), device=["cpu"]), r"device is \['cpu'\]"),
}


@pytest.mark.parametrize("case", LOADED)
def test_load_refuses_in_one_line(case: str, tmp_path: Path) -> None:
    arguments, named = LOADED[case]
    with pytest.raises(SybilError, match=named) as raised:
        sybil.load(**arguments(tmp_path))
    assert "\n" not in str(raised.value)


def test_load_takes_tokenizers_of_both_libraries_and_modules_of_others() -> None:
    for tokenizer in (letters(), PreTrainedTokenizerFast(tokenizer_object=letters())):
        loaded = sybil.load(gpt2(), tokenizer=tokenizer, device=torch.device("cpu"), dtype=torch.float64)
        assert loaded.generate("abc", max_new_tokens=4, eos_token_id=[]).text
    assert foreign(gpt2()).vocab_size == 31
