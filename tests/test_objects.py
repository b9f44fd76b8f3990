"""load(model): a model object says what its own forward says, whatever was done to it, and is left as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_transformer import CONFIGS, random_model
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
    Qwen3Config,
    Qwen3ForCausalLM,
    activations,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama
from transformers.pytorch_utils import Conv1D

import sybil
from sybil.drafting import DraftModel
from sybil.errors import InvalidSetting, UnsupportedModel
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
    assert isinstance(decoder.draft, DraftModel)
    assert isinstance(decoder.draft.model, HuggingFaceModel)
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
