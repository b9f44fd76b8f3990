"""Every registered model's config.json, as the hub has it, and a tiny model of the same make. It has the same
architecture with small sizes and random weights, and a tokenizer of the same kind. It is made as a folder of the hub's
cache or as a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import ggufs
import torch
from configurations import random_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, Gemma3ForCausalLM, GemmaTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import generate_merges
from vocabularies import CORPUS

Config = dict[str, Any]
COMMIT = "0" * 40


def _gpt2(layers: int, heads: int, width: int) -> Config:
    return {"model_type": "gpt2", "n_layer": layers, "n_head": heads, "n_embd": width}


def _opt(layers: int, heads: int, width: int, **more: Any) -> Config:
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width, "ffn_dim": 4 * width}
    return {"model_type": "opt", "vocab_size": 50272, "word_embed_proj_dim": width, **sizes, **more}


def _gated(
    kind: str, vocab: int, layers: int, heads: int, kv_heads: int, width: int, inner: int, **more: Any
) -> Config:
    return {
        "model_type": kind, "vocab_size": vocab, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "hidden_size": width, "intermediate_size": inner, **more,
    }  # fmt: skip


def _llama3(factor: float) -> Config:
    scaled = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {
        "max_position_embeddings": 131072, "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 8192, **scaled},
    }  # fmt: skip


_TIED = {"tie_word_embeddings": True}
_PICTURES = {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27, "image_size": 896}
REAL: Mapping[str, Config] = {
    "openai-community/gpt2": _gpt2(12, 12, 768),
    "openai-community/gpt2-medium": _gpt2(24, 16, 1024),
    "openai-community/gpt2-large": _gpt2(36, 20, 1280),
    "openai-community/gpt2-xl": _gpt2(48, 25, 1600),
    "distilbert/distilgpt2": _gpt2(6, 12, 768),
    "facebook/opt-125m": _opt(12, 12, 768),
    "facebook/opt-350m": _opt(24, 16, 1024, word_embed_proj_dim=512, do_layer_norm_before=False),
    "facebook/opt-1.3b": _opt(24, 32, 2048),
    "facebook/opt-2.7b": _opt(32, 32, 2560),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _gated("llama", 32000, 22, 32, 4, 2048, 5632),
    "microsoft/Phi-3-mini-4k-instruct": _gated("phi3", 32064, 32, 32, 32, 3072, 8192, sliding_window=2047),
    "meta-llama/Meta-Llama-3-8B-Instruct": _gated("llama", 128256, 32, 32, 8, 4096, 14336, rope_theta=500000.0),
    "meta-llama/Llama-3.1-8B": _gated("llama", 128256, 32, 32, 8, 4096, 14336, **_llama3(8.0)),
    "meta-llama/Llama-3.2-1B": _gated("llama", 128256, 16, 32, 8, 2048, 8192, **_llama3(32.0), **_TIED),
    "Qwen/Qwen2.5-0.5B": _gated("qwen2", 151936, 24, 14, 2, 896, 4864, rope_theta=1e6, **_TIED),
    "Qwen/Qwen2.5-3B": _gated("qwen2", 151936, 36, 16, 2, 2048, 11008, rope_theta=1e6, **_TIED),
    "Qwen/Qwen2.5-7B": _gated("qwen2", 152064, 28, 28, 4, 3584, 18944, rope_theta=1e6),
    "Qwen/Qwen3-0.6B": _gated("qwen3", 151936, 28, 16, 8, 1024, 3072, head_dim=128, rope_theta=1e6, **_TIED),
    "Qwen/Qwen3-8B": _gated("qwen3", 151936, 36, 32, 8, 4096, 12288, head_dim=128, rope_theta=1e6),
    "HuggingFaceTB/SmolLM2-135M": _gated("llama", 49152, 30, 9, 3, 576, 1536, rope_theta=100000.0, **_TIED),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _gated("llama", 49152, 30, 9, 3, 576, 1536, rope_theta=100000.0, **_TIED),
    "HuggingFaceTB/SmolLM2-1.7B": _gated("llama", 49152, 24, 32, 32, 2048, 8192, rope_theta=130000.0, **_TIED),
    "google/gemma-3-270m": _gated(
        "gemma3_text", 262144, 18, 4, 1, 640, 2048, head_dim=256, query_pre_attn_scalar=256, sliding_window=512
    ),
    "google/gemma-3-4b-pt": {  # missing fields have transformers' defaults
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": _PICTURES,
    },
}  # fmt: skip
"""The configs by hub id."""

SMALL = {
    "gpt2": {"n_head": 2, "n_embd": 32, "n_positions": 512, "initializer_range": 0.3},
    "opt": {
        "num_attention_heads": 2, "hidden_size": 32, "ffn_dim": 48, "max_position_embeddings": 512, "init_std": 0.3,
    },
    "gated": {
        "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 512,
        "initializer_range": 0.3,
    },
}  # fmt: skip


def _tiny(real: Config, rows: int, layers: int, ends: Mapping[str, int | None]) -> Config:
    """The real config, but with small sizes and `rows` rows in the embedding."""
    kind = real["model_type"]
    config = {**real, **SMALL.get(kind, SMALL["gated"]), **ends, "vocab_size": rows}
    config["n_layer" if kind == "gpt2" else "num_hidden_layers"] = layers
    if kind == "opt":
        config["word_embed_proj_dim"] = 16 if real["word_embed_proj_dim"] < real["hidden_size"] else 32
    if "num_key_value_heads" in real:
        config["num_key_value_heads"] = {real["num_attention_heads"]: 4, 1: 1}.get(real["num_key_value_heads"], 2)
    if "head_dim" in real:
        config["head_dim"] = 8
    if real.get("sliding_window"):
        config["sliding_window"] = 12  # texts are longer
    if kind == "gemma3_text":
        config |= {"num_hidden_layers": 4 + layers, "query_pre_attn_scalar": 8, "num_key_value_heads": 1, "head_dim": 8}
    if "rope_type" in real.get("rope_scaling", {}) and "original_max_position_embeddings" in real["rope_scaling"]:
        config["rope_scaling"] = {**real["rope_scaling"], "original_max_position_embeddings": 16}
    return config


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer.

    tokens: by their ids. special: the tokens that no text is encoded to. named: the ids of the begin and end tokens, by
    config.json's names. lay: writes the tokenizer's files into a folder. keys: the keys of a GGUF file, except tokens
    and their types."""

    tokens: tuple[str, ...]
    special: frozenset[str]
    named: Mapping[str, int | None]
    lay: Callable[[Path], None]
    keys: Mapping[str, Any]

    def gguf(self, rows: int) -> dict[str, Any]:
        """The keys tokenizer.ggml.*, with a token for each row of the embedding, as the converter writes them."""
        padding = [f"[PAD{token}]" for token in range(len(self.tokens), rows)]
        types = [self._type(token) for token in self.tokens[:rows]] + [5] * len(padding)
        tokens = [*self.tokens[:rows], *padding]
        keys = {**self.keys, "tokens": tokens, "token_type": types}
        if keys["model"] == "llama":
            keys |= {"scores": [-float(token) for token in range(rows)], "merges": None, "pre": None}
        ids = {f"{name}_token_id": self.named.get(f"{name}_token_id") for name in ("bos", "eos")}
        return {f"tokenizer.ggml.{name}": value for name, value in {**keys, **ids}.items()}

    def _type(self, token: str) -> int:
        """GGUF's type of a token: unknown, control, byte or normal."""
        if token in self.special:
            return 2 if token == "<unk>" else 3
        return 6 if self.keys["model"] == "llama" and token.startswith("<0x") else 1


