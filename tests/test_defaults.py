"""What a model's own files ask of a generation is what transformers' generate makes of them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import gpt2, in_sybil, letters, perturbed, prompts, save
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2LMHeadModel, WatermarkingConfig

import sybil
from sybil.errors import InvalidSetting, NotAModel
from sybil.losslessness.samples import Request
from sybil.losslessness.subjects import SybilSubject
from sybil.measuring import compare
from sybil.measuring.contenders import SybilContender, TransformersContender
from sybil.measuring.prompts import Prompt
from sybil.sampling import probabilities, process
from sybil.settings import chosen
from sybil.shaping import sampling

VOCAB, COUNT = 31, 16
GREEDY: dict[str, dict[str, Any]] = {
    "repetition": dict(repetition_penalty=1.6),
    "n-grams": dict(no_repeat_ngram_size=2),
    "the prompt's": dict(encoder_repetition_penalty=0.5, encoder_no_repeat_ngram_size=2),
    "bad words": dict(bad_words_ids=[[10], [20, 20], [3, 3], [16]]),
    "bias": dict(sequence_bias=[[[5], 3.0], [[10], -9.0], [[5, 16], 9.0]]),
    "suppressed": dict(suppress_tokens=[10, 20, 3]),
    "suppressed at first": dict(begin_suppress_tokens=list(range(0, 31, 2))),
    "least length": dict(min_length=11, eos_token_id=[3, 10, 20, 25]),
    "least new tokens": dict(min_new_tokens=5, min_length=25, eos_token_id=[3, 10, 20, 25]),
    "forced": dict(forced_eos_token_id=7, forced_bos_token_id=9),
    "several forced": dict(forced_eos_token_id=[7, 8]),
    "decay": dict(exponential_decay_length_penalty=[2, 1.9], eos_token_id=7),
    "watermark": dict(watermarking_config={"bias": 4.0, "seeding_scheme": "lefthash"}),
    "invalid": dict(remove_invalid_values=True, renormalize_logits=True, suppress_tokens=[10]),
    "lengths": dict(max_new_tokens=7),
    "length with the prompt": dict(max_length=14),
    "both lengths": dict(max_length=12, max_new_tokens=9),
    "end tokens": dict(eos_token_id=[3, 25]),
    "stop strings": dict(stop_strings=["j", "ty"]),
    "sampling that greedy decoding has no use for": dict(do_sample=False, temperature=0.0, top_k=7, top_p=0.0),
    "no effect": dict(use_cache=False, pad_token_id=3, num_beams=1, length_penalty=3.0, early_stopping=True),
    "all sorts": dict(
        repetition_penalty=1.2, no_repeat_ngram_size=3, min_new_tokens=5, eos_token_id=[3, 18], suppress_tokens=[4],
        max_new_tokens=12,
    ),
}  # fmt: skip
SAYING_NOTHING = ("sampling that greedy decoding has no use for", "no effect")
SAMPLED: dict[str, dict[str, Any]] = {
    "nothing said": {},
    "ours": dict(temperature=0.6, top_k=9, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
    "off": dict(top_k=0, top_p=1.0),
    "typical": dict(typical_p=0.4, temperature=0.7),
    "epsilon": dict(epsilon_cutoff=0.04, top_k=0),
    "eta": dict(eta_cutoff=0.1, top_k=20),
    "top h": dict(top_h=0.5),
    "watermark": dict(watermarking_config={"bias": 3.0}, top_k=8),
    "all sorts": dict(typical_p=0.9, top_p=0.95, epsilon_cutoff=0.01, no_repeat_ngram_size=2, renormalize_logits=True),
}


def asking(**asked: Any) -> GPT2LMHeadModel:
    """A model with generation defaults of its own."""
    model = copy.copy(gpt2())
    model.generation_config = GenerationConfig(**{"eos_token_id": 0, "pad_token_id": 0, **asked})
    return model


def by_transformers(model: GPT2LMHeadModel, prompt: Tensor, **settings: Any) -> list[int]:
    ids, tokenizer = prompt[None], None
    if model.generation_config.stop_strings:
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters())
    out = model.generate(ids, attention_mask=torch.ones_like(ids), tokenizer=tokenizer, **settings)
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def length(asked: dict[str, Any]) -> dict[str, Any]:
    """128 tokens are Sybil's own where nothing is said, and too many here."""
    return {} if asked.keys() & {"max_new_tokens", "max_length"} else {"max_new_tokens": COUNT}


