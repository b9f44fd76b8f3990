"""load(model): a model object says what its own forward says, whatever was done to it, and is left as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from configurations import CONFIGS, example, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import gpt2, greedy, llama, prompts, save
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    activations,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.llama import modeling_llama
from transformers.pytorch_utils import Conv1D

import sybil
from sybil.errors import UnsupportedModel
from sybil.models import objects
from sybil.models.huggingface import HuggingFaceModel

COUNT = 12
PROMPTS = prompts([3, 9])


def said(model: PreTrainedModel) -> list[list[int]]:
    """transformers' own greedy tokens."""
    return [greedy(model, prompt, COUNT) for prompt in PROMPTS]


def decoded(decoder: sybil.Decoder) -> list[list[int]]:
    out = decoder.generate(PROMPTS, max_new_tokens=COUNT, eos_token_id=[], gamma=3)
    return [row.tolist() for row in out.tokens]


def runs_itself(decoder: sybil.Decoder) -> bool:
    return isinstance(decoder.target, HuggingFaceModel)


class LoRA(nn.Linear):
    """A linear layer with an adapter, by a subclass as peft has it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, dtype=base.weight.dtype)
        self.load_state_dict(base.state_dict())
        generator = torch.Generator().manual_seed(1)
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=generator, dtype=torch.float64))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=generator, dtype=torch.float64))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.down.T @ self.up.T


class Loud(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 3 * weight


class Rare(LlamaForCausalLM):
    """A subclass whose forward bans every token but each third."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        out = super().forward(*arguments, **keywords)
        out.logits = out.logits.masked_fill(torch.arange(out.logits.shape[-1]) % 3 > 0, -50.0)
        return out


