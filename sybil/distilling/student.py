"""The draft itself: the tokens that it knows, its weights before training, and the folder that it is saved to."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from sybil.distilling.recipe import Recipe
from sybil.fit import DRAFT_TOKENS
from sybil.models import Model
from sybil.models.checkpoints.weights import arrange
from sybil.models.folders import Checkpoint
from sybil.transfer import CPU, integers

if TYPE_CHECKING:
    from transformers import MistralForCausalLM

HEAD_SIZE = 64


def commonest(counts: np.ndarray, size: int, always: Collection[int]) -> np.ndarray | None:
    """The target's tokens that a draft with a vocabulary of `size` knows, ascending: those of `always`, and then the
    commonest. There are size - 1 of them, because one token of the draft's stands for all others. None where the draft
    may know all tokens. counts: (vocab,), how often each token occurs."""
    if size >= len(counts):
        return None
    weighed = counts.astype(np.int64)
    weighed[[token for token in always if 0 <= token < len(counts)]] = np.iinfo(np.int64).max
    order = np.argsort(-weighed, kind="stable")  # of equally common tokens, the one that the tokenizer learned first
    return np.sort(order[: size - 1])


def embedding_of(checkpoint: Checkpoint, model: Model, tokens: np.ndarray | None) -> Tensor:
    """The target's embedding of the tokens, or of all tokens for None: (tokens, width), float32, on the CPU."""
    if checkpoint.known and checkpoint.stored:
        arranged = arrange(checkpoint.name, checkpoint.config, checkpoint.known, checkpoint.stored, torch.float32, CPU)
        whole = arranged[1]["token_embedding"]
    else:
        theirs: Any = model
        whole = theirs.model.get_input_embeddings().weight.detach()
    return (whole if tokens is None else whole[integers(tokens.tolist())]).to(CPU, torch.float32)


def reduced(embedding: Tensor, width: int) -> Tensor:
    """An embedding (tokens, target's width) projected to the directions in which it varies most: (tokens, width).

    The mean row is subtracted first, and the result is scaled so that its rows have length 1 on average. No matrix of
    this rank is closer to the centred embedding (Eckart and Young 1936). A narrower embedding is padded with zeros."""
    centred = (embedding - embedding.mean(0)).double()
    _, directions = torch.linalg.eigh(centred.T @ centred)
    found: Tensor = centred @ directions.flip(1)[:, :width]
    found = torch.nn.functional.pad(found, (0, width - found.shape[1]))
    length: Tensor = found.norm(dim=1).mean().clamp(min=1e-12)
    return (found / length).float()


def heads(width: int) -> int:
    """The number of attention heads: at most width / HEAD_SIZE, so many that each has the same, even size."""
    return next(count for count in range(max(width // HEAD_SIZE, 1), 0, -1) if width % (2 * count) == 0)


def build(recipe: Recipe, embedding: Tensor, context: int, *, knows_all: bool) -> MistralForCausalLM:
    """The untrained draft: Llama's blocks with a sliding attention window of `window` tokens, and tied embeddings.

    The draft is trained on texts of `window` tokens. In a longer text it attends no further back, so it meets no
    distance between tokens that it hasn't learned."""
    from transformers import MistralConfig, MistralForCausalLM

    rows, width = len(embedding) + (not knows_all), recipe.width
    count = heads(width)
    config = MistralConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=-(-8 * width // 3 // 32) * 32,
        num_hidden_layers=recipe.layers,
        num_attention_heads=count,
        num_key_value_heads=count,
        head_dim=width // count,
        max_position_embeddings=context,
        sliding_window=recipe.window,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = MistralForCausalLM(config).float()
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight.zero_()  # the row that stands for all other tokens stays zero
        weight[: len(embedding)] = embedding
        for layer in model.model.layers:  # each block begins as the identity
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model.train()


def save(
    model: MistralForCausalLM,
    tokenizer: Tokenizer,
    tokens: np.ndarray | None,
    end_tokens: Collection[int],
    folder: Path,
) -> None:
    """Writes the draft in float16 to a folder in transformers' format, with the target's tokenizer. tokens: the
    target's tokens that the draft knows, None for all. Files of an earlier run are replaced whole, the weights last."""
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], torch.float16
    if tokens is None:
        config.eos_token_id = sorted(end_tokens) or None
    else:
        setattr(config, DRAFT_TOKENS, tokens.tolist())
    weights = {name: weight.detach().to(CPU, torch.float16) for name, weight in model.named_parameters()}
    made = folder / ".made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    config.save_pretrained(made)
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(made / "config.json", made / "model.safetensors")  # safetensors lets nobody but its owner read it
    tokenizer.save(str(made / "tokenizer.json"))
    (made / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    for file in sorted(made.iterdir(), key=lambda each: each.suffix == ".safetensors"):
        file.replace(folder / file.name)
    made.rmdir()
