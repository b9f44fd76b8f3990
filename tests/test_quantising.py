"""Weights rounded to a GGUF file's blocks as they are loaded: how far they move, and whose model they make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from shapes import assert_same_bits, compiled, logits_in_parts, random_tokens
from test_huggingface import gpt_neo
from test_stored import GPT2, LLAMA, checkpoint, llama
from tiny import gpt2, prompts, save, sybil
from torch import Tensor
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sybil import load
from sybil.devices import choose_device
from sybil.errors import DeviceUnavailable, InvalidSetting
from sybil.measuring.profile import _told, precision
from sybil.models import building, native, quantising
from sybil.models.checkpoints.weights import State, arrange
from sybil.models.folders import Checkpoint
from sybil.models.native import NativeTransformer
from sybil.models.operators.transformer import Transformer
from sybil.models.quantising import InBlocks, quantised, storage_for
from sybil.models.shape import Shape
from sybil.models.storage import BLOCKS, QUANTISED, BlockStorage, Rounding, dequantised
from sybil.transfer import drawn_at

CPU = torch.device("cpu")
MOST = {"q8_0": 0.007, "q6_k": 0.022, "q5_k": 0.05, "q5_1": 0.05, "q5_0": 0.05, "q4_k": 0.1, "q4_1": 0.1, "q4_0": 0.1}
"""Root mean square errors of normal weights, in their deviations. A step of a run of 32 in b bits is about 4.2 / 2^b
deviations, and an error about 0.29 of a step."""
WIDE = LlamaConfig(
    vocab_size=30, hidden_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=512, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
)  # fmt: skip


def normal(outputs: int = 6, inputs: int = 768, seed: int = 0) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) * 0.02


def error(weight: Tensor, storage: BlockStorage) -> float:
    """By the decoding of the library gguf."""
    away = dequantised(quantised(weight, storage)) - weight
    return float(away.square().mean().sqrt() / weight.std())


@pytest.mark.parametrize("storage", QUANTISED)
def test_a_weight_lies_near_what_its_blocks_stand_for(storage: BlockStorage) -> None:
    assert 0 < error(normal(), storage) < MOST[storage]
    assert error(normal() + 0.05, storage) < 3 * MOST[storage]  # all on one side
    inputs, nbytes = BLOCKS[storage]
    assert quantised(normal(), storage).numbers.shape == (6, 768 // inputs * nbytes)


@pytest.mark.parametrize("storage", ["q4_k", "q5_k", "q6_k"])
def test_runs_of_other_sizes_keep_scales_of_their_own(storage: BlockStorage) -> None:
    """Runs of 32 whose weights are larger, run by run: a scale or a minimum in another's place would show."""
    sizes = torch.arange(1, 25).repeat_interleave(32)
    weight = normal() * sizes + sizes * torch.tensor([-0.03, 0.03]).repeat_interleave(32).repeat(12)
    away = (dequantised(quantised(weight, storage)) - weight).view(6, 24, 32).square().mean((0, 2)).sqrt()
    assert bool((away < 4 * MOST[storage] * 0.02 * torch.arange(1, 25)).all())