class Offset(Conv1D):
    """A subclass whose class a layer was given afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


class Scaled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 5 * super().forward(input)


def doubled(module: nn.Module, arguments: Any, output: Any) -> Any:
    return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output


# what is done to a copy of the model; its tokens are no longer those of its weights alone
def hook(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(doubled)


def hook_on_the_head(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, arguments, logits: -logits)


def pre_hook(model: Any) -> None:
    model.model.norm.register_forward_pre_hook(lambda module, arguments: (arguments[0].flip(-1),))


def adapter(model: Any) -> None:
    layer = model.model.layers[0].self_attn
    layer.q_proj, layer.v_proj = LoRA(layer.q_proj), LoRA(layer.v_proj)


def parametrisation(model: Any) -> None:
    parametrize.register_parametrization(model.model.layers[0].mlp.down_proj, "weight", Loud())


def normed_weight(model: Any) -> None:
    linear = weight_norm(model.model.layers[0].mlp.down_proj)
    linear.parametrizations.weight.original0.data *= 4


def pruned(model: Any) -> None:
    prune.l1_unstructured(model.model.layers[0].mlp.down_proj, "weight", amount=0.7)


def own_forward(model: Any) -> None:
    mlp = model.model.layers[0].mlp
    mlp.forward = MethodType(lambda self, x: -type(self).forward(self, x), mlp)


def own_forward_of_the_model(model: Any) -> None:
    @wraps(model.forward)
    def forward(*arguments: Any, **keywords: Any) -> Any:
        out = LlamaForCausalLM.forward(model, *arguments, **keywords)
        out.logits = out.logits.roll(1, -1)
        return out

    model.forward = forward


def subclass(model: Any) -> None:
    model.__class__ = Rare


def embedding_of_a_subclass(model: Any) -> None:
    model.model.embed_tokens.__class__ = Scaled


def other_activation(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.ReLU()


def other_epsilon(model: Any) -> None:
    model.model.norm.variance_epsilon = model.model.layers[0].input_layernorm.variance_epsilon = 30.0


def other_scaling(model: Any) -> None:
    model.model.layers[0].self_attn.scaling = 9.0


def added_bias(model: Any) -> None:
    old, projection = model.model.layers[0].mlp.down_proj, nn.Linear(32, 16, dtype=torch.float64)
    projection.weight, projection.bias.data = old.weight, torch.arange(16).double()
    model.model.layers[0].mlp.down_proj = projection


def fewer_layers(model: Any) -> None:
    del model.model.layers[1]


def config_of_fewer_layers(model: Any) -> None:
    model.config.num_hidden_layers = 1


def other_attention(model: Any) -> None:
    model.config._attn_implementation = "blurred"


def dropped_norm(model: Any) -> None:
    model.model.layers[1].input_layernorm = nn.Identity()


def longer_head(model: Any) -> None:
    """Over more tokens than the config says, the last of them never likely."""
    old, model.lm_head = model.lm_head, nn.Linear(16, 34, dtype=torch.float64)
    model.lm_head.weight.data[:31] = old.weight.flip(0)
    model.lm_head.bias.data[:31], model.lm_head.bias.data[31:] = 0.0, -1e9


TAMPERED: list[Callable[[Any], None]] = [
    hook, hook_on_the_head, pre_hook, adapter, parametrisation, normed_weight, pruned, own_forward,
    own_forward_of_the_model, subclass, embedding_of_a_subclass, other_activation, other_epsilon, other_scaling,
    added_bias, fewer_layers, config_of_fewer_layers, other_attention, dropped_norm, longer_head,
]  # fmt: skip


def blurred(*arguments: Any, **keywords: Any) -> Any:
    return sdpa_attention_forward(*arguments, **keywords | {"scaling": 6.0})


@pytest.fixture(autouse=True)
def _attentions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, "blurred", blurred)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "blurred", sdpa_mask)


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_what_was_done_to_an_object_is_heard(tamper: Callable[[Any], None]) -> None:
    model = copy.deepcopy(llama())
    tamper(model)
    wanted = said(model)
    assert wanted != said(llama()), "what was done changes nothing here"
    for draft in (None, llama(seed=1), model):
        decoder = sybil.load(model, draft=draft if tamper is not longer_head else None)
        assert runs_itself(decoder)
        assert decoded(decoder) == wanted


def test_a_tampered_draft_costs_agreement_and_nothing_else() -> None:
    draft = copy.deepcopy(llama())
    hook_on_the_head(draft)
    decoder = sybil.load(llama(), draft=draft)
    assert not runs_itself(decoder)
    assert isinstance(decoder.models[1], HuggingFaceModel)
    assert decoded(decoder) == said(llama())
    assert decoder.generate(PROMPTS, max_new_tokens=COUNT, eos_token_id=[]).stats.acceptance_rate < 0.5


def turned(states: Tensor) -> Tensor:
    return -states


def patched_class(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", wraps(forward)(lambda self, x: -forward(self, x)))


def patched_by_a_method_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", nn.Identity.forward)


def patched_function(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *rest: apply(q, turned(k), *rest))


def registered_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", blurred)


def patched_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: forward(self, x.roll(1, -1)))


def patched_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations.SiLUActivation, "forward", lambda self, x: -x.relu(), raising=False)


def hook_for_every_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_mlps(module: nn.Module, arguments: Any, output: Any) -> Any:
        return -output if isinstance(module, modeling_llama.LlamaMLP) else None

    handle = nn.modules.module.register_module_forward_hook(only_mlps)
    monkeypatch.setattr(monkeypatch, "undo", wraps(monkeypatch.undo)(partial(_undo, handle, monkeypatch.undo)))


def _undo(handle: Any, undo: Callable[[], None]) -> None:
    handle.remove()
    undo()


PATCHES: list[Callable[[pytest.MonkeyPatch], None]] = [
    patched_class, patched_by_a_method_of_transformers, patched_function, registered_attention, patched_linear,
    patched_activation, hook_for_every_module,
]  # fmt: skip


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_what_was_done_to_its_classes_is_heard(patch: Callable[[pytest.MonkeyPatch], None]) -> None:
    unpatched = said(llama())
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch(monkeypatch)
        wanted = said(llama())
        assert wanted != unpatched, "the patch changes nothing here"
        decoder = sybil.load(llama())
        assert runs_itself(decoder)
        assert decoded(decoder) == wanted
    assert not runs_itself(sybil.load(llama()))


def test_a_layer_of_another_class_in_gpt2() -> None:
    model = copy.deepcopy(gpt2())
    model.transformer.h[1].mlp.c_fc.__class__ = Offset
    assert said(model) != said(gpt2())
    decoder = sybil.load(model)
    assert runs_itself(decoder)
    assert decoded(decoder) == said(model)


# what changes nothing of what an object says: our own forward stands in
def tied_apart(model: Any) -> None:
    """Another head of the very kind that the family has."""
    old = model.lm_head
    model.lm_head = nn.Linear(16, 31, bias=False, dtype=torch.float64)
    model.lm_head.weight.data = old.weight.flip(0)


def other_frequencies(model: Any) -> None:
    model.model.rotary_emb.inv_freq *= 0.25


def config_of_another_rotation(model: Any) -> None:
    model.config.rope_parameters["rope_theta"] = 3.0


def listened_to(model: Any) -> None:
    model(PROMPTS[0][None], output_hidden_states=True, output_attentions=True)
    assert any(part._forward_hooks for part in model.modules())


def other_weights(model: Any) -> None:
    for weight in model.parameters():
        weight.data = weight.data.roll(1, 0)


def resized(model: Any) -> None:
    torch.manual_seed(0)
    model.resize_token_embeddings(35)


def checkpointing(model: Any) -> None:
    model.activation_checkpointing_enable()
    model.train()


def without_dropout(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.7


def eager(model: Any) -> None:
    model.set_attn_implementation("eager")


def padded(model: Any) -> None:
    model.config.pad_token_id = model.generation_config.pad_token_id = 7


def noted(model: Any) -> None:
    model.hf_device_map, model.tokenizer, model.notes = {"": "cpu"}, object(), [1, 2]
    model.requires_grad_(False)
    model.lm_head.register_full_backward_hook(lambda *_: None)


def longer_context(model: Any) -> None:
    model.config.max_position_embeddings = 48


HARMLESS = [
    tied_apart, other_frequencies, config_of_another_rotation, listened_to, other_weights, resized, checkpointing,
    without_dropout, eager, padded, noted, longer_context,
]  # fmt: skip


@pytest.mark.parametrize("change", HARMLESS, ids=lambda change: change.__name__)
def test_our_own_forward_stands_in_where_it_says_the_same(change: Callable[[Any], None]) -> None:
    model = copy.deepcopy(llama())
    change(model)
    decoder = sybil.load(model)
    assert objects.difference(model) == ""
    assert not runs_itself(decoder)
    assert decoded(decoder) == said(model.eval())


@pytest.mark.parametrize("family", CONFIGS)
@settings(max_examples=6)
@given(data=st.data(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_a_pristine_object_of_every_family_goes_to_our_own_forward(
    family: str, data: st.DataObject, dtype: torch.dtype
) -> None:
    """However it came about: made, cast, copied, pickled."""
    model = AutoModelForCausalLM.from_config(data.draw(CONFIGS[family]())).to(dtype)
    before = torch.get_rng_state()
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert objects.difference(each) == ""
    assert torch.equal(torch.get_rng_state(), before), "random numbers were drawn"
    decoder = sybil.load(model)
    assert not runs_itself(decoder)
    held = {name: buffer.float() for name, buffer in model.named_buffers() if "original" not in name}
    shape = decoder.target.shape  # type: ignore[attr-defined]
    rotaries = {attention.rotary for attention in shape.attentions if attention.rotary}
    frequencies = [tuple(buffer.tolist()) for name, buffer in held.items() if name.endswith("inv_freq")]
    assert {rotary.inverse_frequencies for rotary in rotaries} <= {*frequencies}, "not as the cast has rounded them"
    assert shape.embedding_scale == held.get("model.embed_tokens.embed_scale", shape.embedding_scale)
    tokens = torch.randint(3, (1, 7))
    with torch.no_grad():
        wanted = model.eval()(tokens).logits.double()
    found = decoder.target.forward(tokens, decoder.target.new_cache(1, 8)).double()
    spread = wanted.std() + 1e-3
    assert float((found - wanted).abs().max() / spread) < (1e-3 if dtype.itemsize > 2 else 0.3)


def test_an_object_from_a_folder_goes_to_our_own_forward(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    for chosen in ({}, {"device_map": "cpu"}, {"dtype": torch.bfloat16}, {"attn_implementation": "eager"}):
        assert objects.difference(AutoModelForCausalLM.from_pretrained(folder, **chosen)) == ""


@settings(max_examples=30)
@given(family=st.sampled_from(sorted(CONFIGS)), data=st.data())
def test_no_part_of_any_family_can_be_tampered_with_unseen(family: str, data: st.DataObject) -> None:
    """A hook, a forward of its own or another class, on any part; a number that is off, wherever a part holds one."""
    model = random_model(data.draw(CONFIGS[family]()))
    part = data.draw(st.sampled_from([part for _, part in model.named_modules()]))
    numbers = [
        name
        for name, value in vars(part).items()
        if isinstance(value, int | float) and name not in objects.OF_EVERY_MODULE | objects.WITHOUT_EFFECT
    ]
    ways = ["hook", "pre-hook", "forward", "class", "weight", *(["number"] if numbers else [])]
    way = data.draw(st.sampled_from(ways))
    if way == "hook":
        part.register_forward_hook(lambda *_: None)
    elif way == "pre-hook":
        part.register_forward_pre_hook(lambda *_: None)
    elif way == "forward":
        part.forward = part.forward
    elif way == "class":
        part.__class__ = type(type(part).__name__, (type(part),), {"__module__": type(part).__module__})
    elif way == "weight":
        part.register_parameter("more", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    else:
        name = data.draw(st.sampled_from(numbers))
        setattr(part, name, getattr(part, name) + 1)
    assert objects.difference(model)


def test_an_attention_that_leaves_the_caps_out_is_heard() -> None:
    """Gemma 2's by sdpa, which caps no scores."""
    model = random_model(example("gemma2", attn_logit_softcapping=0.5))
    assert objects.difference(model) == ""
    model.config._attn_implementation = "sdpa"
    assert objects.difference(model) == "its config makes no model (ValueError)"


