"""Sybil's own forward is transformers', to 1e-9 in float64, for every family that it knows."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import CONFIGS, example, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import from_folder, from_state, gpt2, greedy, in_float64, in_sybil, prompts, save
from torch import Tensor
from transformers import GPT2LMHeadModel

import sybil
from sybil.errors import NotAModel, UnsupportedModel, WeightsMismatch
from sybil.models import Model, building
from sybil.models.checkpoints.families import FAMILIES, understand, understood
from sybil.models.checkpoints.safetensors import INDEX
from sybil.models.operators import linear
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Activation

CPU = torch.device("cpu")
SLIDING = ["sliding_attention"] * 32
families = pytest.mark.parametrize("family", CONFIGS)


def in_parts(model: Model, tokens: Tensor, parts: list[int], cuts: list[int]) -> tuple[Tensor, Tensor]:
    """Logits (batch, n, vocab) of tokens fed part by part, each row rolled back by its own number of tokens after
    each part; and how many tokens of each row were reached."""
    cache = model.new_cache(*tokens.shape)
    logits = torch.zeros(*tokens.shape, model.vocab_size, dtype=torch.float64)
    at, reached = (torch.zeros(len(tokens), dtype=torch.int64) for _ in range(2))
    rows = torch.arange(len(tokens))[:, None]
    for part in parts:
        places = at[:, None] + torch.arange(part)
        logits[rows, places] = model.forward(tokens[rows, places], cache).double()
        assert cache.lengths.equal(at + part)
        reached = torch.maximum(reached, at + part)
        at = at + part - torch.tensor(cuts[: len(tokens)]).clamp(max=part)
        cache.lengths = at
    return logits, reached


@families
@settings(max_examples=25)
@given(
    data=st.data(),
    stored=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    in_memory=st.booleans(),
    shard=st.sampled_from(["1GB", "1KB"]),
    parts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_logits_equal_transformers_in_float64(
    family: str, data: st.DataObject, stored: torch.dtype, in_memory: bool, shard: str, parts: list[int],
    cuts: list[int], seed: int,
) -> None:  # fmt: skip
    model = random_model(data.draw(CONFIGS[family]()), stored, seed)
    if in_memory:
        ours = from_state(model.config.to_dict(), model.state_dict(), torch.float64)
    else:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, max_shard_size=shard)
            ours = from_folder(Path(folder), torch.float64)
    tokens = torch.randint(model.config.vocab_size, (len(cuts), sum(parts)))
    logits, reached = in_parts(ours, tokens, parts, cuts)
    with torch.no_grad():
        wanted = in_float64(model)(input_ids=tokens, use_cache=False).logits
    for row, count in enumerate(reached.tolist()):
        assert (logits[row, :count] - wanted[row, :count]).abs().max() < 1e-9


@families
def test_float32_equals_transformers_as_it_is(family: str) -> None:
    model = random_model(example(family), torch.float32)
    ours = in_sybil(model)
    tokens = torch.randint(31, (2, 20))
    logits, reached = in_parts(ours, tokens, [9, 6, 5], [0, 0])
    with torch.no_grad():
        wanted = model(input_ids=tokens).logits.double()
    assert reached.tolist() == [20, 20]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("target", "draft"), [("llama", "opt"), ("mistral", "gpt2"), ("gpt_neox", "qwen3")])
def test_greedy_tokens_are_transformers_own(target: str, draft: str, tmp_path: Path) -> None:
    model = random_model(example(target))
    save(model, tmp_path / "target")
    save(random_model(example(draft), torch.bfloat16), tmp_path / "draft")
    decoder = sybil.load(tmp_path / "target", tmp_path / "draft", dtype=torch.float64, device="cpu")
    given = prompts([7, 3])
    out = decoder.generate(given, max_new_tokens=20, gamma=3, eos_token_id=[])
    assert [row.tolist() for row in out.tokens] == [greedy(model, prompt, 20) for prompt in given]
    assert out.stats.proposed > 0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
def test_rotary_tables_are_transformers_own_float32(rope: dict[str, Any]) -> None:
    config = example("llama", head_dim=64, max_position_embeddings=3000, rope_parameters=rope)
    rotary = understand(config.to_dict())[1].attentions[0].rotary
    assert rotary is not None
    theirs = random_model(config).model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.arange(3000)[None])
    for ours, wanted in zip(rotary.tables(range(3000), torch.float64, CPU), theirs, strict=True):
        assert wanted.dtype == torch.float64
        assert wanted.float().double().equal(wanted)
        assert ours.equal(wanted[0, :, :32])
        assert ours.equal(wanted[0, :, 32:])


@families
def test_fields_that_a_config_leaves_out_have_transformers_defaults(family: str) -> None:
    whole = type(example(family))().to_dict()
    known, shape = understand({"model_type": family})
    assert shape == understand(whole)[1]
    sources = [*known.sources({"model_type": family}, shape, "", "embedding", "head")]
    assert sources == [*known.sources(whole, shape, "", "embedding", "head")]


def test_every_family_is_tested() -> None:
    assert CONFIGS.keys() == FAMILIES.keys()


def test_older_configs_say_the_same() -> None:
    scaling = {"type": "linear", "factor": 2.0}
    old = {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": scaling, "torch_dtype": "float16"}
    new = {"model_type": "llama", "dtype": "float16"}
    new["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    assert understand(old) == understand(new)
    old = {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 500}
    new = {"model_type": "gpt_neox", "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500}}
    assert understand(old) == understand(new)
    wide = {"model_type": "llama", "max_position_embeddings": 512}
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    explicit = scaling | {"original_max_position_embeddings": 512}
    assert understand(wide | {"rope_scaling": scaling}) == understand(wide | {"rope_scaling": explicit})


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bloom"},
        {},
        {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}},
        {"model_type": "llama", "hidden_act": "quick_gelu"},
        {"model_type": "llama", "is_causal": False},
        {"model_type": "llama", "layer_types": ["full_attention"] * 32},
        {"model_type": "llama", "partial_rotary_factor": 0.5},
        *(
            {"model_type": "llama", "rope_parameters": {"rope_type": kind, "factor": 2.0}}
            for kind in ("dynamic", "yarn", "longrope", "proportional")
        ),
        {"model_type": "llama", "rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": None, "layer_types": SLIDING},
        {"model_type": "qwen3", "layer_types": ["chunked_attention"] * 32},
        {"model_type": "smollm3", "layer_types": ["sliding_attention"] * 36},
        {"model_type": "gemma2", "sliding_window": None},
        {"model_type": "gemma2", "use_bidirectional_attention": True},
        {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"model_type": "gemma3_text", "rope_parameters": {"chunked_attention": {"rope_type": "default"}}},
        {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
        {"model_type": "granite", "layer_types": ["full_attention"] * 32},
        {"model_type": "olmo2", "layer_types": ["full_attention"] * 32},
        {"model_type": "qwen3", "layer_types": ["full_attention"] * 31 + ["sliding_attention"]},
        {"model_type": "qwen2", "layer_types": SLIDING},
        {"model_type": "opt", "layer_norm_elementwise_affine": False},
        {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
        {"model_type": "gpt2", "add_cross_attention": True},
    ],
    ids=str,
)
def test_what_is_not_reproduced_goes_through_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    assert understood(config) is None
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises((UnsupportedModel, NotAModel)):
        sybil.load(tmp_path)
    with pytest.raises(UnsupportedModel, match="use a Hugging Face model folder"):
        from_state(config, {}, torch.float32)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "gpt2", "n_embd": 10, "n_head": 3}, "n_embd 10 and n_head 3"),
        ({"model_type": "opt", "hidden_size": 10}, "hidden_size 10 and num_attention_heads 12"),
        ({"model_type": "llama", "num_key_value_heads": 5}, "num_key_value_heads 5"),
        ({"model_type": "llama", "hidden_size": 96}, "3 dimensions"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"] * 3}, "3 layer_types and num_hidden_layers 32"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "2 no_rope_layers and num_hidden_layers 36"),
        ({"model_type": "llama"}, "lacks the weight model.embed_tokens.weight"),
    ],
)
def test_numbers_that_contradict_each_other(config: dict[str, Any], named: str) -> None:
    with pytest.raises(WeightsMismatch, match=named):
        from_state(config, {}, torch.float32)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": ["llama"]}, r"model_type \['llama'\]"),
        ({"model_type": "gpt2", "n_embd": "wide"}, "n_embd 'wide', and allowed is a whole number from 1 to 1048576"),
        ({"model_type": "llama", "num_attention_heads": 0}, "num_attention_heads 0, and allowed is"),
        ({"model_type": "mistral", "sliding_window": -5}, "sliding_window -5, and allowed is .* or null"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window 0"),
        ({"model_type": "phi3", "sliding_window": 2**31}, "sliding_window 2147483648"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": -1}, "sliding_window -1"),
        ({"model_type": "qwen3", "use_sliding_window": "no"}, "use_sliding_window 'no', and allowed is true or false"),
        ({"model_type": "llama", "tie_word_embeddings": 0}, "tie_word_embeddings 0"),
        ({"model_type": "llama", "num_hidden_layers": True}, "num_hidden_layers True"),
        ({"model_type": "llama", "num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
        ({"model_type": "llama", "vocab_size": 10**30}, "vocab_size 1000000000000000000000000000000"),
        ({"model_type": "llama", "vocab_size": 10**300}, "vocab_size of 997 bits"),
        ({"model_type": "llama", "head_dim": 0}, "head_dim 0"),
        ({"model_type": "llama", "head_dim": 2.0}, "head_dim 2.0"),
        ({"model_type": "llama", "rms_norm_eps": -1e-6}, "rms_norm_eps -1e-06"),
        ({"model_type": "llama", "rms_norm_eps": float("nan")}, "rms_norm_eps nan"),
        ({"model_type": "llama", "rope_theta": float("inf")}, "rope_theta inf"),
        ({"model_type": "llama", "rope_theta": 1e-300}, "no finite angles"),
        ({"model_type": "llama", "rope_scaling": "linear"}, "rope_scaling 'linear', and allowed is an object or null"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "linear"}}, "rope_scaling of config.json has no factor"),
        ({"model_type": "llama", "rope_parameters": {"rope_theta": "1\n2"}}, r"rope_theta '1\\n2'"),
        ({"model_type": "gpt_neox", "rotary_pct": 1.5}, "rotary_pct 1.5"),
        ({"model_type": "qwen2", "layer_types": [["full_attention"]]}, "layer_types"),
        ({"model_type": "opt", "enable_bias": None}, "enable_bias None"),
        ({"model_type": "smollm3", "no_rope_layers": [2] * 36}, r"no_rope_layers .*and allowed is a list of 0 and 1"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval 0"),
        ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling 0"),
        ({"model_type": "granite", "residual_multiplier": None}, "residual_multiplier None"),
        ({"model_type": "granite", "attention_multiplier": 1e300}, "attention_multiplier 1e.300"),
        ({"model_type": "gemma2", "final_logit_softcapping": -1.0}, "final_logit_softcapping -1.0"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 0}, "attn_logit_softcapping 0"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar 0"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern 0"),
        ({"model_type": "gemma3_text", "rope_local_base_freq": -1.0}, "rope_local_base_freq -1.0"),
        ({"model_type": "gemma3_text", "rope_parameters": {"full_attention": 3}}, "full_attention 3"),
    ],
    ids=str,
)
def test_fields_that_are_not_allowed(config: dict[str, Any], named: str) -> None:
    for find in (understand, understood):
        with pytest.raises(NotAModel, match=named) as raised:
            find(config)
        assert "\n" not in str(raised.value)


def test_fields_that_nobody_reads_may_hold_anything() -> None:
    config = {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": -1, "mlp_bias": "x", "factor": []}
    assert understand(config) == understand({"model_type": "qwen2"})


def test_layers_that_the_weights_lack_are_found_before_the_others_are_looked_for() -> None:
    model = random_model(example("llama"))
    config = model.config.to_dict() | {"num_hidden_layers": 2**16}
    began = time.process_time()
    with pytest.raises(WeightsMismatch, match=r"lacks the weight model\.layers\.2\.input_layernorm\.weight"):
        from_state(config, model.state_dict(), torch.float32)
    assert time.process_time() - began < 10  # generous: names for so many layers take a minute
    with pytest.raises(WeightsMismatch, match=r"\(31, 16\) where its config asks for \(2147483647, 16\)"):
        from_state(config | {"vocab_size": 2**31 - 1}, model.state_dict(), torch.float32)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.int32])
def test_weights_that_are_no_floating_point_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(example("gpt2"), torch.float32)
    name = "transformer.h.1.mlp.c_fc.weight"
    odd = {name: torch.ones(model.state_dict()[name].shape).to(dtype)}
    word = str(dtype).removeprefix("torch.")
    with pytest.raises(WeightsMismatch, match=rf"{name} is of {word}, and a weight is of float64"):
        from_state(model.config.to_dict(), model.state_dict() | odd, torch.float32)
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsMismatch, match=f"{name} is of"):
        rewritten(tmp_path, lambda weights: weights | odd)
    model.save_pretrained(tmp_path)
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4).to(dtype)}  # of GPT-2's older files; nobody reads it
    rewritten(tmp_path, lambda weights: weights | mask)


def test_a_head_that_is_stored_in_another_dtype_is_no_tied_one(tmp_path: Path) -> None:
    model = random_model(example("gpt2", tie_word_embeddings=True), torch.float32)
    model.save_pretrained(tmp_path)
    odd = {"lm_head.weight": torch.ones(31, 16, dtype=torch.int8)}
    with pytest.raises(WeightsMismatch, match=r"lm_head\.weight is of"):
        rewritten(tmp_path, lambda weights: weights | odd)


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Model:
    """The folder's model after its stored tensors were changed."""
    weights = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return from_folder(folder, torch.float64)