@pytest.mark.parametrize("kind", GREEDY)
def test_greedy_text_is_transformers(kind: str) -> None:
    asked, inputs = GREEDY[kind], prompts([3, 8, 5])
    model = asking(**asked)
    wanted = [by_transformers(model, prompt, **length(asked)) for prompt in inputs]
    plain = sybil.load(model, tokenizer=letters())
    drafted = sybil.load(model, perturbed(gpt2(), 0.05), tokenizer=letters())
    for decoder, gamma in ((plain, None), (drafted, 1), (drafted, 4), (drafted.without_draft(), None)):
        out = decoder.generate(inputs, gamma=gamma, **length(asked))
        assert [row.tolist() for row in out.tokens] == wanted, (kind, gamma)
        alone = decoder.generate(inputs[1:2], gamma=gamma, **length(asked))
        assert alone.tokens[0].tolist() == wanted[1]
    neutral = drafted.without_defaults().generate(inputs, eos_token_id=None, max_new_tokens=COUNT)
    bare = [by_transformers(asking(eos_token_id=None), prompt, max_new_tokens=COUNT) for prompt in inputs]
    assert [row.tolist() for row in neutral.tokens] == bare
    assert kind in SAYING_NOTHING or wanted != bare, "the setting says nothing here"


@pytest.mark.parametrize("kind", SAMPLED)
def test_sampled_distributions_are_transformers(kind: str) -> None:
    """The distribution of each token of a text that transformers drew, and what Sybil draws of it."""
    model, (prompt,) = asking(do_sample=True, **SAMPLED[kind]), prompts([5])
    torch.manual_seed(0)
    drawn = model.generate(
        prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=COUNT, eos_token_id=None,
        output_scores=True, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    decoder = sybil.load(model, perturbed(gpt2(), 0.3))
    settings = chosen(decoder.defaults, {"max_new_tokens": COUNT, "eos_token_id": None})
    asked = sampling(settings, [prompt.tolist()], VOCAB, torch.device("cpu"))
    logits = torch.stack(drawn.logits, 1)  # (1, COUNT, vocab)
    everywhere = torch.ones(1, COUNT, dtype=torch.bool)
    shaped = process(logits, [drawn.sequences[0, :-1]], everywhere, asked.processors) if asked.processors else logits
    wanted = torch.stack(drawn.scores, 1).softmax(-1)
    assert torch.allclose(probabilities(shaped, asked), wanted, atol=1e-6, rtol=0)
    support = set(wanted[0, 0].nonzero().flatten().tolist())
    found = decoder.generate([prompt] * 300, max_new_tokens=1, seed=1, gamma=2, eos_token_id=None)
    likely = {token for token in support if wanted[0, 0, token] > 0.05}  # left out by 300 draws once in 5 million
    assert likely <= {int(row) for row in found.tokens} <= support


def test_a_folder_s_files_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    save(gpt2(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    prompt = prompts([4])[0]
    cases: list[tuple[dict[str, Any] | None, dict[str, Any]]] = [
        (None, {}),
        (None, {"repetition_penalty": 5.0, "no_repeat_ngram_size": 3}),  # as files of long ago have it
        ({"eos_token_id": 0}, {"repetition_penalty": 5.0}),  # where there is a newer file, theirs says nothing
        ({"eos_token_id": 0, "repetition_penalty": 5.0, "temperature": None}, {}),
        ({"eos_token_id": [0, 25], "max_length": 17}, {}),
        (None, {"eos_token_id": 16}),
    ]
    texts = []
    for generation, more in cases:
        (tmp_path / "config.json").write_text(json.dumps({**config, **more}))
        (tmp_path / "generation_config.json").unlink(missing_ok=True)
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        asked = length(generation or {})
        texts.append(by_transformers(model, prompt, pad_token_id=0, **asked))
        for decoder in (sybil.load(tmp_path, dtype=torch.float64), sybil.load(model)):
            assert decoder.generate([prompt], **asked).tokens[0].tolist() == texts[-1]
    assert len({tuple(text) for text in texts}) == 4


def test_end_tokens_that_generation_config_lacks_are_config_json_s(tmp_path: Path) -> None:
    folder = save(gpt2(), tmp_path)
    (folder / "generation_config.json").write_text("{}")
    assert sybil.load(folder).eos_token_ids == {0}
    (folder / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    decoder = sybil.load(folder)
    assert decoder.eos_token_ids == {4, 5}
    assert decoder.defaults["eos_token_id"] == [4, 5]
    for wrong in ('"x"', "1.5", "[1, [2]]", "true", '{"a": 1}'):
        (folder / "generation_config.json").write_text(f'{{"eos_token_id": {wrong}}}')
        with pytest.raises(NotAModel, match="eos_token_id"):
            sybil.load(folder)


def test_defaults_are_visible_and_keywords_override_them() -> None:
    asked = dict(do_sample=True, temperature=0.7, top_k=5, repetition_penalty=1.6, no_repeat_ngram_size=2)
    decoder = sybil.load(asking(**asked))
    assert dict(decoder.defaults) == {"eos_token_id": [0], **asked}
    with pytest.raises(TypeError):
        decoder.defaults["top_k"] = 3  # type: ignore[index]
    assert decoder.without_draft().defaults == decoder.defaults
    assert dict(decoder.without_defaults().defaults) == {"eos_token_id": [0]}
    (prompt,) = prompts([5])
    neutral = by_transformers(asking(), prompt, max_new_tokens=COUNT)
    for off in (
        dict(do_sample=False, repetition_penalty=1.0, no_repeat_ngram_size=0),
        dict(do_sample=None, repetition_penalty=None, no_repeat_ngram_size=None),
        dict(generation_config=GenerationConfig(do_sample=False, repetition_penalty=1.0, no_repeat_ngram_size=0)),
        dict(generation_config=GenerationConfig(do_sample=True, repetition_penalty=1.0), do_sample=False,
             no_repeat_ngram_size=0),
    ):  # fmt: skip
        assert decoder.generate([prompt], max_new_tokens=COUNT, **off).tokens[0].tolist() == neutral
    partly = by_transformers(asking(**asked), prompt, max_new_tokens=COUNT, do_sample=False, repetition_penalty=1.0)
    out = decoder.generate([prompt], max_new_tokens=COUNT, do_sample=False, repetition_penalty=1.0)
    assert out.tokens[0].tolist() == partly != neutral


def test_none_switches_a_setting_off_as_in_transformers() -> None:
    (prompt,) = prompts([5])
    model = asking(eos_token_id=25, max_new_tokens=COUNT, suppress_tokens=[10], max_length=9)
    decoder = sybil.load(model)
    for off in (dict(eos_token_id=None), dict(suppress_tokens=None), dict(max_new_tokens=None), {}):
        wanted = by_transformers(model, prompt, **off)
        assert decoder.generate([prompt], **off).tokens[0].tolist() == wanted
    settings = chosen({}, {"top_k": None, "top_p": None, "temperature": None})
    assert (settings.top_k, settings.top_p, settings.temperature) == (0, 1.0, 1.0)
    assert chosen({}, {}).top_k == GenerationConfig._get_default_generation_params()["top_k"] == 50


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (dict(num_beams=4), "num_beams 4"),
        (dict(guidance_scale=1.5), "guidance_scale 1.5"),
        (dict(penalty_alpha=0.6, top_k=4), "penalty_alpha 0.6"),
        (dict(dola_layers="high", num_beams=2), "dola_layers 'high', num_beams 2"),
        (dict(token_healing=True), "token_healing True"),
    ],
)
def test_what_sybil_does_not_do_is_said_and_left_out(asked: dict[str, Any], named: str) -> None:
    with pytest.warns(UserWarning, match=f"GPT2LMHeadModel asks for {named} by default") as said:
        decoder = sybil.load(asking(**asked))
    assert said[0].filename == __file__
    (prompt,) = prompts([5])
    wanted = by_transformers(asking(), prompt, max_new_tokens=COUNT)
    assert decoder.generate([prompt], max_new_tokens=COUNT).tokens[0].tolist() == wanted
    for asked_here in (asked, {"generation_config": GenerationConfig(**asked)}):
        with pytest.raises(InvalidSetting, match="greedily and by sampling, leave it out"):
            decoder.generate([prompt], **asked_here)


def test_a_model_that_asks_for_nothing_odd_is_loaded_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sybil.load(asking(num_beams=1, guidance_scale=1.0, penalty_alpha=0.0, use_cache=True, repetition_penalty=1.2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("repetition_penalty", -1),
        ("no_repeat_ngram_size", 1.5),
        ("suppress_tokens", "abc"),
        ("bad_words_ids", [[-3]]),
        ("bad_words_ids", [[99]]),
        ("bad_words_ids", []),
        ("sequence_bias", {"a": 1}),
        ("sequence_bias", 5),
        ("forced_bos_token_id", 31),
        ("forced_eos_token_id", [0, -1]),
        ("exponential_decay_length_penalty", [1]),
        ("exponential_decay_length_penalty", "x"),
        ("watermarking_config", {"nothing": 1}),
        ("watermarking_config", 7),
        ("typical_p", 0.0),
        ("top_h", 7.0),
        ("max_length", 0),
        ("max_length", 3),
        ("max_time", "soon"),
        ("stop_strings", [1]),
        ("do_sample", "yes"),
    ],
)
def test_what_a_file_has_wrong_is_one_line_and_can_be_overridden(name: str, value: Any, tmp_path: Path) -> None:
    folder = save(gpt2(), tmp_path)
    sampled = {"do_sample": True} if name in ("temperature", "typical_p", "top_h") else {}
    (folder / "generation_config.json").write_text(json.dumps({name: value, "eos_token_id": 0, **sampled}))
    decoder, (prompt,) = sybil.load(folder), prompts([5])
    with pytest.raises(InvalidSetting, match=f"^{name} .*the model's own default, which {name}= overrides") as raised:
        decoder.generate([prompt])
    assert "\n" not in str(raised.value)
    assert len(decoder.generate([prompt], **{name: None, "max_new_tokens": 2, "eos_token_id": None}).tokens[0]) == 2


def test_a_synthid_watermark_is_refused_for_it_remembers() -> None:
    from transformers import SynthIDTextWatermarkingConfig

    decoder = sybil.load(gpt2())
    with pytest.raises(InvalidSetting, match=r"SynthID.*remembers"):
        decoder.generate(prompts([3]), watermarking_config=SynthIDTextWatermarkingConfig(3, [1, 2, 3]))
    out = decoder.generate(prompts([3]), watermarking_config=WatermarkingConfig(bias=9.0), max_new_tokens=3)
    assert len(out.tokens[0]) <= 3


ASKED = dict(do_sample=True, repetition_penalty=3.0, no_repeat_ngram_size=2, max_new_tokens=3, suppress_tokens=[20])


def test_judges_and_measurements_take_pure_settings() -> None:
    """Both sides of a comparison decode greedily and end at the same tokens, whatever the files ask for."""
    (prompt,) = prompts([5])
    model, draft = asking(**ASKED), asking(**ASKED, num_assistant_tokens=3)
    wanted = by_transformers(asking(eos_token_id=25), prompt, max_new_tokens=COUNT)
    decoder = sybil.load(model, in_memory_draft := perturbed(gpt2(), 0.05), tokenizer=letters())
    assert in_memory_draft is not model
    decoder.eos_token_ids = frozenset({25})
    assert SybilContender(decoder, gamma=3).run(prompt, COUNT).tokens == wanted
    assert TransformersContender(model, decoder.eos_token_ids).run(prompt, COUNT).tokens == wanted
    assert TransformersContender(model, decoder.eos_token_ids, draft).run(prompt, COUNT).tokens == wanted
    assert not model._forward_pre_hooks  # a model that was measured may be loaded next
    request = Request(max_new_tokens=COUNT, temperature=0.0, eos_token_ids=(25,))
    (sample,) = SybilSubject(decoder).sample([prompt.tolist()], request, 0)
    assert list(sample.tokens) == wanted


def test_compare_gives_both_sides_the_same(tmp_path: Path) -> None:
    """generation_config.json names no end token, where transformers would know of none, and asks for penalties."""
    prompt = Prompt("a", "code", "abc")
    plain = by_transformers(asking(eos_token_id=None), torch.tensor([1, 2, 3]), max_new_tokens=COUNT)
    model = copy.deepcopy(gpt2())
    model.config.eos_token_id = plain[6]
    folders = [str(save(each, tmp_path / name)) for name, each in (("target", model), ("draft", gpt2()))]
    asked = {name: value for name, value in ASKED.items() if name != "do_sample"}
    for folder in folders:
        (Path(folder) / "generation_config.json").write_text(json.dumps({**asked, "num_assistant_tokens": 5}))
    task = compare.Task(
        target=folders[0], draft=folders[1], max_new_tokens=COUNT, gamma=3, dtype="float64", device="cpu", prompts=""
    )
    rows = list(compare.Comparison(task).rows([prompt]))
    assert {row["contender"] for row in rows} == set(task.contenders)
    for row in rows:
        assert row["tokens"] == plain[: plain.index(plain[6]) + 1], row["contender"]


def test_custom_generate_applies_the_model_s_defaults_once() -> None:
    (prompt,) = prompts([5])
    model = asking(repetition_penalty=1.6, no_repeat_ngram_size=3, max_new_tokens=COUNT)
    ids = prompt[None]
    wanted = by_transformers(model, prompt)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), custom_generate=sybil.custom_generate, draft=None)
    assert out[0, len(prompt) :].tolist() == wanted