def test_another_class_of_the_same_name_is_another_class() -> None:
    """An impostor that says it is transformers'."""
    model = copy.deepcopy(llama())
    kind = type("LlamaForCausalLM", (LlamaForCausalLM,), {"__module__": LlamaForCausalLM.__module__})
    model.__class__ = kind
    assert "it is a LlamaForCausalLM" in objects.difference(model)


# objects around a model
class Around(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.inner = model

    def forward(self, **keywords: Any) -> Any:
        return self.inner(**keywords)


class Narrow(Around):
    def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
        return self.inner(input_ids)


class Bare(Around):
    def forward(self, **keywords: Any) -> Any:
        return super().forward(**keywords).logits


class Silent(Around):
    def forward(self, **keywords: Any) -> Any:
        return super().forward(**keywords).past_key_values


class Last(Around):
    def forward(self, **keywords: Any) -> Any:
        return super().forward(**keywords | {"logits_to_keep": 1})


class Two(Around):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.other = llama(seed=1)


class Prompted(Around):
    active_peft_config = type("PrefixTuningConfig", (), {"is_prompt_learning": True})


@pytest.mark.parametrize("wrap", [nn.DataParallel, Around, Bare], ids=lambda wrap: wrap.__name__)
def test_what_is_around_a_model_is_called(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = copy.deepcopy(llama())
    around = wrap(model)
    hook(model)
    decoder = sybil.load(around, draft=around)
    assert runs_itself(decoder)
    assert decoded(decoder) == said(model)
    assert decoder.target.weight_bytes == sum(weight.nbytes for weight in model.parameters()) + 2 * 8 * 4


def test_a_compiled_model_is_called() -> None:
    model = copy.deepcopy(llama(layers=1))
    model.model.layers[0].mlp.register_forward_hook(doubled)
    compiled = torch.compile(model, backend="eager", dynamic=True)
    with torch._dynamo.config.patch(recompile_limit=1):
        decoder = sybil.load(compiled)
        assert runs_itself(decoder)
        assert decoder.generate(PROMPTS[:1], max_new_tokens=6, eos_token_id=[]).tokens[0].tolist() == greedy(
            model, PROMPTS[0], 6
        )


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Narrow(llama()), "Narrow around LlamaForCausalLM takes no attention_mask, logits_to_keep, past_key"),
        (lambda: nn.Sequential(llama()), "Sequential around LlamaForCausalLM takes no attention_mask"),
        (lambda: Two(llama()), "of type Two, which neither is one of transformers' nor holds just one"),
        (lambda: Prompted(llama()), "Prompted puts learned tokens before the prompt of LlamaForCausalLM"),
        (lambda: nn.Linear(2, 2), "of type Linear"),
        (lambda: llama().state_dict(), "of type OrderedDict"),
        (lambda: None, "of type NoneType"),
        (lambda: 5, "of type int"),
        (lambda: llama().model, "LlamaModel is not a decoder-only language model"),
        (lambda: Around(llama().model), "LlamaModel is not a decoder-only language model"),
    ],
)
def test_what_is_no_model_is_one_line(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named) as raised:
        HuggingFaceModel(make())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (Silent, r"Silent gives logits of type DynamicCache where \(1, 3, 31\) was asked for"),
        (Last, r"Last gives logits of shape \(1, 1, 31\) where \(1, 3, 31\)"),
    ],
)
def test_a_forward_that_gives_no_logits_is_one_line(wrap: Callable[[nn.Module], nn.Module], named: str) -> None:
    decoder = sybil.load(wrap(llama()))
    cache = decoder.target.new_cache(1, 8)
    with pytest.raises(UnsupportedModel, match=named):
        decoder.target.forward(torch.tensor([[1, 2, 3]]), cache)


