"""Transformers models behind our face: rows that part and meet again, weights that lie in several places."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from test_cache import machine
from tiny import foreign, greedy, letters, llama, prompts, save
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

import sybil
from sybil import Decoder
from sybil.drafting import DraftModel
from sybil.errors import UnsupportedModel
from sybil.models.huggingface import AlignedCache, HuggingFaceModel

COUNT = 24
SMALL: dict[str, Any] = dict(
    vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.4, bos_token_id=0, eos_token_id=0,
    pad_token_id=0,
)  # fmt: skip


def tiny(kind: Any, config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = kind(config).double().eval()
    return model


def mistral() -> PreTrainedModel:
    """A sliding window in every layer, shorter than the rows."""
    return tiny(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=6))


def gemma() -> PreTrainedModel:
    """A sliding window in one layer of two."""
    layers = ["sliding_attention", "full_attention"]
    return tiny(Gemma3ForCausalLM, Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=5, layer_types=layers))


def gpt_neo() -> PreTrainedModel:
    """A sliding window of the model's own making, by a mask as long as the context."""
    attention = [[["global", "local"], 1]]
    return tiny(
        GPTNeoForCausalLM,
        GPTNeoConfig(vocab_size=31, hidden_size=16, num_layers=2, num_heads=2, attention_types=attention,
                     window_size=4, max_position_embeddings=64, initializer_range=0.4, bos_token_id=0, eos_token_id=0),
    )  # fmt: skip


def often_agreeing(model: PreTrainedModel) -> HuggingFaceModel:
    """A draft for the model: itself, with noise on its weights."""
    torch.manual_seed(1)
    draft = copy.deepcopy(model)
    with torch.no_grad():
        for weight in draft.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return foreign(draft)


def check_cache(model: PreTrainedModel) -> None:
    few = settings(max_examples=15, stateful_step_count=8, phases=[Phase.generate])
    run_state_machine_as_test(machine(model, foreign(model)), settings=few)