def test_rows_of_one_prompt_share_their_processors() -> None:
    """A watermark's table is eight megabytes."""
    settings = chosen({}, {"watermarking_config": {"bias": 1.0}, "max_new_tokens": 4})
    (shaped,) = sampling(settings, [[1, 2]] * 50 + [[3]], VOCAB, torch.device("cpu")).processors
    assert len({id(row) for row in shaped.rows}) == 2


def test_transformers_is_imported_for_processors_alone() -> None:
    """A process of its own: it takes seconds, and here it is there already."""
    code = """
import sys, sybil, torch
decoder = sybil.load("stdlib")
text = decoder.generate("def main(", max_new_tokens=8, stop_strings=["\\n\\n"], do_sample=True, top_k=5).text
assert "transformers" not in sys.modules, "transformers is imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_target_s_files_count_and_not_the_draft_s() -> None:
    (prompt,) = prompts([5])
    draft = copy.copy(perturbed(gpt2(), 0.05))
    draft.generation_config = GenerationConfig(repetition_penalty=2.0, num_beams=3, max_new_tokens=1)
    decoder = sybil.load(asking(), draft)
    assert dict(decoder.defaults) == {"eos_token_id": [0]}
    wanted = by_transformers(asking(), prompt, max_new_tokens=COUNT)
    assert decoder.generate([prompt], max_new_tokens=COUNT).tokens[0].tolist() == wanted
    assert in_sybil(gpt2()).vocab_size == VOCAB
