"""Export of the trained pair as the package ships it: two Hugging Face folders in float16, and a card with their
quality."""

from __future__ import annotations

import math
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedTokenizerFast

import corpus as corpora
import sybil
from sybil.measuring import prompts

GAMMA, NEW_TOKENS = 4, 64


@dataclass(frozen=True)
class Loss:
    """The loss of one model on the held-out text."""

    nats_per_token: float
    bits_per_byte: float


def export(model: GPT2LMHeadModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, model.safetensors (float16), tokenizer.json, and the other files that transformers needs."""
    folder.mkdir(parents=True, exist_ok=True)
    end = corpora.END_OF_TEXT
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        model_max_length=model.config.n_positions,
    )
    fast.save_pretrained(folder)
    model.to("cpu", torch.float16).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, tokens: np.ndarray, windows: int | None = None) -> float:
    """The mean loss in nats a token on the held-out text, cut into whole contexts. windows: use only so many of them,
    spread evenly."""
    context = model.config.n_positions
    count = (len(tokens) - 1) // context
    chosen = range(count) if windows is None else range(0, count, max(1, count // windows))
    total = 0.0
    for index in chosen:
        text = torch.from_numpy(tokens[index * context : (index + 1) * context + 1]).to(model.device)
        total += F.cross_entropy(model(input_ids=text[None, :-1]).logits[0].float(), text[1:]).item()
    return total / len(chosen)


def loss(folder: Path, tokens: np.ndarray, size: int) -> Loss:
    """The loss of the exported model in float32 on the held-out tokens. size: the bytes of the text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    nats = held_out_loss(model, tokens)
    return Loss(nats, nats / math.log(2) * len(tokens) / size)


def acceptance(decoder: sybil.Decoder, texts: list[prompts.Prompt], temperature: float) -> sybil.Stats:
    """The counters of decoding the given prompts, greedily if the temperature is 0."""
    steps = []
    for seed, prompt in enumerate(texts):
        steps += decoder.stream(
            prompt.text,
            gamma=GAMMA,
            max_new_tokens=NEW_TOKENS,
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            top_k=0,
            seed=seed,
        )
    return sybil.Stats.of(steps)


def write_card(
    path: Path,
    corpus: corpora.Corpus,
    training: np.ndarray,
    held_out: np.ndarray,
    histories: dict[str, dict[str, float]],
    command: str,
) -> None:
    """Evaluate the pair in the folder, and write the results into a model card."""
    folders = {name: path / name for name in ("target", "draft")}
    size = sum(len(text.encode()) for _, text in corpus.held_out)
    losses = {name: loss(folder, held_out, size) for name, folder in folders.items()}
    decoder = sybil.load(folders["target"], draft=folders["draft"], dtype=torch.float32, device="cpu")
    shipped = prompts.load(path / "prompts.jsonl")
    rows = []
    for domain in ("code", "prose", "structured", None):
        chosen = [prompt for prompt in shipped if domain in (prompt.domain, None)]
        greedy, sampled = (acceptance(decoder, chosen, t) for t in (0.0, 1.0))
        rows.append(
            f"| {domain or 'all'} | {len(chosen)} | {greedy.acceptance_rate:.3f} | {greedy.tokens_per_round:.2f} "
            f"| {sampled.acceptance_rate:.3f} | {sampled.tokens_per_round:.2f} |"
        )
    models = []
    for name, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder)
        config, history = model.config, histories[name]
        models.append(
            f"| {name} | {config.n_layer} x {config.n_embd}, {config.n_head} heads | {model.num_parameters() / 1e6:.2f} M "
            f"| {(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB | {history['tokens'] / 1e6:.2f} M "
            f"| {history['steps']:.0f} | {history['minutes']:.0f} "
            f"| {losses[name].nats_per_token:.3f} | {losses[name].bits_per_byte:.3f} |"
        )
    bytes_read = sum(len(text.encode()) for _, text in corpus.training)
    path.joinpath("README.md").write_text(
        f"""# The embedded pair `stdlib`

A small target and a draft distilled from it, for trying Sybil, testing it and measuring it without a download.
They continue Python source and its documentation; they know nothing else, and what they write is not to be relied on.

| model | layers x width | parameters | weights (float16) | tokens seen | steps | minutes | held-out nats a token | bits a byte |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(models)}

GPT-2 architecture, context {decoder.target.context}, byte-level BPE of 4096 tokens
({bytes_read / len(training):.2f} bytes a token on the training text). The losses are of the exported weights in float32,
over the whole held-out text in contexts of 512 tokens that share nothing.

Acceptance over the shipped prompts (`prompts.jsonl`, cut from the held-out modules), gamma {GAMMA},
{NEW_TOKENS} new tokens, float32 on a CPU, top_k and top_p off:

| prompts | number | accepted, temperature 0 | tokens a round | accepted, temperature 1 | tokens a round |
|---|---|---|---|---|---|
{chr(10).join(rows)}

## Made from
The sources of CPython {platform.python_version()}'s standard library without its tests, encodings, idlelib, lib2to3 and
ensurepip: {len(corpus.training)} files, {bytes_read / 1e6:.1f} MB, {len(training) / 1e6:.2f} M tokens,
SHA-256 `{corpus.digest()}`. They are under the PSF licence
(https://docs.python.org/3/license.html), which allows derived works; the weights are given under the same terms.

Held out from the tokenizer and from all training, whole modules:
{", ".join(f"`{name}`" for name in corpora.HELD_OUT)}.
`html/entities.py` is in neither half: it is a table of characters.

## How
    {command}

The target begins half as deep and is grown (each block followed by a copy whose outputs start at zero); the draft learns
the target's distribution by the Kullback-Leibler divergence, half on the corpus and half on text that the target wrote.
Muon for the blocks' matrices, Adam for the rest; float32. Seeded; the steps that fit into the minutes depend on the machine.
""",
        encoding="utf-8",
    )


def clear(path: Path) -> None:
    """Remove an earlier export, but keep the prompts."""
    for name in ("target", "draft"):
        shutil.rmtree(path / name, ignore_errors=True)
