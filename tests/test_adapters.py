"""LoRA adapters: merged as float64 merges them and as peft has merged them, or refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ggufs import write
from safetensors.torch import load_file, save_file
from test_huggingface import gpt_neo
from tiny import gpt2, in_float64, llama, prompts, save, sybil
from torch import Tensor
from transformers import PreTrainedModel

from sybil import Decoder, load
from sybil.errors import AdapterMismatch, InvalidSetting, NotAModel, SybilError
from sybil.judging.original import Original
from sybil.models.adapting import adapted
from sybil.models.checkpoints.adapters import CONFIG, WEIGHTS
from sybil.models.folders import read

GPT2 = {
    "transformer.h.0.attn.c_attn": (96, 32),
    "transformer.h.1.attn.c_proj": (32, 32),  # (inputs, outputs) in GPT-2's files, which no shape tells
    "transformer.h.1.mlp.c_fc": (128, 32),
}
LLAMA = {"model.layers.0.self_attn.q_proj": (16, 16), "model.layers.1.mlp.down_proj": (16, 32)}
NEO = {"transformer.h.0.attn.attention.v_proj": (16, 16), "transformer.h.1.mlp.c_fc": (64, 16)}
PEFT = Path(__file__).parent / "by_peft"


def adapter(
    folder: Path,
    sizes: Mapping[str, tuple[int, int]],
    ranks: Mapping[str, int] | None = None,
    also: Mapping[str, Tensor] | None = None,
    **config: Any,
) -> Path:
    """A folder as peft writes it: products for modules of these outputs and inputs. also: other tensors, by the names
    of the model's."""
    generator, tensors = torch.Generator().manual_seed(5), {}
    for module, (outputs, inputs) in sizes.items():
        rank, name = (ranks or {}).get(module, 4), f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.3
        tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.3
    tensors |= {f"base_model.model.{name}": tensor for name, tensor in (also or {}).items()}
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": [*sizes], "bias": "none"}
    (folder / CONFIG).write_text(json.dumps(fields | config))
    return folder


def merged(model: PreTrainedModel, folder: Path, scales: Mapping[str, float], usual: float = 1.5) -> PreTrainedModel:
    """The reference, module by module in the model's float64. scales: of modules whose scale isn't the usual one."""
    model, tensors = copy.deepcopy(model), load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, module in model.named_modules():
            up = tensors.get(f"base_model.model.{name}.lora_B.weight")
            if up is not None:
                down = tensors[f"base_model.model.{name}.lora_A.weight"]
                product = scales.get(name, usual) * (up.double() @ down.double())
                module.weight += product.T if type(module).__name__ == "Conv1D" else product
    return model