@pytest.mark.parametrize("make", [llama, mistral, gemma])
def test_logits_survive_the_moves_of_rows_that_part(
    make: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = []
    move = AlignedCache._move
    monkeypatch.setattr(AlignedCache, "_move", lambda cache, rejected: (moves.append(1), move(cache, rejected))[1])
    check_cache(make())
    assert len(moves) > 5


@pytest.mark.parametrize("forgotten", ["keys", "values"])
def test_a_move_that_forgets_the_keys_or_the_values_is_seen(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    move = AlignedCache._move

    def forgetful(cache: AlignedCache, rejected: torch.Tensor) -> None:
        before = [getattr(layer, forgotten) for layer in cache.slots.layers]
        move(cache, rejected)
        for layer, states in zip(cache.slots.layers, before, strict=True):
            slots = getattr(layer, forgotten).shape[2]
            setattr(layer, forgotten, states[:, :, states.shape[2] - slots :])

    monkeypatch.setattr(AlignedCache, "_move", forgetful)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        check_cache(llama())


def test_a_long_run_has_no_more_slots_than_its_longest_row_has_tokens() -> None:
    model, chance = foreign(llama(context=2048)), random.Random(0)
    cache = model.new_cache(4, 2048)
    for _ in range(150):
        model.forward(torch.randint(31, (4, 6)), cache)
        assert cache.slots.get_seq_length() == int(cache.lengths.max())
        cache.lengths = cache.lengths - torch.tensor([chance.randint(0, 5) for _ in range(4)])
    assert int(cache.lengths.max()) > int(cache.lengths.min())
    cache.settle()
    assert all(layer.values.shape[2] == int(cache.lengths.max()) for layer in cache.slots.layers)


@pytest.mark.parametrize("make", [mistral, gemma])
def test_windows_in_a_batch_to_the_end_of_the_context(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    inputs = prompts([3, 50, 12])
    drafted = Decoder(foreign(model), DraftModel(often_agreeing(model)))
    out = drafted.generate(inputs, max_new_tokens=COUNT, gamma=3, eos_token_id=[])
    assert [row.tolist() for row in out.tokens] == [
        greedy(model, prompt, min(COUNT, 64 - len(prompt))) for prompt in inputs
    ]
    assert 0 < out.stats.acceptance_rate < 1


def mpt() -> PreTrainedModel:
    return tiny(MptForCausalLM, MptConfig(vocab_size=31, d_model=16, n_layers=2, n_heads=2, max_seq_len=64))


@pytest.mark.parametrize("make", [mpt, gpt_neo])
def test_positions_or_masks_of_the_model_s_own_are_refused_for_several_rows(
    make: Callable[[], PreTrainedModel],
) -> None:
    model = make()
    decoder = Decoder(foreign(model), DraftModel(often_agreeing(model)))
    for prompt in prompts([5, 50]):
        out = decoder.generate([prompt], max_new_tokens=12, gamma=3, eos_token_id=[])
        assert out.tokens[0].tolist() == greedy(model, prompt, 12)
    with pytest.raises(UnsupportedModel, match="2 rows"):
        decoder.generate(prompts([3, 12]))


def test_a_model_whose_state_cannot_be_rolled_back_is_refused() -> None:
    config = MambaConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(UnsupportedModel, match="rolled back"):
        foreign(MambaForCausalLM(config))


def on_cpu_by_hooks(folder: Path) -> PreTrainedModel:
    return accelerate.cpu_offload(copy.deepcopy(llama()), execution_device=torch.device("cpu"))


def on_disk(folder: Path) -> PreTrainedModel:
    return accelerate.disk_offload(copy.deepcopy(llama()), str(folder), execution_device=torch.device("cpu"))


PLACES = {
    "model.embed_tokens": "disk", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
    "model.norm": "cpu", "lm_head": "cpu",
}  # fmt: skip


def dispatched(folder: Path) -> PreTrainedModel:
    return accelerate.dispatch_model(copy.deepcopy(llama()), PLACES, main_device="cpu", offload_dir=str(folder))


def spread_at_loading(folder: Path) -> PreTrainedModel:
    save(llama(), folder / "model")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float64, device_map=PLACES, offload_folder=folder / "offload"
    )
    return model


@pytest.mark.parametrize("make", [on_cpu_by_hooks, on_disk, dispatched, spread_at_loading])
def test_offloaded_models_stay_where_they_are(make: Callable[[Path], PreTrainedModel], tmp_path: Path) -> None:
    model = make(tmp_path)
    places = {name: weight.device for name, weight in model.named_parameters()}
    assert torch.device("meta") in places.values()
    decoder = sybil.load(model, draft=llama(seed=1, layers=1), tokenizer=letters())
    assert isinstance(decoder.target, HuggingFaceModel)
    assert decoder.target.device == torch.device("cpu")
    assert decoder.target.weight_bytes >= sum(weight.nbytes for weight in llama().parameters())
    inputs = prompts([3, 9, 1])
    out = decoder.generate(inputs, max_new_tokens=COUNT, gamma=3, eos_token_id=[])
    wanted = [greedy(model, prompt, COUNT) for prompt in inputs]
    assert [row.tolist() for row in out.tokens] == wanted == [greedy(llama(), prompt, COUNT) for prompt in inputs]
    assert {name: weight.device for name, weight in model.named_parameters()} == places


def decode_on_a_rank(rank: int, folder: Path) -> None:
    """One of two processes that hold half of every matrix each; both must come to the same tokens."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}  # as torchrun does
    distributed.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=2)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64, tp_plan="auto")
    assert any(isinstance(weight, DTensor) for weight in model.parameters())
    inputs = prompts([3, 9, 1])
    draft = DraftModel(often_agreeing(llama()))
    spread, whole = Decoder(foreign(model), draft), Decoder(foreign(llama()), draft)
    chosen: dict[str, Any] = dict(max_new_tokens=COUNT, gamma=3, eos_token_id=[])
    found = spread.generate(inputs, **chosen)
    assert [row.tolist() for row in found.tokens] == [greedy(model, prompt, COUNT) for prompt in inputs]
    found, wanted = (each.generate(inputs, do_sample=True, seed=3, **chosen) for each in (spread, whole))
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in wanted.tokens]
    assert 0 < found.stats.acceptance_rate < 1
    distributed.destroy_process_group()


def test_a_model_split_over_two_processes(tmp_path: Path) -> None:
    save(llama(), tmp_path / "model")
    torch.multiprocessing.spawn(decode_on_a_rank, (tmp_path,), nprocs=2)
