"""Models from GGUF files: the forward of the same weights in a folder, bit for bit, and transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import ggufs
import numpy as np
import pytest
import torch
from configurations import example, random_model
from gguf import GGUFReader
from gguf.quants import dequantize
from tiny import in_sybil
from torch import Tensor
from transformers import PreTrainedModel

import sybil
from sybil.models import Model, building, folders, pretrained
from sybil.models.checkpoints.gguf.weights import FileTensors
from sybil.models.folders import Checkpoint
from sybil.models.storage import BlockStorage

CPU = torch.device("cpu")
FAMILIES = (
    "gpt2", "gpt_neox", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3", "olmo2", "granite", "gemma2",
    "gemma3_text",
)  # fmt: skip
NAMES = {
    "token_embd": "model.embed_tokens.weight",
    "blk.1.ffn_down": "model.layers.1.mlp.down_proj.weight",
    "blk.0.attn_q": "model.layers.0.self_attn.q_proj.weight",
    "blk.1.attn_k": "model.layers.1.self_attn.k_proj.weight",
    "output_norm": "model.norm.weight",
}
SIZES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"rotary_pct": 0.5},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "num_hidden_layers": 7, "sliding_window_pattern": 6},
}
"""What such files can't say otherwise."""


def model(family: str, **changes: Any) -> PreTrainedModel:
    return random_model(example(family, **SIZES.get(family, {}), **changes), torch.float32)


def built(checkpoint: Checkpoint) -> Model:
    return building.load(checkpoint, "float32", torch.float32, CPU)


def logits(model: Model, seed: int = 0) -> Tensor:
    ids = torch.randint(31, (2, 20), generator=torch.Generator().manual_seed(seed))
    return model.forward(ids, model.new_cache(2, 20))