# the object is left as it was
def dropping(seed: int = 0) -> GPT2LMHeadModel:
    """A model with dropout, in training mode but for one layer."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=31, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.4, bos_token_id=0,
        eos_token_id=0, embd_pdrop=0.4, resid_pdrop=0.4, attn_pdrop=0.4,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).double().train()
    model.transformer.h[0].mlp.eval()
    return model


def state(model: nn.Module) -> Any:
    """All that a caller can see of a model."""
    parts = {
        name: {key: value for key, value in vars(part).items() if key not in ("_parameters", "_buffers", "_modules")}
        for name, part in model.named_modules()
    }
    tensors = [*model.named_parameters(), *model.named_buffers()]
    weights = {
        name: (id(each), each.data_ptr(), each.device, each.dtype, each.requires_grad, each._version, each.sum().item())
        for name, each in tensors
    }
    shown = {name: {key: repr(value) for key, value in held.items()} for name, held in parts.items()}
    return shown, weights, model.config.to_dict(), model.generation_config.to_dict()


def plain(model: GPT2LMHeadModel) -> None:
    pass


def hooked(model: GPT2LMHeadModel) -> None:
    model.transformer.h[1].mlp.register_forward_hook(doubled)


@pytest.mark.parametrize("tamper", [plain, hooked], ids=lambda tamper: tamper.__name__)
def test_an_object_is_decoded_without_dropout_and_left_as_it_was(tamper: Callable[[GPT2LMHeadModel], None]) -> None:
    model, draft = dropping(), dropping(1)
    tamper(model), tamper(draft)
    wanted = said(copy.deepcopy(model).eval())
    before = state(model), state(draft)
    for _ in range(2):
        decoder = sybil.load(model, draft=draft)
        assert runs_itself(decoder) == (tamper is hooked)
        assert decoded(decoder) == wanted
        stream = decoder.stream(PROMPTS, max_new_tokens=COUNT)
        next(stream)
        assert (state(model), state(draft)) == before, "in the middle of a generation"
        stream.close()
        assert (state(model), state(draft)) == before


def test_an_object_whose_forward_fails_is_left_as_it_was() -> None:
    model = dropping()

    def failing(module: nn.Module, arguments: Any, output: Any) -> Any:
        raise RuntimeError("planted")

    model.transformer.h[1].register_forward_hook(failing)
    before = state(model)
    with pytest.raises(RuntimeError, match="planted"):
        decoded(sybil.load(model))
    assert state(model) == before


def test_a_layer_that_is_replaced_after_loading_is_evaluated_too() -> None:
    model = dropping()
    hooked(model)
    decoder = sybil.load(model)
    layer = copy.deepcopy(model.transformer.h[1]).train()
    layer.attn.layer_idx, model.transformer.h[0] = 0, layer
    assert decoded(decoder) == said(copy.deepcopy(model).eval())
    assert model.transformer.h[0].training


class Merging(LoRA):
    """An adapter that goes into the weight when its layer's eval() is called, as loralib has it."""

    def train(self, mode: bool = True) -> Any:
        if self.training != mode:
            with torch.no_grad():
                self.weight += (-1 if mode else 1) * (self.up @ self.down)
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else nn.Linear.forward(self, input)


