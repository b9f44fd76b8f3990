"""What Gemma, SmolLM3, OLMo 2 and Granite have besides: each is seen where it is left out, in both forwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import example, random_model
from real import gemma_file
from shapes import (
    SHAPES,
    assert_near,
    assert_same_bits,
    compiled,
    logits_in_parts,
    random_tokens,
    random_weights,
    widths,
)
from tiny import alternating, fixed, foreign, from_state, greedy, in_float64, in_sybil, prompts, save
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

import sybil
from sybil import Decoder
from sybil.drafting import DraftLookup, DraftModel
from sybil.errors import NotAModel, UnsupportedModel
from sybil.models import building, folders
from sybil.models.checkpoints.families import understand
from sybil.models.checkpoints.weights import State, arrange
from sybil.models.native import NativeTransformer
from sybil.models.operators.transformer import Transformer
from sybil.models.shape import Attention, Shape

NEW = ("smollm3", "olmo2", "granite", "gemma2", "gemma3_text")
CPU = torch.device("cpu")
families = pytest.mark.parametrize("family", NEW)
NEW_SHAPES = ("gemma2", "gemma3", "olmo2", "granite")


@families
def test_greedy_tokens_are_transformers_own(family: str, tmp_path: Path) -> None:
    """In float64, by the operators, and in float32, by either forward; the text is longer than the windows."""
    model = random_model(example(family))
    save(model, tmp_path)
    given = prompts([7, 3, 12])
    wanted = [greedy(in_float64(model), prompt, 30) for prompt in given]
    for dtype in (torch.float64, torch.float32):
        decoder = sybil.load(tmp_path, "lookup", dtype=dtype, device="cpu")
        out = decoder.generate(given, max_new_tokens=30, gamma=3, eos_token_id=[])
        assert [row.tolist() for row in out.tokens] == wanted
        assert out.stats.proposed > 0


def without(shape: Shape) -> dict[str, Shape]:
    """The shape, each time without one of the things that others of its size don't have."""
    plain = Attention(shape.attentions[0].rotary)
    found = {
        "caps": replace(shape, attention_cap=0.0, logit_cap=0.0),
        "the attention's cap": replace(shape, attention_cap=0.0),
        "the logits' cap": replace(shape, logit_cap=0.0),
        "scaled embeddings": replace(shape, embedding_scale=1.0),
        "scaled residuals": replace(shape, residual_scale=1.0),
        "divided logits": replace(shape, logit_divisor=1.0),
        "the attention's scale": replace(shape, attention_scale=0.0),
        "windows": replace(shape, attentions=tuple(replace(each, window=None) for each in shape.attentions)),
        "other layers": replace(shape, attentions=(plain,) * shape.layers),
        "norms of outputs": replace(shape, normed="input") if shape.normed == "both" else shape,
        "norms of queries and keys": replace(shape, query_key_norm="none"),
    }
    return {name: other for name, other in found.items() if other != shape}


@compiled
@pytest.mark.parametrize("name", NEW_SHAPES)
def test_everything_that_a_family_has_is_seen_where_it_is_left_out(name: str) -> None:
    """A forward that forgot it would be far from the other forward."""
    shape, tokens = SHAPES[name], random_tokens(SHAPES[name], 2, 24)
    weights = random_weights(shape)

    def computed(kind: Any, shape: Shape) -> Tensor:
        return logits_in_parts(kind(shape, weights), tokens, [9, 1, 5, 9])

    wanted = computed(NativeTransformer, shape)
    assert_near(wanted, computed(Transformer, shape).double())
    others = without(shape)
    assert others
    for other in others.values():
        assert float((computed(Transformer, other) - wanted).abs().max() / wanted.std()) > 1e-3