@torch.no_grad()
def expected(model: PreTrainedModel, seed: int = 0) -> Tensor:
    ids = torch.randint(31, (2, 20), generator=torch.Generator().manual_seed(seed))
    found: Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize(
    ("family", "tied"), [(family, tied) for family in FAMILIES for tied in (False, True) if tied or family != "gemma2"]
)
def test_the_forward_is_that_of_the_same_weights(family: str, tied: bool, tmp_path: Path) -> None:
    theirs = model(family, tie_word_embeddings=tied)
    checkpoint = folders.read(ggufs.write(theirs, tmp_path / "a.gguf"))
    ours = logits(built(checkpoint))
    assert ours.equal(logits(in_sybil(theirs)))
    assert checkpoint.config["tie_word_embeddings"] is tied
    rebuilt = pretrained.load_transformers(checkpoint, torch.float32, CPU)
    state = rebuilt.state_dict()
    if family.startswith("gemma"):  # whose norms are stored with 1 added, which rounds
        torch.testing.assert_close(expected(rebuilt), expected(theirs), rtol=1e-5, atol=1e-5)
    else:
        assert all(tensor.equal(state[name]) for name, tensor in theirs.state_dict().items())
        assert expected(rebuilt).equal(expected(theirs))
    torch.testing.assert_close(ours, expected(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_biases_are_found(family: str, tmp_path: Path) -> None:
    theirs = model(family, attention_bias=True)
    assert logits(built(folders.read(ggufs.write(theirs, tmp_path / "a.gguf")))).equal(logits(in_sybil(theirs)))


@pytest.mark.parametrize("storage", get_args(BlockStorage))
def test_weights_in_blocks_read_as_the_format_says(storage: str, tmp_path: Path) -> None:
    theirs = model("llama", hidden_size=256, intermediate_size=256, head_dim=64)
    path = ggufs.write(theirs, tmp_path / "a.gguf", storage=storage)
    stored = folders.read(path).stored
    assert isinstance(stored, FileTensors)
    ggml = {each.name: each for each in GGUFReader(path).tensors}
    for name, heads in (
        ("token_embd", 0), ("blk.1.ffn_down", 0), ("blk.0.attn_q", 4), ("blk.1.attn_k", 2), ("output_norm", 0),
    ):  # fmt: skip
        tensor = ggml[f"{name}.weight"]
        with np.errstate(all="ignore"):
            wanted = torch.from_numpy(dequantize(np.array(tensor.data), tensor.tensor_type))
        if heads:  # of each head, the two halves lie row by row
            rows = [head * 64 + place for head in range(heads) for half in (0, 1) for place in range(half, 64, 2)]
            wanted = wanted[rows]
        read, blocks = stored.read(NAMES[name]), stored.blocks(NAMES[name])
        assert read.float().view(torch.int32).equal(wanted.view(torch.int32))  # bit for bit: NaN too
        assert stored.shapes[NAMES[name]] == read.shape
        assert stored.dtypes[NAMES[name]] == read.dtype
        if wanted.dim() == 1:
            assert blocks is None
            continue
        assert blocks is not None
        assert (blocks.storage, blocks.inputs) == (storage, wanted.shape[1])
        with np.errstate(all="ignore"):
            again = torch.from_numpy(dequantize(blocks.numbers.numpy(), tensor.tensor_type)).view(wanted.shape)
        assert again.view(torch.int32).equal(wanted.view(torch.int32))


def test_a_file_in_parts_is_one(tmp_path: Path) -> None:
    theirs = model("llama")
    ggufs.write(theirs, tmp_path / "a.gguf", parts=3)
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"a-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    wanted = logits(in_sybil(theirs))
    for given in (*parts, tmp_path):
        assert logits(built(folders.read(given))).equal(wanted)


def test_factors_of_frequencies_are_heeded(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    theirs = model("llama", head_dim=8, rope_parameters=scaling)
    turned = theirs.model.rotary_emb.inv_freq.float()
    factors = (100.0 ** -(torch.arange(0, 8, 2) / 8) / turned).float().numpy()
    assert factors.max() > 3.9
    path = ggufs.write(theirs, tmp_path / "a.gguf", more={"rope_freqs.weight": factors})
    checkpoint = folders.read(path)
    torch.testing.assert_close(logits(built(checkpoint)), expected(theirs), rtol=1e-3, atol=1e-3)
    rebuilt = pretrained.load_transformers(checkpoint, torch.float32, CPU)
    torch.testing.assert_close(expected(rebuilt), expected(theirs), rtol=1e-3, atol=1e-3)
    left_out = built(folders.read(ggufs.write(theirs, tmp_path / "b.gguf")))
    assert (logits(left_out) - expected(theirs)).abs().max() > 0.1  # so the check sees them


def test_linear_scaling_is_heeded(tmp_path: Path) -> None:
    theirs = model("llama", rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0})
    assert logits(built(folders.read(ggufs.write(theirs, tmp_path / "a.gguf")))).equal(logits(in_sybil(theirs)))


def test_ends_sampling_and_templates_come_from_the_file(tmp_path: Path) -> None:
    tokens = [*ggufs.TOKENS]
    tokens[3:7] = ["<|im_end|>", "<end_of_turn>", "<|endoftext|>", "<|eot_id|>"]
    kinds = [3 if token.startswith("<") else 1 for token in tokens]
    kinds[4] = 1  # a token that only looks like an end
    changes = {
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.eos_token_id": 9,
        "tokenizer.ggml.eom_token_id": 8, "tokenizer.ggml.eos_token_ids": [7, 9], "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 5, "tokenizer.chat_template": "{{ messages }}",
        "general.sampling.temp": 0.5, "general.sampling.top_k": 7, "general.sampling.min_p": 0.0,
    }  # fmt: skip
    path = ggufs.write(model("llama"), tmp_path / "a.gguf", changes)
    checkpoint = folders.read(path)
    assert checkpoint.generation == {"eos_token_id": [3, 5, 6, 7, 8, 9], "temperature": 0.5, "top_k": 7}
    assert checkpoint.chat_template == "{{ messages }}"
    assert {name: checkpoint.config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")} == {
        "bos_token_id": 2, "eos_token_id": 9, "pad_token_id": 5,
    }  # fmt: skip
    assert checkpoint.special_tokens == {"bos_token": "b", "eos_token": "i", "pad_token": "<|endoftext|>"}


def test_a_file_decodes_whatever_its_name(tmp_path: Path) -> None:
    theirs = model("llama")
    named, bare = ggufs.write(theirs, tmp_path / "a.gguf"), tmp_path / "sha256-0"
    bare.write_bytes(named.read_bytes())
    prompt = [torch.tensor([1, 2, 3])]
    settings: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": []}
    texts = [
        sybil.load(path, draft=draft, dtype="float32", device="cpu").generate(prompt, **settings).tokens[0].tolist()
        for path, draft in ((named, None), (str(bare), named))
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 20


def test_a_window_of_a_mistral_is_heeded(tmp_path: Path) -> None:
    theirs = model("mistral")
    whole = built(folders.read(ggufs.write(theirs, tmp_path / "a.gguf", {"llama.attention.sliding_window": None})))
    assert not logits(whole).equal(logits(in_sybil(theirs)))  # the window is short enough to be seen


def test_rows_that_aren_t_put_right_are_seen(tmp_path: Path) -> None:
    theirs = model("llama")
    checkpoint = folders.read(ggufs.write(theirs, tmp_path / "a.gguf"))
    assert isinstance(checkpoint.stored, FileTensors)
    checkpoint.stored.rotated.clear()
    assert not np.allclose(logits(built(checkpoint)), expected(theirs), atol=0.1)