def test_what_a_model_does_when_it_is_evaluated_is_not_done_to_it() -> None:
    model = copy.deepcopy(llama()).train()
    layer = model.model.layers[0].self_attn
    layer.q_proj = Merging(layer.q_proj).train()
    before = layer.q_proj.weight.clone()
    sybil.load(model).generate(PROMPTS, max_new_tokens=3)
    assert torch.equal(layer.q_proj.weight, before)
    assert layer.q_proj.training


def test_what_a_forward_keeps_can_be_trained_on() -> None:
    """No inference tensors: a module may keep what it computed for its next call."""
    model = copy.deepcopy(llama())
    kept: list[Tensor] = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, arguments, output: kept.append(output))
    decoded(sybil.load(model, draft=llama(seed=1)))
    assert kept
    assert not any(each.is_inference() for each in kept)


def test_changes_after_loading() -> None:
    """The object's own forward is alive; what was read for ours is a copy of how it was."""
    model = copy.deepcopy(llama())
    hook(model)
    decoder = sybil.load(model)
    other_weights(model)
    assert decoded(decoder) == said(model)


def test_the_generation_config_is_kept() -> None:
    model = copy.deepcopy(llama())
    for tamper in (lambda model: None, hook):
        tamper(model)
        model.generation_config.eos_token_id = [5, 9]
        assert sybil.load(model).eos_token_ids == {5, 9}
        assert sybil.load(Around(model)).eos_token_ids == {5, 9}
