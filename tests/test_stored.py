"""Where weights stay as they are stored: whose blocks ours are, what a dtype changes, and who is told."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from shapes import assert_same_bits, compiled, logits_in_parts, random_tokens
from tiny import letters
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

import sybil
from benchmarks.engine.blocks import sane
from sybil.models import building, folders, native
from sybil.models.checkpoints.families import understand
from sybil.models.checkpoints.weights import State, arrange, in_blocks
from sybil.models.folders import Checkpoint
from sybil.models.operators.transformer import Transformer
from sybil.models.storage import Blocks, BlockStorage, Rounding, dequantised

CPU = torch.device("cpu")
LLAMA = LlamaConfig(
    vocab_size=30, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=96, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
NEOX = GPTNeoXConfig(
    vocab_size=30, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96,
    max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=30, n_positions=64, n_embd=64, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0)


class Lying(State):
    """A model's tensors, those of two sides in blocks, as a GGUF file has them; `left_out` isn't."""

    def __init__(self, model: Any, storages: tuple[BlockStorage, ...], left_out: str = "none") -> None:
        generator, state = np.random.default_rng(0), model.state_dict()
        names = [name for name, tensor in state.items() if tensor.ndim == 2 and left_out not in name]
        self.lying = {
            name: sane(storages[place % len(storages)], *state[name].shape, generator)
            for place, name in enumerate(names)
        }
        super().__init__(state | {name: dequantised(blocks) for name, blocks in self.lying.items()})
        self.lasting = False
        self.storages = {name: blocks.storage for name, blocks in self.lying.items()}
        self.nbytes = sum(
            self.lying[name].numbers.nbytes if name in self.lying else state[name].nbytes for name in state
        )

    def blocks(self, name: str) -> Blocks | None:
        return self.lying.get(name)


def checkpoint(stored: State, config: Any) -> Checkpoint:
    config = config.to_dict()
    return Checkpoint("model.gguf", config, None, letters(), understand(config), stored)


def llama(*storages: BlockStorage, left_out: str = "none") -> Checkpoint:
    return checkpoint(Lying(LlamaForCausalLM(LLAMA), storages, left_out), LLAMA)


def loaded(found: Checkpoint, storage: Any) -> Any:
    return building.load(found, storage, torch.float32, CPU)


@compiled
@pytest.mark.parametrize("storages", [("q4_0",), ("q8_0", "q5_1"), ("q4_1", "f16", "bf16", "f32")])
def test_a_checkpoints_blocks_are_multiplied_as_they_lie(storages: tuple[BlockStorage, ...]) -> None:
    found = llama(*storages)
    kept, plain = loaded(found, "stored"), loaded(found, "float32")
    assert (kept.storage, plain.storage) == ("stored", "float32")
    tokens = random_tokens(kept.shape, 2, 12)
    assert_same_bits(logits_in_parts(kept, tokens, [3, 9]), logits_in_parts(plain, tokens, [12]))
    held = {part.storage for packed in kept._products.values() for part in packed.parts}
    assert held == {{"f32": "float32", "bf16": "bfloat16"}.get(each, each) for each in storages}


@compiled
def test_what_is_in_no_blocks_is_float32_beside_them() -> None:
    found = llama("q4_0", left_out="k_proj")
    kept = loaded(found, "stored")
    assert [part.storage for part in kept._products["0.query_key_value"].parts] == ["float32"]
    assert [part.storage for part in kept._products["0.mlp_in"].parts] == ["q4_0", "q4_0"]
    tokens = random_tokens(kept.shape, 1, 12)
    assert_same_bits(logits_in_parts(kept, tokens, [12]), logits_in_parts(loaded(found, "float32"), tokens, [12]))


@compiled
def test_heads_that_lie_interleaved_are_put_right_in_blocks_too() -> None:
    """Rows are whole blocks, and come in our order without a change."""
    found = checkpoint(Lying(GPTNeoXForCausalLM(NEOX), ("q5_0",)), NEOX)
    kept = loaded(found, "stored")
    assert kept._products["0.query_key_value"].parts[0].storage == "q5_0"
    tokens = random_tokens(kept.shape, 1, 12)
    assert_same_bits(logits_in_parts(kept, tokens, [12]), logits_in_parts(loaded(found, "float32"), tokens, [12]))


def test_blocks_that_would_have_to_be_transposed_are_taken_apart() -> None:
    stored = Lying(GPT2LMHeadModel(GPT2), ("q8_0",))
    _, weights = arrange("model", GPT2.to_dict(), understand(GPT2.to_dict()), stored, torch.float32, CPU)
    assert weights.blocks("token_embedding") is not None
    assert weights.blocks("0.mlp_in.weight") is None
    assert in_blocks(stored)
    assert not in_blocks(State(stored.tensors))


@compiled
@pytest.mark.parametrize("dtype", [None, "auto"])
def test_loading_leaves_weights_in_their_blocks_unless_a_dtype_is_named(
    dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = llama("q4_1")
    monkeypatch.setattr(folders, "read", lambda *_: found)
    decoder = sybil.load("model.gguf", "model.gguf", dtype=dtype)
    assert [model.storage for model in decoder.models] == ["stored", "stored"]
    wanted = sybil.load("model.gguf", dtype="float32", draft_dtype="int8", draft="model.gguf")
    assert [model.storage for model in wanted.models] == ["float32", Rounding(8)]
    tokens = [
        each.generate([torch.tensor([1, 2, 3])], max_new_tokens=20).tokens[0].tolist()
        for each in (decoder, decoder.without_draft(), wanted)
    ]
    assert tokens[0] == tokens[1] == tokens[2]


def test_without_a_compiler_it_is_said_once_what_the_operators_take(monkeypatch: pytest.MonkeyPatch) -> None:
    found = llama("q4_1")
    monkeypatch.setattr(native.library, "load", lambda lanes=None: None)
    with pytest.warns(UserWarning, match=r"model.gguf has .* here they .* float32, which takes 6\.\d times") as told:
        model = loaded(found, "stored")
    assert isinstance(model, Transformer)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(loaded(found, "float32"), Transformer)  # as it was asked for
        assert isinstance(loaded(llama("f32"), "stored"), Transformer)  # the same memory