@compiled
@widths
@pytest.mark.parametrize("name", ["qwen3, windowed", *NEW_SHAPES])
def test_rows_rolled_back_behind_their_windows_have_the_same_bits(name: str, lanes: int) -> None:
    """Each row by its own number of tokens, again and again, as tokens are rejected."""
    shape = SHAPES[name]
    model = NativeTransformer(shape, random_weights(shape), lanes=lanes)
    tokens = random_tokens(shape, 3, 40)
    wanted = logits_in_parts(model, tokens, [1] * 40)
    cache, at, rows = model.new_cache(3, 48), torch.zeros(3, dtype=torch.int64), torch.arange(3)[:, None]
    for turn, count in enumerate([12, 9, 9, 1, 9, 4, 9, 9]):
        count = min(count, 40 - int(at.max()))
        places = at[:, None] + torch.arange(count)
        other = (tokens[rows, places] + torch.arange(count).gt(count // 2)) % shape.vocab_size  # the last are others
        kept = model.forward(other, cache)[:, : count // 2 + 1]
        assert_same_bits(kept, wanted[rows, places[:, : count // 2 + 1]])
        back = torch.tensor([turn % 3, (turn + 1) % 4, 5]).clamp(max=count // 2)
        at = at + count // 2 + 1 - back
        cache.lengths = at
    assert int(at.min()) > 8


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_a_speculative_batch_is_each_row_alone(kind: str) -> None:
    """Greedily, in float64, behind windows of 5, with rejections: by our forward, by it with fixed shapes, and by
    transformers' own."""
    model = alternating(kind)
    noisy = in_sybil(model)
    noisy.token_embedding = noisy.token_embedding + 0.1 * torch.randn(31, 16, dtype=torch.float64)
    given = prompts([9, 2, 5])
    wanted = [greedy(model, prompt, 24) for prompt in given]
    for target in (in_sybil(model), fixed(model), foreign(model)):
        out = Decoder(target, DraftModel(noisy)).generate(given, max_new_tokens=24, gamma=4, eos_token_id=[])
        assert [row.tolist() for row in out.tokens] == wanted
        assert 0 < out.stats.accepted < out.stats.proposed


def test_norms_are_whole_where_the_file_says_so() -> None:
    """A GGUF file's norms have their 1 already."""

    class Whole(State):
        norms_are_whole = True

    model = random_model(example("gemma3_text"), torch.float32)
    config, state = model.config.to_dict(), model.state_dict()
    added = {name: tensor + 1 if "norm" in name else tensor for name, tensor in state.items()}
    known = understand(config)
    for dtype in (torch.float32, torch.bfloat16):
        one = dict(arrange("tiny", config, known, State(state), dtype, CPU)[1])
        other = dict(arrange("tiny", config, known, Whole(added), dtype, CPU)[1])
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.equal(other[name]), name
            assert tensor.dtype == (torch.float32 if "norm" in name else dtype), "1 + weight needs float32's digits"


def test_a_bfloat16_forward_rounds_where_transformers_does() -> None:
    """Norms are multiplied in float32, and the embedding's scale is a bfloat16 number: without either it is far off."""
    torch.manual_seed(0)
    model = random_model(example("gemma3_text"), torch.bfloat16)
    model.model.embed_tokens.embed_scale = model.model.embed_tokens.embed_scale.to(torch.bfloat16)
    config = model.config.to_dict()
    shape, weights = arrange("tiny", config, understand(config), State(model.state_dict()), torch.bfloat16, CPU)
    tokens = torch.randint(31, (1, 1))
    ours = Transformer(shape, weights)
    layer, theirs = ours.blocks[0], model.model.layers[0]
    with torch.no_grad():
        embedded = model.model.embed_tokens(tokens)
        assert ours._embed(tokens, tokens).equal(embedded)
        wanted = theirs.input_layernorm(embedded)
    assert layer.norms["attention_norm"](embedded).equal(wanted)


def with_pictures() -> PreTrainedModel:
    """Gemma 3 as it is from 4B on: a language model with a part for pictures beside it, in float64 throughout."""
    text = example("gemma3_text", sliding_window_pattern=2, rope_scaling={"rope_type": "linear", "factor": 4.0})
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    pictures = {"model_type": "siglip_vision_model", "patch_size": 14, **sizes}
    config = Gemma3Config(
        text_config=text.to_dict(), vision_config=pictures, mm_tokens_per_image=4, image_token_index=30
    )
    return in_float64(random_model(config))


def test_a_model_with_a_part_for_pictures_is_its_language_model(tmp_path: Path) -> None:
    """By the names that transformers gives its weights, and by the hub's."""
    model = with_pictures()
    config, state = model.config.to_dict(), model.state_dict()
    assert config["text_config"]["rope_parameters"]["full_attention"]["factor"] == 4.0
    given = prompts([7, 30])
    ours = in_sybil(model)
    for prompt in given:
        with torch.no_grad():
            wanted = model(input_ids=prompt[None]).logits
        found = ours.forward(prompt[None], ours.new_cache(1, 40))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    hubs = {
        name.replace("model.language_model.", "language_model.model."): tensor
        for name, tensor in state.items()
        if "language_model" in name
    }
    theirs = from_state(config, hubs, torch.float64)
    assert theirs.forward(given[0][None], theirs.new_cache(1, 40)).equal(
        ours.forward(given[0][None], ours.new_cache(1, 40))
    )
    save(random_model(model.config, torch.float32), tmp_path)
    assert folders.read(tmp_path).known
    assert sybil.load(model, device="cpu").target.__class__.__name__ == "HuggingFaceModel"  # it may be given pictures
    for changes in (
        {"text_config": config["text_config"] | {"model_type": "gemma2"}},
        {"quantization_config": {"a": 1}},
    ):
        with pytest.raises(UnsupportedModel):
            understand(config | changes)
    with pytest.raises(NotAModel, match=r"^text_config of config\.json has hidden_size 'a'"):
        understand(config | {"text_config": config["text_config"] | {"hidden_size": "a"}})


@pytest.mark.real
@pytest.mark.timeout(900)
@compiled
def test_the_real_gemma_says_what_transformers_says() -> None:
    """Over a text that is longer than its windows of 512: each token's likeliest next, and a greedy text."""
    checkpoint = folders.read(gemma_file())
    assert checkpoint.stored is not None
    ours = building.load(checkpoint, "float32", torch.float32, CPU)
    stored = {name: checkpoint.stored.read(name).float() for name in checkpoint.stored.shapes}
    state = {name: tensor - 1 if "norm" in name else tensor for name, tensor in stored.items()}
    config = Gemma3TextConfig(**{name: value for name, value in checkpoint.config.items() if name != "model_type"})
    model = Gemma3ForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    tokens = torch.tensor([checkpoint.tokenizer.encode(text).ids[:800]])
    assert tokens.shape == (1, 800)
    found = logits_in_parts(ours, tokens, [300, 200, 300])
    with torch.no_grad():
        wanted = model(tokens).logits
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4
    best = wanted.topk(2).values
    near = best[..., 0] - best[..., 1] < 1e-3
    assert bool((near | (found.argmax(-1) == wanted.argmax(-1))).all())
    prompt = tokens[0, :40]
    out = Decoder(ours, DraftLookup()).generate([prompt], max_new_tokens=32, gamma=4, eos_token_id=[])
    assert out.tokens[0].tolist() == greedy(model, prompt, 32)