@cache
def _bytes() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """A byte-level vocabulary that is trained on the corpus: its tokens by their ids, and its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)  # type: ignore[call-arg]
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return tuple(sorted(state["vocab"], key=state["vocab"].get)), tuple((one, two) for one, two in state["merges"])


@cache
def _pieces() -> tuple[str, ...]:
    """A vocabulary of SentencePiece's kind that is trained on the corpus: bytes, letters, and merged pieces."""
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=220, show_progress=False, max_token_length=16)  # type: ignore[call-arg]
    learned.train_from_iterator(CORPUS, trainer)
    vocab = learned.get_vocab()
    return (*(f"<0x{byte:02X}>" for byte in range(256)), *sorted(vocab, key=lambda piece: vocab[piece]))


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


_NUMBERED = r"\p{N}{1,3}"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3, QWEN = _WORDS.replace("DIGITS", _NUMBERED), _WORDS.replace("DIGITS", r"\p{N}")


def _byte_level(
    pre: str,
    settings: Mapping[str, Any],
    special: tuple[str, ...],
    named: Mapping[str, str | None],
    *steps: pre_tokenizers.PreTokenizer,
    first: bool = False,
    begins: str = "",
    composes: bool = False,
    whole: bool = False,
) -> Kind:
    """GPT-2's kind. first: the special tokens have the first ids. begins: the token before a text. whole: see
    Split.whole."""
    words, merges = _bytes()
    tokens = (*special, *words) if first else (*words, *special)
    ids = {token: index for index, token in enumerate(tokens)}

    def lay(folder: Path) -> None:
        inside = ids if first else {word: ids[word] for word in words}
        tokenizer = Tokenizer(models.BPE(inside, [*merges], ignore_merges=whole))
        if composes:
            tokenizer.normalizer = normalizers.NFC()
        pattern = not any(isinstance(step, pre_tokenizers.Split) for step in steps)
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, level]) if steps else level
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([*special])
        if begins:
            tokenizer.post_processor = processors.TemplateProcessing(
                f"{begins} $A", special_tokens=[(begins, ids[begins])]
            )
        tokenizer.save(str(folder / "tokenizer.json"))
        _write(folder / "tokenizer_config.json", {**settings, **named})

    numbers = {f"{name}_id": None if token is None else ids[token] for name, token in named.items()}
    keys = {"model": "gpt2", "pre": pre, "merges": [" ".join(pair) for pair in merges]}
    return Kind(tokens, frozenset(special), numbers, lay, keys)


