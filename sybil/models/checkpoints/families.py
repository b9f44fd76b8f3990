"""transformers' families: whose stored tensors our weights are, and what a config.json that leaves fields out means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sybil.errors import UnsupportedModel
from sybil.models.checkpoints import configs
from sybil.models.checkpoints.fields import Fields
from sybil.models.shape import Shape


@dataclass(frozen=True, slots=True)
class Source:
    """Which stored tensors one of our weights is made of, one beneath the other.

    size: ours; parts: each stored name and its shape; heads: where the rows are stored head by head, each head's
    query, key and value together, and not all queries first."""

    size: tuple[int, ...]
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False
    heads: int = 0

    @property
    def is_stored_so(self) -> bool:
        """Whether ours is one stored tensor as it is."""
        return len(self.parts) == 1 and not self.transposed and not self.heads

    def arranged(self, part: Tensor) -> Tensor:
        """A stored tensor with its rows and columns in our order."""
        if self.transposed and part.dim() == 2:
            return part.T
        return part.view(self.heads, 3, -1, *part.shape[1:]).transpose(0, 1).flatten(0, 2) if self.heads else part


@dataclass(frozen=True, slots=True)
class Family:
    """A family's config and its names, ours -> theirs; several of theirs are one beneath the other in ours.

    prefixes: what a checkpoint may put before them; biased: our products that have a bias; transposed: products
    are stored (inputs, outputs); interleaved: see Source.heads."""

    defaults: Mapping[str, Any]
    shape: Callable[[Fields], Shape]
    biased: Callable[[Fields], Collection[str]]
    prefixes: tuple[str, ...]
    embedding: str
    layer: str
    names: Mapping[str, tuple[str, ...]]
    final_norm: str
    positions: str = ""
    head: tuple[str, ...] = ("lm_head.weight",)
    """Names that the head may have, without a prefix."""
    transposed: bool = False
    interleaved: bool = False

    def prefix(self, stored: Collection[str]) -> str:
        """The prefix that the stored names have."""
        probe = f"{self.layer.format(0)}{self.names['attention_norm'][0]}.weight"
        return next((prefix for prefix in self.prefixes if prefix + probe in stored), self.prefixes[0])

    def sources(
        self, config: Mapping[str, Any], shape: Shape, prefix: str, embedding: str, head: str
    ) -> Iterator[tuple[str, Source]]:
        """Our weights' names and where each comes from; embedding and head are the stored names of those two.

        They are made as they are asked for: a config may ask for more layers than there is memory for their names."""
        width, inner = shape.width, shape.inner
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        products = {  # rows and columns of ours
            "query_key_value": ((queries, keys, keys), width),
            "attention_out": ((width,), queries),
            "mlp_in": ((inner, inner) if shape.gated else (inner,), width),
            "mlp_out": ((width,), inner),
        }
        norms = {"attention_norm": width, "mlp_norm": width}
        if shape.query_key_norm:
            norms |= dict.fromkeys(("query_norm", "key_norm"), shape.head_size)
        biased = self.biased(Fields(config, self.defaults))
        kinds = ("weight", "bias") if shape.norm == "layer" else ("weight",)

        yield _plain("token_embedding", embedding, shape.vocab_size, shape.embedding_width)
        if shape.position_offset is not None:
            yield _plain("position_embedding", prefix + self.positions, shape.context + shape.position_offset, width)
        if shape.embedding_width != width:
            yield _plain("project_in.weight", f"{prefix}project_in.weight", width, shape.embedding_width)
            yield _plain("project_out.weight", f"{prefix}project_out.weight", shape.embedding_width, width)
        for layer in range(shape.layers):
            theirs = {
                ours: tuple(prefix + self.layer.format(layer) + name for name in names)
                for ours, names in self.names.items()
            }
            for name, size in norms.items():
                for kind in kinds:
                    yield _plain(f"{layer}.{name}.{kind}", f"{theirs[name][0]}.{kind}", size)
            for name, (rows, columns) in products.items():
                heads = shape.heads if self.interleaved and len(rows) == 3 else 0
                yield from self._product(f"{layer}.{name}", theirs[name], rows, columns, heads, name in biased)
        if shape.final_norm:
            for kind in kinds:
                yield _plain(f"final_norm.{kind}", f"{prefix}{self.final_norm}.{kind}", width)
        if not shape.tied_head:
            yield _plain("head.weight", head, shape.vocab_size, shape.embedding_width)

    def _product(
        self, ours: str, theirs: tuple[str, ...], rows: tuple[int, ...], columns: int, heads: int, biased: bool
    ) -> Iterator[tuple[str, Source]]:
        """A product's weight, and its bias where it has one."""
        total = sum(rows)
        pieces = list(zip(theirs, rows if len(theirs) > 1 else (total,), strict=True))
        weights = [(f"{name}.weight", (columns, n) if self.transposed else (n, columns)) for name, n in pieces]
        yield f"{ours}.weight", Source((total, columns), tuple(weights), self.transposed, heads)
        if biased:
            biases = [(f"{name}.bias", (n,)) for name, n in pieces]
            yield f"{ours}.bias", Source((total,), tuple(biases), heads=heads)