@pytest.mark.parametrize("fault", [lambda one, other: (other, one), lambda one, other: (one.roll(4, 1), other)])
def test_scales_in_the_wrong_place_would_show(
    fault: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = quantising._sixes
    monkeypatch.setattr(quantising, "_sixes", lambda scales, minima: right(*fault(scales, minima)))
    weight = normal() * torch.arange(1, 25).repeat_interleave(32)
    assert error(weight, "q4_k") > 2 * MOST["q4_k"]


@pytest.mark.parametrize("storage", QUANTISED)
def test_zeros_stay_zeros_and_nan_stays_nan(storage: BlockStorage) -> None:
    assert not dequantised(quantised(torch.zeros(2, 256), storage)).any()
    weight = normal(2, 512)
    weight[1, 300] = torch.nan
    back = dequantised(quantised(weight, storage))
    assert bool(back[1, 300].isnan())
    assert bool(back[0].isfinite().all())
    assert bool(back[1, :256].isfinite().all())


def test_which_blocks_a_weight_gets() -> None:
    assert storage_for("0.mlp_in.weight", "q4_k", 512) == "q4_k"
    assert storage_for("0.mlp_in.weight", "q4_k", 576) == "q5_0"
    assert storage_for("0.mlp_in.weight", "q4_k", 40) is None
    assert storage_for("head.weight", "q4_0", 512) == storage_for("token_embedding", "q5_k", 512) == "q6_k"
    assert storage_for("head.weight", "q4_0", 576) == "q8_0"
    assert storage_for("head.weight", "q8_0", 576) == "q8_0"


def dequantised_weights(weights: InBlocks) -> dict[str, Tensor]:
    """The float32 numbers that a model's blocks stand for; what is no product as it is."""
    found = {}
    for name in weights:
        blocks = weights.blocks(name) if weights[name].ndim == 2 and name != "position_embedding" else None
        found[name] = weights[name] if blocks is None else torch.cat([dequantised(each) for each in blocks])
    return found


def of(found: Checkpoint) -> tuple[Shape, InBlocks]:
    assert found.known
    assert found.stored
    shape, weights = arrange("model", found.config, found.known, found.stored, torch.float32, CPU)
    return shape, InBlocks(weights, "q4_k")


@compiled
@pytest.mark.parametrize("kind", ["whole blocks", "transposed", "rounded already"])
def test_a_target_in_few_bits_has_the_bits_of_float32_over_its_rounded_weights(kind: str) -> None:
    """So what is verified beside a token changes nothing, and decoding is lossless for that model."""
    torch.manual_seed(0)
    found = {
        "whole blocks": lambda: checkpoint(State(LlamaForCausalLM(WIDE).state_dict()), WIDE),
        "transposed": lambda: checkpoint(State(GPT2LMHeadModel(GPT2).state_dict()), GPT2),
        "rounded already": lambda: llama("q5_0", "q8_0"),
    }[kind]()
    shape, weights = of(found)
    kept = building.load(found, "q4_k", torch.float32, CPU)
    plain = NativeTransformer(shape, dequantised_weights(weights), "float32")
    tokens = random_tokens(shape, 2, 12)
    assert_same_bits(logits_in_parts(kept, tokens, [3, 9]), logits_in_parts(plain, tokens, [12]))
    stored = building.load(found, "float32", torch.float32, CPU)
    assert not torch.equal(logits_in_parts(kept, tokens, [12]), logits_in_parts(stored, tokens, [12]))
    assert kept.weight_bytes < 0.5 * stored.weight_bytes


@compiled
def test_weights_that_lie_in_the_blocks_asked_for_stay_as_they_lie() -> None:
    found = llama("q8_0")
    kept, stored = (building.load(found, storage, torch.float32, CPU) for storage in ("q8_0", "stored"))
    tokens = random_tokens(kept.shape, 1, 12)
    assert_same_bits(logits_in_parts(kept, tokens, [12]), logits_in_parts(stored, tokens, [12]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(gpt2(), tmp_path_factory.mktemp("gpt2"))


@compiled
@pytest.mark.parametrize(
    ("word", "storage"), [("int8", "q8_0"), ("int4", "q4_k"), ("Q4_K", "q4_k"), ("q5_1", "q5_1"), (torch.int8, "q8_0")]
)
def test_a_target_by_one_word_is_decoded_losslessly(word: str, storage: str, folder: Path) -> None:
    decoder = load(folder, "self:8", dtype=word)
    assert decoder.target.storage == storage  # type: ignore[attr-defined]
    assert (precision(decoder.target), _told(decoder.target)) == (None, storage)
    settings = dict(max_new_tokens=24, eos_token_id=[])
    plain, speculative = (
        each.generate(prompts([5, 3]), gamma=4, **settings) for each in (decoder.without_draft(), decoder)
    )
    assert [row.tolist() for row in plain.tokens] == [row.tolist() for row in speculative.tokens]
    assert speculative.stats.accepted


@compiled
def test_a_draft_by_one_word_changes_no_token(folder: Path) -> None:
    kept = {
        "int8": Rounding(8),
        "int4": Rounding(4, {"token_embedding": 6, "head": 6}),
        "q4_1": "q4_1",
        "bf16": "bfloat16",
    }
    wanted = load(folder, dtype="float32").generate(prompts([4]), max_new_tokens=16, eos_token_id=[]).tokens[0].tolist()
    for word, storage in kept.items():
        decoder = load(folder, folder, dtype="float32", draft_dtype=word)
        assert decoder.models[1].storage == storage  # type: ignore[attr-defined]
        found = decoder.generate(prompts([4]), max_new_tokens=16, eos_token_id=[]).tokens[0].tolist()
        assert found == wanted


def test_what_a_device_lacks_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = save(gpt_neo(), tmp_path / "foreign")
    with pytest.raises(InvalidSetting, match=r"^dtype is int4 and .* runs by transformers' forward: leave it out$"):
        load(foreign, dtype="int4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for word in ("int8", "int4", "q4_k"):
        with pytest.raises(InvalidSetting, match=rf"^dtype is {word} on cuda: .* on CPUs alone; use float16 or bf"):
            load(folder, dtype=word, device="cuda")
    with pytest.raises(InvalidSetting, match=r"^draft_dtype is int8 on cuda"):
        building.check_kept("int8", torch.device("cuda"), "draft_dtype")
    with pytest.raises(InvalidSetting, match=r"^draft_dtype is 4 bits on mps"):
        building.check_kept(Rounding(4), torch.device("mps"), "draft_dtype")
    monkeypatch.setattr(native.library, "load", lambda lanes=None: None)
    with pytest.raises(InvalidSetting, match=r"^dtype is int4 and there is no C compiler here, .* use float32$"):
        load(folder, dtype="int4", device="cpu")
    assert load(folder, folder, draft_dtype="int8", device="cpu").models[1].storage == "int8"  # type: ignore[attr-defined]


def test_mps_is_taken_by_name_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on it is torch's operators; nothing of it can be run here."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("mps") == torch.device("mps")
    assert choose_device("auto") == choose_device(None) == torch.device("cpu")
    with pytest.raises(InvalidSetting, match=r"^dtype is float64 on mps, which has no such numbers: use float32"):
        load(folder, dtype="float64", device="mps")
    shape, weights = of(checkpoint(State(LlamaForCausalLM(LLAMA).state_dict()), LLAMA))
    assert isinstance(building.build(shape, weights, "float32", torch.device("mps")), Transformer)
    assert drawn_at(torch.device("mps")) == torch.device("cpu")  # mps has no float64
    assert drawn_at(torch.device("cuda:1")) == torch.device("cuda:1")


def test_mps_where_there_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeviceUnavailable, match=r"^device mps was asked for and torch .* sees no such GPU: use device"):
        load(folder, device="mps")
    assert sybil("generate", "abc", "--target", folder, "--device", "mps") == 2
    assert "sees no such GPU" in capsys.readouterr().err
    with pytest.raises(InvalidSetting, match=r"use 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'$"):
        load(folder, device="xpu")


@compiled
def test_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ("--target", folder, "--max-new-tokens", 3)
    assert (
        sybil("generate", "abc", "--json", *models, "--draft", folder, "--dtype", "int8", "--draft-dtype", "int4") == 0
    )
    capsys.readouterr()
    assert sybil("compare", *models, "--dtype", "int8", "--out", tmp_path / "out", "--check") == 2
    assert "check is on and dtype is int8, which makes another model" in capsys.readouterr().err
    assert sybil("profile", "--workload", "gpt2:medium", "--dtype", "int8") == 2
    assert "dtype is int8, and gpt2:medium's weights are stored nowhere" in capsys.readouterr().err
