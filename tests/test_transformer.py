"""Sybil's own forward is transformers', to 1e-9 in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import gpt2, native
from transformers import GPT2Config, GPT2LMHeadModel

from sybil.models import linear
from sybil.models.transformer import Transformer

configurations = st.builds(
    lambda heads, head_size, **rest: GPT2Config(
        n_head=heads,
        n_embd=heads * head_size,
        n_positions=24,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        **rest,
    ),
    heads=st.integers(1, 4),
    head_size=st.sampled_from([2, 3, 8]),
    n_layer=st.integers(1, 3),
    vocab_size=st.integers(2, 60),
    n_inner=st.one_of(st.none(), st.integers(1, 40)),
    activation_function=st.sampled_from(["gelu_new", "gelu", "relu", "silu", "gelu_pytorch_tanh"]),
    layer_norm_epsilon=st.sampled_from([1e-5, 1e-3]),
    scale_attn_weights=st.booleans(),
    tie_word_embeddings=st.booleans(),
)


@settings(max_examples=60)
@given(
    config=configurations,
    batch=st.integers(1, 3),
    parts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_logits_equal_transformers_in_float64(config: GPT2Config, batch: int, parts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at constants
            parameter += 0.1 * torch.randn_like(parameter)
    ours = native(model)
    tokens = torch.randint(config.vocab_size, (batch, sum(parts)))
    cache = ours.new_cache(batch, sum(parts))
    logits = torch.cat([ours.forward(part, cache) for part in tokens.split(parts, dim=1)], 1)
    with torch.no_grad():
        wanted = model(input_ids=tokens).logits
    assert (logits - wanted).abs().max() < 1e-9
    assert cache.lengths.tolist() == [sum(parts)] * batch


@pytest.mark.parametrize("activation", ["none", "gelu_tanh", "gelu", "relu", "silu"])
@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_packed_products_equal_plain_ones(activation: linear.Activation, rows: int) -> None:
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
    wide = native(model)
    weights = GPT2LMHeadModel(model.config).eval()
    weights.load_state_dict(model.state_dict())
    narrow: Transformer = native(weights)
    assert narrow.dtype == torch.float32
    tokens = torch.randint(31, (2, 12))
    difference = narrow.forward(tokens, narrow.new_cache(2, 12)).double() - wide.forward(tokens, wide.new_cache(2, 12))
    assert difference.abs().max() < 1e-4