def _plain(ours: str, theirs: str, *size: int) -> tuple[str, Source]:
    """A weight that is one stored tensor as it is."""
    return ours, Source(size, ((theirs, size),))


_ALL = ("query_key_value", "attention_out", "mlp_in", "mlp_out")
_ATTENTION, _MLP = _ALL[:2], _ALL[2:]

_GPT2 = Family(
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    shape=configs.gpt2,
    biased=lambda config: _ALL,
    prefixes=("transformer.", ""),
    embedding="wte.weight",
    positions="wpe.weight",
    layer="h.{}.",
    names={
        "attention_norm": ("ln_1",),
        "query_key_value": ("attn.c_attn",),
        "attention_out": ("attn.c_proj",),
        "mlp_norm": ("ln_2",),
        "mlp_in": ("mlp.c_fc",),
        "mlp_out": ("mlp.c_proj",),
    },
    final_norm="ln_f",
    transposed=True,
)

_OPT = Family(
    defaults={
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_size": 768,
        "ffn_dim": 3072,
        "activation_function": "relu",
        "layer_norm_elementwise_affine": True,
        "word_embed_proj_dim": None,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "tie_word_embeddings": True,
    },
    shape=configs.opt,
    biased=lambda config: _ALL if config["enable_bias"] else (),
    prefixes=("model.decoder.", "decoder.", ""),
    embedding="embed_tokens.weight",
    positions="embed_positions.weight",
    layer="layers.{}.",
    names={
        "attention_norm": ("self_attn_layer_norm",),
        "query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_out": ("self_attn.out_proj",),
        "mlp_norm": ("final_layer_norm",),
        "mlp_in": ("fc1",),
        "mlp_out": ("fc2",),
    },
    final_norm="final_layer_norm",
)

_NEOX = Family(
    defaults={
        "vocab_size": 50432,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    shape=configs.neox,
    biased=lambda config: _ALL if config["attention_bias"] else _MLP,
    prefixes=("gpt_neox.", ""),
    embedding="embed_in.weight",
    layer="layers.{}.",
    names={
        "attention_norm": ("input_layernorm",),
        "query_key_value": ("attention.query_key_value",),
        "attention_out": ("attention.dense",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp_in": ("mlp.dense_h_to_4h",),
        "mlp_out": ("mlp.dense_4h_to_h",),
    },
    final_norm="final_layer_norm",
    head=("lm_head.weight", "embed_out.weight"),
    interleaved=True,
)

_LLAMA = Family(
    defaults={
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": None,
        "tie_word_embeddings": False,
    },
    shape=configs.llama,
    biased=lambda config: _ATTENTION * bool(config["attention_bias"]) + _MLP * bool(config["mlp_bias"]),
    prefixes=("model.", ""),
    embedding="embed_tokens.weight",
    layer="layers.{}.",
    names={
        "attention_norm": ("input_layernorm",),
        "query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "query_norm": ("self_attn.q_norm",),
        "key_norm": ("self_attn.k_norm",),
        "attention_out": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp_out": ("mlp.down_proj",),
    },
    final_norm="norm",
)

_MISTRAL = replace(
    _LLAMA,
    defaults={
        **_LLAMA.defaults,
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "sliding_window": 4096,
    },
    shape=configs.mistral,
    biased=lambda config: (),
)

_PHI3 = replace(
    _LLAMA,
    defaults={
        **_LLAMA.defaults,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    shape=configs.phi3,
    biased=lambda config: (),
    names={**_LLAMA.names, "query_key_value": ("self_attn.qkv_proj",), "mlp_in": ("mlp.gate_up_proj",)},
)

_QWEN2 = replace(
    _LLAMA,
    defaults={
        **_LLAMA.defaults,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "intermediate_size": 22016,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    },
    shape=configs.qwen,
    biased=lambda config: ("query_key_value",),
)

_QWEN3 = replace(
    _QWEN2,
    defaults={**_QWEN2.defaults, "head_dim": 128},
    biased=lambda config: _ATTENTION if config["attention_bias"] else (),
)

FAMILIES: Mapping[str, Family] = {
    "gpt2": _GPT2,
    "opt": _OPT,
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "phi3": _PHI3,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
}
"""By config.json's model_type."""


def understand(config: Mapping[str, Any]) -> tuple[Family, Shape]:
    """The config's family and shape; raises UnsupportedModel where our own forward doesn't know it, NotAModel where a
    field isn't allowed, WeightsMismatch where its numbers contradict each other."""
    fields = Fields(config)
    family = FAMILIES.get(fields.get("model_type"))
    if family is None:
        raise configs.unknown("model_type", config.get("model_type"))
    for name in ("quantization_config", "per_layer_config"):
        if fields.get(name):
            raise configs.unknown(name, "set")
    if fields.get("is_causal") is False:
        raise configs.unknown("is_causal", False)
    whole = Fields(config, family.defaults)
    family.biased(whole)  # read here for its fields to be checked with all others
    return family, family.shape(whole)


def understood(config: Mapping[str, Any]) -> tuple[Family, Shape] | None:
    """understand(), but None for what our own forward doesn't know."""
    try:
        return understand(config)
    except UnsupportedModel:
        return None