@torch.no_grad()
def assert_says(decoder: Decoder, model: PreTrainedModel) -> None:
    ids = torch.randint(31, (1, 40), generator=torch.Generator().manual_seed(0))
    found = decoder.target.forward(ids, decoder.target.new_cache(1, 40))
    wanted = in_float64(copy.deepcopy(model))(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "sizes"), [(gpt2, GPT2), (llama, LLAMA), (gpt_neo, NEO)], ids=["transposed", "plain", "by transformers"]
)
def test_merged_weights_say_what_float64_says(
    make: Callable[[], PreTrainedModel], sizes: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    base, given = save(make(), tmp_path / "base"), adapter(tmp_path / "adapter", sizes)
    decoder = load(base, adapter=given, dtype="float64", device="cpu")
    assert_says(decoder, merged(make(), given, {}))
    with pytest.raises(AssertionError, match="not close"):
        assert_says(decoder, make())
    with pytest.raises(AssertionError, match="not close"):  # another scale would be seen
        assert_says(decoder, merged(make(), given, {}, usual=1.5001))


def test_scales_by_module_and_by_rank(tmp_path: Path) -> None:
    base = save(gpt2(), tmp_path / "base")
    first, second, third = GPT2
    patterns = {"rank_pattern": {"c_fc": 2}, "alpha_pattern": {"^h.0.attn.c_attn": 9, f"^{first}": 3, "c_fc": 5}}
    given = adapter(tmp_path / "patterns", GPT2, {third: 2}, **patterns)
    assert_says(load(base, adapter=given, dtype="float64"), merged(gpt2(), given, {first: 3 / 4, third: 5 / 2}))
    stable = adapter(tmp_path / "stable", GPT2, {third: 2}, use_rslora=True, **patterns)
    scales = {first: 3 / 2, second: 6 / 2, third: 5 / 2**0.5}
    assert_says(load(base, adapter=stable, dtype="float64"), merged(gpt2(), stable, scales))


def test_modules_that_are_saved_whole(tmp_path: Path) -> None:
    """Also the head and the embedding of a model that has one weight for both."""
    generator = torch.Generator().manual_seed(1)
    head, embedding = (torch.randn(31, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    base = save(llama(), tmp_path / "llama")
    given = adapter(tmp_path / "head", LLAMA, also={"lm_head.weight": head}, modules_to_save=["lm_head"])
    wanted = merged(llama(), given, {})
    wanted.lm_head.weight = torch.nn.Parameter(head)
    assert_says(load(base, adapter=given, dtype="float64"), wanted)
    assert Original(base, "float64", "cpu", adapter=given).model.lm_head.weight.equal(head)

    tied = save(gpt2(), tmp_path / "gpt2")
    both = {"transformer.wte.weight": embedding.repeat(1, 2), "lm_head.weight": head.repeat(1, 2)}
    given = adapter(tmp_path / "both", GPT2, also=both, modules_to_save=["wte", "lm_head"])
    wanted = merged(gpt2(), given, {})
    wanted.lm_head.weight = torch.nn.Parameter(both["lm_head.weight"])
    wanted.transformer.wte.weight = torch.nn.Parameter(both["transformer.wte.weight"])
    assert_says(load(tied, adapter=given, dtype="float64"), wanted)


def test_a_checkpoint_that_leaves_the_first_part_of_names_out(tmp_path: Path) -> None:
    """As GPT-2's own on the hub."""
    base, given = save(gpt2(), tmp_path / "base"), adapter(tmp_path / "adapter", GPT2)
    state = load_file(base / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    save_file(short, base / "model.safetensors", {"format": "pt"})
    assert_says(load(base, adapter=given, dtype="float64"), merged(gpt2(), given, {}))
    assert_says_the_same(Original(base, "float64", "cpu", adapter=given).model, merged(gpt2(), given, {}))


@torch.no_grad()
def assert_says_the_same(one: PreTrainedModel, other: PreTrainedModel) -> None:
    ids = torch.arange(20)[None]
    torch.testing.assert_close(one(input_ids=ids).logits, other(input_ids=ids).logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [gpt2, llama, gpt_neo])
def test_the_judge_has_the_merged_weights_too(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    sizes = {gpt2: GPT2, llama: LLAMA, gpt_neo: NEO}[make]  # type: ignore[index]
    base, given = save(make(), tmp_path / "base"), adapter(tmp_path / "adapter", sizes)
    assert_says_the_same(Original(base, "float64", "cpu", adapter=given).model, merged(make(), given, {}))


def test_a_weight_in_half_precision_is_rounded_once(tmp_path: Path) -> None:
    """After the sum, and not before it: so the merged weight is in float32 until it is kept."""
    base, given = save(copy.deepcopy(llama()).bfloat16(), tmp_path / "base"), adapter(tmp_path / "adapter", LLAMA)
    stored = adapted(read(base), given).stored
    assert stored
    name = "model.layers.0.self_attn.q_proj.weight"
    assert stored.read(name).dtype == stored.dtypes[name] == torch.float32
    assert stored.read("model.norm.weight").dtype == torch.bfloat16


@pytest.mark.parametrize("draft", ["self:8", "lookup", "skip:1"])
def test_drafts_of_a_merged_target_change_no_token(draft: str, tmp_path: Path) -> None:
    base, given = save(gpt2(), tmp_path / "base"), adapter(tmp_path / "adapter", GPT2)
    decoder = load(base, draft, adapter=str(given))
    settings = dict(max_new_tokens=20, eos_token_id=[])
    plain, found = (each.generate(prompts([5]), **settings) for each in (decoder.without_draft(), decoder))
    assert plain.tokens[0].tolist() == found.tokens[0].tolist()
    assert load(base, draft).generate(prompts([5]), **settings).tokens[0].tolist() != found.tokens[0].tolist()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_peft_has_merged(kind: str, tmp_path: Path) -> None:
    """tests/by_peft/make.py wrote the adapter by peft, and what peft's merge_and_unload() adds to each weight."""
    folder, model = PEFT / kind, {"gpt2": gpt2, "llama": llama}[kind]()
    stored, wanted = (
        adapted(read(save(model, tmp_path / "base")), folder).stored,
        load_file(folder / "merged.safetensors"),
    )
    assert stored
    before = {name: weight for name, weight in model.state_dict().items() if name in stored.shapes}
    assert {name for name, weight in before.items() if not stored.read(name).equal(weight)} == {*wanted}
    for name, weight in wanted.items():
        found = stored.read(name) if name == "lm_head.weight" else stored.read(name) - before[name]
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-12)


TIED = "the target's head is its embedding: merge it by peft's"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": (dict(peft_type="IA3"), r"is of type 'IA3', and Sybil merges LORA: merge it by peft's"),
    "DoRA": (dict(use_dora=True), r"has DoRA, which Sybil doesn't merge: merge it by peft's merge_and_unload\(\)"),
    "biases": (dict(bias="all"), r"has biases \(bias is 'all'\), which Sybil doesn't merge"),
    "biases of its own": (dict(lora_bias=True), r"has biases of its own, which"),
    "tokens": (dict(trainable_token_indices=[1, 2]), r"has tokens that are trained one by one, which"),
    "experts": (dict(target_parameters=["a.b"]), r"has parameters of experts, which"),
    "another start": (dict(init_lora_weights="pissa"), r"has another base than its own \(init_lora_w.* 'pissa'\)"),
    "a later kind": (dict(use_something=True), r"has 'use_something', which Sybil doesn't merge"),
    "another later kind": (dict(arrow_config={"a": 1}), r"has 'arrow_config', which Sybil doesn't merge"),
    "a pattern": (dict(alpha_pattern={r".*\.c_fc": 3}), r"has .* in alpha_pattern, where Sybil reads names of modules"),
    "an embedding": (
        dict(also={"transformer.wte.lora_embedding_A": torch.zeros(4, 31)}), r"\(of an embedding\), and Sybil merges",
    ),
    "a magnitude": (dict(also={"transformer.h.0.attn.c_attn.lora_magnitude_vector": torch.zeros(96)}), r"\(of DoRA\)"),
    "an unknown tensor": (dict(also={"transformer.h.0.attn.c_attn.odd": torch.zeros(1)}), r"odd' \(unknown\)"),
    "whole numbers": (
        dict(also={"lm_head.weight": torch.zeros(31, 32, dtype=torch.int32)}, modules_to_save=["lm_head"]),
        r"of I32: save it in float32",
    ),
    "half a product": (
        dict(also={"transformer.h.0.mlp.c_proj.lora_A.weight": torch.zeros(4, 128)}), r"lacks lora_B of 'transformer",
    ),
    "another rank": (dict(r=8), r"its config asks for rank 8: they must be \(rank, inputs\) and \(outputs, rank\)"),
    "a tied head": (dict(sizes=GPT2 | {"lm_head": (31, 32)}), rf"changes 'lm_head.weight', and {TIED}"),
    "a tied embedding": (
        dict(also={"transformer.wte.weight": torch.zeros(31, 32)}, modules_to_save=["wte"]),
        rf"changes transformer.wte.weight, and {TIED}",
    ),
    "another size": (
        dict(sizes={"transformer.h.0.attn.c_attn": (48, 16)}, base_model_name_or_path="me/small"),
        r"c_attn.weight' of shape \(16, 48\), and the target has \(32, 96\): .* is of another base, 'me/small'$",
    ),
    "turned round": (dict(sizes={"transformer.h.0.mlp.c_fc": (32, 128)}), r"of shape \(128, 32\), and the target has"),
    "another size, whole": (
        dict(also={"transformer.ln_f.weight": torch.zeros(8)}, modules_to_save=["ln_f"]), r"of shape \(8,\), and the",
    ),
    "another architecture": (
        dict(sizes=LLAMA), r"changes 'model.layers.0.self_attn.q_proj.weight', which the target lacks: .* base$",
    ),
    "nothing": (dict(sizes={}), r"holds no tensor: train it, or leave adapter out"),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(gpt2(), tmp_path_factory.mktemp("base"))


def refused(base: Any, kind: type[SybilError], match: str, **keywords: Any) -> None:
    with pytest.raises(kind, match=match) as raised:
        load(base, **keywords)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_merged_is_one_line(name: str, base: Path, tmp_path: Path) -> None:
    config, line = REFUSED[name]
    given = adapter(tmp_path / "adapter", **{"sizes": GPT2, **config})
    refused(base, AdapterMismatch, rf"^the adapter {given} .*{line}", adapter=given)


def test_an_adapter_of_another_model_of_the_hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are compared where both are hub ids. Owners are not: mirrors have the same weights."""
    given = adapter(tmp_path / "adapter", GPT2, base_model_name_or_path="openai-community/gpt2-medium")
    monkeypatch.setattr("sybil.models.checkpoints.hub.fetch", lambda *_: base)
    line = r"was made for openai-community/gpt2-medium and the target is gpt2: use that target; .* target's folder"
    refused("gpt2", AdapterMismatch, line, adapter=given)
    for name in ("openai-community/gpt2-medium", "GPT2-Medium", "somebody/gpt2-medium", base):
        assert load(name, adapter=given).target


def test_targets_that_take_no_adapter(base: Path, tmp_path: Path) -> None:
    given = adapter(tmp_path / "adapter", GPT2)
    refused(gpt2(), InvalidSetting, r"GPT2LMHeadModel is an object: give the Hugging Face folder", adapter=given)
    file = write(copy.deepcopy(llama()).float(), tmp_path / "model.gguf")
    refused(file, InvalidSetting, r"model.gguf is a GGUF file: give the Hugging Face folder", adapter=given)
    for odd in (5, "", ["a"]):
        refused(base, InvalidSetting, "^adapter is .*: give an adapter's folder or hub id", adapter=odd)


def test_folders_that_hold_no_adapter(base: Path, tmp_path: Path) -> None:
    refused(base, NotAModel, rf"^{base} holds no {CONFIG}: give an adapter's folder", adapter=base)
    refused(
        base, NotAModel, r"nowhere is no folder: give an adapter's folder or its hub id", adapter=tmp_path / "nowhere"
    )
    given = adapter(tmp_path / "adapter", GPT2)
    (given / WEIGHTS).rename(given / "adapter_model.bin")
    refused(base, NotAModel, rf"holds no {WEIGHTS}: Sybil reads weights from safetensors only", adapter=given)
    (given / WEIGHTS).write_bytes(b"abc")
    refused(base, NotAModel, r"is not a safetensors file", adapter=given)
    for odd in ({"r": 0}, {"r": True}, {"lora_alpha": -1}, {"rank_pattern": 3}, {"alpha_pattern": {"c_fc": "x"}}):
        given = adapter(tmp_path / f"odd {odd}", GPT2, **odd)
        refused(base, NotAModel, rf"has {next(iter(odd))} .*, and allowed is", adapter=given)
    given = adapter(tmp_path / "lists", GPT2, rank_pattern={"c_fc": [4], "a": None})  # which no rank equals
    assert load(base, adapter=given).target


def test_on_the_command_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = adapter(tmp_path / "adapter", GPT2)
    texts = []
    for more in ((), ("--adapter", given)):
        assert sybil("generate", "abc", "--json", "--target", base, "--max-new-tokens", 12, *more) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] != texts[1]
    assert sybil("generate", "abc", "--target", base, "--adapter", adapter(tmp_path / "other", LLAMA)) == 2
    assert "the adapter is of another base" in capsys.readouterr().err
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "abc"}\n')
    models = ("--target", base, "--adapter", given, "--max-new-tokens", 4, "--prompts", file)
    assert sybil("compare", *models, "--out", tmp_path / "out", "--check") == 0  # transformers has the merged weights
    out = capsys.readouterr().out
    assert "PASS" in out
    assert f"adapter {given}" in out.replace("\n", " ")
