"""Tiny random models in float64, where a near-tie between two logits does not happen by chance."""

from __future__ import annotations

import itertools
import sys
from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)
from transformers.masking_utils import sdpa_mask

from sybil.cli.main import run
from sybil.models import Model, building, folders
from sybil.models.checkpoints.families import understand
from sybil.models.checkpoints.weights import State
from sybil.models.huggingface import HuggingFaceModel
from sybil.models.operators.static import StaticCaches
from sybil.models.storage import storage_of


@lru_cache
def gpt2(seed: int = 13, vocab: int = 31, layers: int = 2, width: int = 32, context: int = 64) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab, n_positions=context, n_embd=width, n_layer=layers, n_head=2,
        initializer_range=0.4, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double().eval()


@lru_cache
def llama(seed: int = 0, vocab: int = 31, layers: int = 2, width: int = 16, context: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, max_position_embeddings=context, hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=layers, num_attention_heads=2, initializer_range=0.4, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


@lru_cache
def windowed() -> MistralForCausalLM:
    """Grouped heads, rotary positions and a sliding window, in float64 throughout."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=31, max_position_embeddings=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=5, initializer_range=0.4, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return in_float64(MistralForCausalLM(config).eval())


@lru_cache
def alternating(kind: str = "gemma3_text") -> PreTrainedModel:
    """Layers with a window of 5 alternate with layers of full attention, in float64 throughout. kind: gemma3_text or
    gemma2."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        vocab_size=31, max_position_embeddings=64, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=5, query_pre_attn_scalar=8,
        initializer_range=0.4, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    if kind == "gemma2":
        caps = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 8.0}
        return in_float64(Gemma2ForCausalLM(Gemma2Config(**sizes, **caps)).eval())
    return in_float64(Gemma3ForCausalLM(Gemma3TextConfig(**sizes, sliding_window_pattern=2)).eval())


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The reference model in float64. transformers computes RMS norms and the softmax of some attentions in float32
    whatever the model's dtype, and rounds Gemma's scale of embeddings to the dtype in which the model is made; these
    parts are replaced."""

    def norm(self: Any, x: Tensor) -> Tensor:
        offset, epsilon = (1, self.eps) if hasattr(self, "eps") else (0, self.variance_epsilon)
        scaled: Tensor = (offset + self.weight) * x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
        return scaled

    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(norm, module)
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
    if model.config._attn_implementation == "eager":
        AttentionInterface.register("float64", _attention)
        AttentionMaskInterface.register("float64", sdpa_mask)
        model.set_attn_implementation("float64")
    return model


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float,
    softcap: float | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' eager attention, computed entirely in the query's dtype."""
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2])
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2), None


def in_sybil(model: PreTrainedModel) -> Any:
    """Sybil's own forward with the model's weights."""
    return from_state(model.config.to_dict(), model.state_dict(), model.dtype)


def from_state(config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype) -> Model:
    """Sybil's own forward with tensors in memory, named as transformers names them."""
    checkpoint = folders.Checkpoint("tiny", config, {}, None, understand(config), State(state))
    return building.load(checkpoint, storage_of(dtype), dtype, torch.device("cpu"))


def from_folder(folder: Path, dtype: torch.dtype) -> Model:
    """Sybil's own forward of the model in a folder, which needn't hold a tokenizer."""
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(letters(), folder)
    checkpoint = folders.read(folder)
    assert checkpoint.known
    return building.load(checkpoint, storage_of(dtype), dtype, torch.device("cpu"))


def fixed(model: PreTrainedModel) -> Any:
    """in_sybil() with fixed shapes, as on a GPU."""
    ours = in_sybil(model)
    ours._static = StaticCaches()
    return ours


def foreign(model: PreTrainedModel) -> HuggingFaceModel:
    return HuggingFaceModel(model)


def perturbed(model: GPT2LMHeadModel, noise: float, seed: int = 1) -> GPT2LMHeadModel:
    """A draft that often agrees: the target with noise on its weights."""
    copy = GPT2LMHeadModel(model.config).double().eval()
    copy.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return copy


def prompts(lengths: list[int], vocab: int = 31, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab, (length,), generator=generator) for length in lengths]


def greedy(model: PreTrainedModel, prompt: Tensor, count: int, **settings: object) -> list[int]:
    """transformers' own greedy tokens."""
    settings = {"eos_token_id": None, **settings}
    ids = prompt[None]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0, **settings
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@torch.no_grad()
def joint(model: PreTrainedModel, prompt: Tensor, count: int, temperature: float = 1.0) -> Tensor:
    """The exact distribution of the next count tokens, (vocab,) * count, by running every sequence."""
    vocab = model.config.vocab_size
    sequences = torch.tensor(list(itertools.product(range(vocab), repeat=count)))
    ids = torch.cat([prompt.expand(len(sequences), -1), sequences], 1)
    log_probs = (model(input_ids=ids).logits[:, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return log_probs.gather(-1, sequences[..., None]).sum((1, 2)).exp().reshape((vocab,) * count)


def letters(size: int = 31) -> Tokenizer:
    """A tokenizer of single characters: token 0 is '!', as GPT-2's is."""
    alphabet = "!abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:size]
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def save(model: PreTrainedModel, folder: Path, tokenizer: Tokenizer | None = None) -> Path:
    """Save the model as an ordinary Hugging Face folder."""
    model.save_pretrained(folder)
    save_tokenizer(tokenizer or letters(), folder)
    return folder


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Save a tokenizer as transformers saves one that belongs to no model. AutoTokenizer then takes tokenizer.json
    unchanged."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')


def sybil(*arguments: object) -> int:
    """Run the command in this process, and return its exit status."""
    before, sys.argv = sys.argv, ["sybil", *map(str, arguments)]
    try:
        run()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0