@families
@pytest.mark.parametrize("tied", [True, False])
def test_checkpoints_under_other_names(family: str, tied: bool, tmp_path: Path) -> None:
    model = random_model(example(family, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path)
    tokens = torch.randint(31, (1, 8))
    wanted = in_sybil(model).forward(tokens, in_sybil(model).new_cache(1, 8))
    prefix, embedding = FAMILIES[family].prefixes[0], FAMILIES[family].embedding

    def same(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> bool:
        ours = rewritten(tmp_path, change)
        return wanted.equal(ours.forward(tokens, ours.new_cache(1, 8)))

    assert same(lambda weights: weights)
    if tied:  # the head stored as well, then differing, then alone
        assert same(lambda weights: weights | {"lm_head.weight": weights[prefix + embedding].clone()})
        assert not same(lambda weights: weights | {"lm_head.weight": 2 * weights[prefix + embedding]})
        half = {name: tensor for name, tensor in model.state_dict().items() if name != prefix + embedding}
        assert same(lambda weights: half)
    else:
        heads = {"lm_head.weight", "embed_out.weight"}  # the latter is how transformers stores GPT-NeoX's
        with pytest.raises(WeightsMismatch, match=r"lacks the weight lm_head\.weight"):
            same(lambda weights: {name: tensor for name, tensor in weights.items() if name not in heads})
        model.save_pretrained(tmp_path)
        assert same(lambda weights: {name.replace("embed_out", "lm_head"): x for name, x in weights.items()})
    assert same(lambda weights: {name.removeprefix(prefix): tensor for name, tensor in weights.items()})


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    random_model(example("llama")).save_pretrained(tmp_path, max_shard_size="4KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    (tmp_path / "other.safetensors").write_bytes(b"of another model")
    from_folder(tmp_path, torch.float32)
    shards[1].unlink()
    with pytest.raises(NotAModel, match=shards[1].name):
        from_folder(tmp_path, torch.float32)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(NotAModel, match="weight_map"):
        from_folder(tmp_path, torch.float32)


@families
def test_each_weight_is_read_once_and_no_file_stays_mapped(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Counted(Mapping[str, Tensor]):
        def __init__(self, weights: Mapping[str, Tensor]) -> None:
            self.weights = weights

        def __getitem__(self, name: str) -> Tensor:
            asked.append(name)
            return self.weights[name]

        def __contains__(self, name: object) -> bool:
            return name in self.weights

        def __iter__(self) -> Iterator[str]:
            return iter(self.weights)

        def __len__(self) -> int:
            return len(self.weights)

    names: set[str] = set()

    def build(shape: Any, weights: Mapping[str, Tensor], *_: Any) -> Transformer:
        names.update(weights)
        return Transformer(shape, Counted(weights))

    monkeypatch.setattr(building, "build", build)
    random_model(example(family), torch.float32).save_pretrained(tmp_path)
    model = from_folder(tmp_path, torch.float32)
    assert sorted(asked) == sorted(names)
    assert model.weight_bytes >= sum(x.nbytes for x in load_file(tmp_path / "model.safetensors").values())
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path) not in maps.read_text()


@pytest.mark.parametrize("activation", ["none", "gelu_tanh", "gelu", "relu", "silu"])
@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_packed_products_equal_plain_ones(activation: Activation, rows: int) -> None:
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(1, rows, 32)
    if not linear.can_pack(weight):  # another build of torch: nothing is packed, and nothing can differ
        assert linear.linear(weight, bias, activation)(x).shape == (1, rows, 48)
        return
    plain = linear.linear(weight.double(), bias.double(), activation)(x.double())
    for pack in (True, False):
        torch.testing.assert_close(
            linear.linear(weight, bias, activation, pack)(x).double(), plain, rtol=1e-5, atol=1e-5
        )


def test_packing_is_refused_where_it_is_not_known() -> None:
    assert not linear.can_pack(torch.zeros(2, 2, dtype=torch.float64))
    assert not linear.can_pack(torch.zeros(2, 2, device="meta"))


def test_packed_float32_follows_float64() -> None:
    model = gpt2(seed=3)
    wide = in_sybil(model)
    weights = GPT2LMHeadModel(model.config).eval()
    weights.load_state_dict(model.state_dict())
    narrow: Transformer = in_sybil(weights)
    assert narrow.dtype == torch.float32
    tokens = torch.randint(31, (2, 12))
    difference = narrow.forward(tokens, narrow.new_cache(2, 12)).double() - wide.forward(tokens, wide.new_cache(2, 12))
    assert difference.abs().max() < 1e-4