def _opt_words() -> Kind:
    """OPT's kind: GPT-2's in vocab.json and merges.txt. The special tokens come first, and one of them precedes a
    text."""
    special = ("<s>", "<pad>", "</s>", "<unk>")
    words, merges = _bytes()
    tokens = (*special, *words)
    added = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "__type": "AddedToken"}
    ends = {f"{name}_token": {"content": "</s>", **added} for name in ("bos", "eos", "unk")}

    def lay(folder: Path) -> None:
        _write(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
        settings = {"errors": "replace", "add_prefix_space": False, "add_bos_token": True, "pad_token": "<pad>"}
        _write(folder / "tokenizer_config.json", {**settings, **ends, "tokenizer_class": "GPT2Tokenizer"})

    named = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    return Kind(tokens, frozenset(special), named, lay, {"model": "gpt2"})


def _llama2_words(more: tuple[str, ...], settings: Mapping[str, Any]) -> Kind:
    """Llama 2's kind: SentencePiece's, with a space before a text, and byte tokens for what no piece covers."""
    first = ("<unk>", "<s>", "</s>")
    tokens = (*first, *_pieces(), *more)
    inside = {token: index for index, token in enumerate(tokens[: len(tokens) - len(more)])}

    def lay(folder: Path) -> None:
        merges = generate_merges(inside, skip_tokens=[*first, *tokens[3:259]])
        tokenizer = Tokenizer(models.BPE(inside, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
        tokenizer.add_special_tokens([*first, *more])
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
        tokenizer.save(str(folder / "tokenizer.json"))
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        _write(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", **named, **settings})

    keys = {"model": "llama", "unknown_token_id": 0}
    named = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return Kind(tokens, frozenset((*first, *more)), named, lay, keys)


def _gemma_words() -> Kind:
    """Gemma's kind: SentencePiece's, with a token but no space before a text. A token for pictures follows all
    others."""
    first, pictures = ("<pad>", "<eos>", "<bos>", "<unk>"), "<image_soft_token>"
    inside = {token: index for index, token in enumerate((*first, *_pieces()))}

    def lay(folder: Path) -> None:
        tokenizer = GemmaTokenizer(inside, generate_merges(inside, skip_tokens=[*first, *[*inside][4:260]]))
        tokenizer.add_special_tokens({"additional_special_tokens": [pictures]})
        tokenizer.save_pretrained(folder)

    named = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    keys = {"model": "llama", "unknown_token_id": 3, "add_space_prefix": False}
    return Kind((*inside, pictures), frozenset((*first, pictures)), named, lay, keys)


_END = "<|endoftext|>"
_ENDS = dict.fromkeys(("bos_token", "eos_token"), _END)
KINDS: Mapping[str, Callable[[], Kind]] = {
    "gpt2": cache(lambda: _byte_level("gpt-2", {"model_max_length": 1024}, (_END,), _ENDS)),
    "opt": cache(_opt_words),
    "llama2": cache(lambda: _llama2_words((), {"legacy": False, "model_max_length": 2048})),
    "phi3": cache(lambda: _llama2_words((_END, "<|assistant|>", "<|user|>", "<|end|>"), {"add_bos_token": False})),
    "llama3": cache(
        lambda: _byte_level(
            "llama-bpe",
            {"tokenizer_class": "PreTrainedTokenizerFast"},
            ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            begins="<|begin_of_text|>",
            whole=True,
        )
    ),
    "qwen": cache(
        lambda: _byte_level(
            "qwen2",
            {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "pad_token": _END, "unk_token": None},
            (_END, "<|im_start|>", "<|im_end|>"),
            {"bos_token": None, "eos_token": _END},
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            composes=True,
        )
    ),
    "smollm": cache(
        lambda: _byte_level(
            "smollm",
            {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "unk_token": _END},
            (_END, "<|im_start|>", "<|im_end|>"),
            _ENDS,
            pre_tokenizers.Digits(individual_digits=True),
            first=True,
        )
    ),
    "gemma": cache(_gemma_words),
}
OWNERS = {
    "openai-community": "gpt2", "distilbert": "gpt2", "facebook": "opt", "TinyLlama": "llama2", "microsoft": "phi3",
    "meta-llama": "llama3", "Qwen": "qwen", "HuggingFaceTB": "smollm", "google": "gemma",
}  # fmt: skip
"""The kind of tokenizer, by a hub id's owner."""
PADDED = {
    "facebook": 7, "microsoft": 5, "Qwen/Qwen2.5-7B": 71, "Qwen": 7, "google/gemma-3-270m": -1, "google": 63,
    "meta-llama": 3,
}  # fmt: skip
"""How many rows the embedding has beyond the tokens, by hub id or owner. -1: the last token has no row."""
DRAFTS = (
    "gpt2", "distilgpt2", "125m", "350m", "TinyLlama", "Phi-3", "3.2-1B", "0.5B", "0.6B", "135M", "270m",
)  # fmt: skip
GGUF = ("TinyLlama", "microsoft", "meta-llama", "Qwen", "HuggingFaceTB", "google")
"""The owners of models that are widely used as GGUF files."""


def kind_of(name: str) -> Kind:
    return KINDS[OWNERS[name.split("/")[0]]]()


@cache
def model_of(name: str) -> PreTrainedModel:
    """The tiny model of a hub id. Ids whose tiny models are alike share one."""
    owner, _, own = name.partition("/")
    kind = kind_of(name)
    rows = len(kind.tokens) + PADDED.get(name, PADDED.get(owner, 0))
    layers = 2 if any(own == each or (each != "gpt2" and each in own) for each in DRAFTS) else 3
    real = REAL[name]
    if "text_config" not in real:
        return _random(json.dumps(_tiny(real, rows, layers, kind.named)))
    config = {
        **real,
        **kind.named,
        "text_config": _tiny(real["text_config"], rows, layers, kind.named),
        "vision_config": {**_PICTURES, "hidden_size": 16, "num_hidden_layers": 1, "image_size": 28}
        | {"patch_size": 14, "num_attention_heads": 2, "intermediate_size": 16},
        "mm_tokens_per_image": 4,
        "image_token_index": kind.tokens.index("<image_soft_token>"),
    }
    return _random(json.dumps(config))


@cache
def _random(config: str) -> PreTrainedModel:
    """A model of random matrices. A matrix depends only on its name and its width, so a draft has the first layers of
    its target if they are as wide. The target's last layers change less, so the two agree now and then."""
    fields = json.loads(config)
    model = random_model(AutoConfig.for_model(fields.pop("model_type"), **fields), torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            last = any(f".{layer}." in name for layer in range(2, 10))
            drawn = (0.15 if last else 0.3) * _drawn(name, parameter)
            if "embed_tokens" in name and model.config.model_type.startswith("gemma"):
                drawn = drawn * parameter.shape[1] ** -0.5  # Gemma multiplies embeddings by the inverse
            if name == "lm_head.weight":  # near the embedding, which is the draft's head
                drawn = 0.3 * _drawn("model.embed_tokens.weight", parameter) + 0.1 * drawn
            parameter.data = drawn
    return model


def _drawn(name: str, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(crc32(name.replace("language_model.", "").encode()))
    return torch.randn(1024, like.shape[1], generator=generator)[: len(like)]


def folder(name: str, root: Path) -> Path:
    """The tiny model of a hub id as a folder under root, made once."""
    model, path = model_of(name), root / str(id(model_of(name)))
    if not path.exists():
        model.save_pretrained(path)
        kind_of(name).lay(path)
    return path


def cached(name: str, root: Path) -> Path:
    """Lay the tiny model of a hub id into the hub's cache under root; returns the folder of the snapshot."""
    repository = root / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    if not snapshot.exists():
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        snapshot.mkdir(parents=True)
        for file in folder(name, root / "models").iterdir():
            (snapshot / file.name).symlink_to(file)
    return snapshot


def file(name: str, root: Path) -> Path:
    """The tiny model of a hub id as a GGUF file under root, made once."""
    model, path = text_model(name), root / f"{id(model_of(name))}.gguf"
    if path.exists():
        return path
    root.mkdir(exist_ok=True)
    changes = kind_of(name).gguf(model.config.vocab_size)
    rope = REAL[name].get("text_config", REAL[name]).get("rope_scaling", {})
    if rope.get("rope_type") == "linear":
        changes |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": rope["factor"]}
    factors = _factors(model) if rope.get("rope_type") == "llama3" else None
    return ggufs.write(model, path, changes, None if factors is None else {"rope_freqs.weight": factors})


def text_model(name: str) -> PreTrainedModel:
    """The tiny model, without its vision part if it has one."""
    model = model_of(name)
    if model.config.model_type != "gemma3":
        return model
    text = Gemma3ForCausalLM(model.config.text_config)
    prefix = "model.language_model."
    state = {f"model.{key.removeprefix(prefix)}": each for key, each in model.state_dict().items() if prefix in key}
    text.load_state_dict(state | {"lm_head.weight": model.lm_head.weight})
    return text.eval()


def _factors(model: PreTrainedModel) -> Any:
    """The number that each frequency is divided by, as a Llama 3.1 file holds it."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2) / size)
    return (plain / model.model.rotary_emb.inv_freq.float()).float().numpy()
