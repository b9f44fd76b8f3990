"""Make the embedded pair from scratch: corpus, tokenizer, target, draft, evaluation, export.

    python tools/train_pair.py --target-minutes 68 --draft-minutes 22

Each stage leaves its result in the work folder and is skipped when that is there; a stage that is
cut off goes on from its last checkpoint. Everything is seeded; with a time budget the number of
steps still depends on the machine, and the model card says how many there were.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import corpus as corpora
import export_pair
from sybil.distilling.optimizer import MuonWithAdam

CONTEXT = 512
VOCABULARY = 4096
TARGET_SHAPE = dict(n_layer=8, n_embd=320, n_head=5)
DRAFT_SHAPE = dict(n_layer=1, n_embd=256, n_head=4)
TARGET_STEP, DRAFT_STEP = 24 * 256, 8 * 256  # tokens that a step of the optimiser trains on
TOKENS_A_MICROBATCH = 4 * 256  # their activations fit the caches of two cores
SHORT, LONG = 256, CONTEXT
LONG_FROM = 0.85  # windows are as long as the context after this share of a schedule
GROW_AT = 0.6  # the target trains at half its depth for this share of its schedule
CHECKPOINT_SECONDS = 120
EXPORT = Path(__file__).resolve().parents[1] / "sybil" / "embedded" / "stdlib"


@dataclass(frozen=True)
class TrainingRun:
    """The settings and data that every stage needs."""

    work: Path
    seed: int
    device: torch.device

    def path(self, name: str) -> Path:
        return self.work / name


def build(shape: dict[str, int], seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **shape,
        )
    )


def grow(shallow: GPT2LMHeadModel, seed: int) -> GPT2LMHeadModel:
    """A model of twice the depth that computes the same function: each block is followed by a copy whose outputs start
    at zero.

    On a small budget a shallow model learns faster a second, and hands what it learned to the deep one (stacking, Gong
    et al. 2019)."""
    deep = build(TARGET_SHAPE, seed)
    state = {name: tensor for name, tensor in shallow.state_dict().items() if ".h." not in name}
    for name, tensor in shallow.state_dict().items():
        if ".h." in name:
            head, layer, rest = re.match(r"(.*\.h\.)(\d+)(\..*)", name).groups()  # type: ignore[union-attr]
            state[f"{head}{2 * int(layer)}{rest}"] = tensor
            state[f"{head}{2 * int(layer) + 1}{rest}"] = torch.zeros_like(tensor) if "c_proj" in rest else tensor
    deep.load_state_dict(state)
    return deep


def encode(tokenizer: Tokenizer, texts: tuple[tuple[str, str], ...]) -> np.ndarray:
    """All texts as one row of token ids, with an end-of-text token before each."""
    end = tokenizer.token_to_id(corpora.END_OF_TEXT)
    parts = [[end, *encoding.ids] for encoding in tokenizer.encode_batch([text for _, text in texts])]
    return np.concatenate([np.array(part, dtype=np.int64) for part in parts])


def window(tokens: np.ndarray, index: int, length: int, seed: int) -> np.ndarray:
    """The index-th training window. Starts follow a golden-ratio sequence, which covers the text
    evenly without bookkeeping: the index alone is the state to resume from."""
    places = len(tokens) - length - 1
    start = int(((index + seed) * 0.6180339887498949) % 1.0 * places)
    return tokens[start : start + length + 1]


def batches(tokens: np.ndarray, first: int, length: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The micro-batches of one step of size tokens: (tokens (rows, length + 1), positions (rows, length)).

    Short windows stand at place 0 half the time and anywhere in the context otherwise, so that
    every position embedding is trained from the first step."""
    rows = TOKENS_A_MICROBATCH // length
    places = np.random.default_rng((seed, first))
    for start in range(first, first + size // length, rows):
        text = np.stack([window(tokens, start + row, length, seed) for row in range(rows)])
        offsets = places.integers(0, CONTEXT - length + 1, rows) * places.integers(0, 2, rows)
        yield torch.from_numpy(text), torch.from_numpy(offsets[:, None] + np.arange(length))


def train(
    run: TrainingRun,
    name: str,
    model: GPT2LMHeadModel,
    minutes: float,
    text: Callable[[int], np.ndarray],
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    evaluate: Callable[[], float],
    size: int,
    schedule: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Train until the budget is spent, from the last checkpoint where there is one.

    text(step) gives the row of tokens that this step's windows are cut from;
    loss_of(logits, tokens, positions) is a mean over the tokens of a micro-batch; size is the tokens of a step;
    schedule is the part of the learning rate's course that this budget covers."""
    done, checkpoint = run.path(f"{name}.pt"), run.path(f"{name}.checkpoint.pt")
    if done.exists():
        model.load_state_dict(torch.load(done, map_location=run.device)["model"])
        return
    optimizer = MuonWithAdam(model)
    step = seen = windows = 0
    spent, history = 0.0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=run.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seen, windows, spent, history = (state[k] for k in ("step", "seen", "windows", "spent", "history"))

    def save(path: Path) -> None:
        state = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), step=step, seen=seen)
        temporary = path.with_suffix(".tmp")
        torch.save(state | dict(windows=windows, spent=spent, history=history), temporary)
        temporary.replace(path)

    budget, saved = minutes * 60, time.monotonic()
    columns = (*Progress.get_default_columns()[:2], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}")) as progress:
        bar = progress.add_task(name, total=budget, completed=spent, loss="")
        while spent < budget:
            began = time.monotonic()
            share = schedule[0] + (schedule[1] - schedule[0]) * spent / budget
            length = LONG if share >= LONG_FROM else SHORT
            total = 0.0
            for tokens, positions in batches(text(step), windows, length, size, run.seed):
                tokens, positions = tokens.to(run.device), positions.to(run.device)
                logits = model(input_ids=tokens[:, :-1], position_ids=positions, use_cache=False).logits
                loss = loss_of(logits, tokens, positions) * TOKENS_A_MICROBATCH / size
                loss.backward()
                total += loss.item()
            optimizer.step(rate=min(1.0, (share + 1e-3) / 0.02) * min(1.0, (1.0 - share) / 0.7))
            step, seen, windows = step + 1, seen + size, windows + size // length
            spent += time.monotonic() - began
            history.append((seen, round(total, 4)))
            progress.update(bar, completed=spent, loss=f"step {step}  {seen / 1e6:.2f}M tokens  loss {total:.3f}")
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save(checkpoint)
                saved = time.monotonic()
                with run.path(f"{name}.log").open("a") as log:
                    row = dict(step=step, tokens=seen, seconds=round(spent), loss=total, held_out=evaluate())
                    log.write(json.dumps(row) + "\n")
    save(done)
    checkpoint.unlink(missing_ok=True)


def cross_entropy(logits: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def make_tokenizer(run: TrainingRun, corpus: corpora.Corpus) -> Tokenizer:
    path = run.path("tokenizer.json")
    if not path.exists():
        corpora.train_tokenizer(corpus, VOCABULARY).save(str(path))
    return Tokenizer.from_file(str(path))


@torch.no_grad()
def write_target_text(run: TrainingRun, target: GPT2LMHeadModel, tokens: np.ndarray, rows: int) -> np.ndarray:
    """Text that the target writes itself, half of it greedily and half sampled, after prompts from the corpus.

    A draft has to predict what the target writes, and not what people wrote, so it is distilled on both."""
    path = run.path("target_text.npy")
    if not path.exists():
        torch.manual_seed(run.seed)
        pieces: list[np.ndarray] = []
        for batch in range(0, rows, 64):
            starts = [window(tokens, batch + row, 48, run.seed + 7) for row in range(64)]
            prompts = torch.from_numpy(np.stack(starts)).to(run.device)
            sampled = bool((batch // 64) % 2)
            written = target.generate(
                input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=208,
                do_sample=sampled, top_k=0, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            pieces.append(written.cpu().numpy().astype(np.int64).ravel())
        np.save(path, np.concatenate(pieces))
    return np.load(path)


def main(
    target_minutes: Annotated[float, typer.Option(help="Time budget for training the target.")] = 68,
    draft_minutes: Annotated[float, typer.Option(help="Time budget for distilling the draft.")] = 22,
    work: Annotated[Path, typer.Option(help="Checkpoints and intermediate results.")] = Path("build/pair"),
    seed: int = 0,
    with_tests: Annotated[bool, typer.Option(help="Train on the library's tests too.")] = False,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(work, seed, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    corpus = corpora.read(with_tests=with_tests)
    tokenizer = make_tokenizer(run, corpus)
    training, held_out = encode(tokenizer, corpus.training), encode(tokenizer, corpus.held_out)

    shallow = build(TARGET_SHAPE | dict(n_layer=TARGET_SHAPE["n_layer"] // 2), seed).to(run.device)
    train(
        run, "shallow", shallow, target_minutes * GROW_AT, lambda step: training, cross_entropy,
        lambda: export_pair.held_out_loss(shallow, held_out, windows=32), TARGET_STEP, schedule=(0.0, GROW_AT),
    )  # fmt: skip
    target = grow(shallow, seed).to(run.device)
    train(
        replace(run, seed=seed + 1_000_003), "target", target, target_minutes * (1 - GROW_AT), lambda step: training,
        cross_entropy, lambda: export_pair.held_out_loss(target, held_out, windows=32), TARGET_STEP,
        schedule=(GROW_AT, 1.0),
    )  # fmt: skip
    target.eval().requires_grad_(False)

    own = write_target_text(run, target, training, rows=2048)
    draft = build(DRAFT_SHAPE, seed).to(run.device)

    def distillation(logits: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(target(input_ids=tokens[:, :-1], position_ids=positions, use_cache=False).logits, -1)
        return F.kl_div(F.log_softmax(logits, -1), wanted, log_target=True, reduction="sum") / wanted[..., 0].numel()

    train(
        run, "draft", draft, draft_minutes, lambda step: own if step % 2 else training, distillation,
        lambda: export_pair.held_out_loss(draft, held_out, windows=32), DRAFT_STEP,
    )  # fmt: skip
    draft.eval()

    export_pair.clear(EXPORT)
    for name, model in (("target", target), ("draft", draft)):
        export_pair.export(model, tokenizer, EXPORT / name)
    histories = {"target": summed(run, "shallow", "target"), "draft": summed(run, "draft")}
    budgets = f"--target-minutes {target_minutes:g} --draft-minutes {draft_minutes:g}"
    command = f"python tools/train_pair.py {budgets} --seed {seed}" + " --with-tests" * with_tests
    export_pair.write_card(EXPORT, corpus, training, held_out, histories, command)


def summed(run: TrainingRun, *names: str) -> dict[str, float]:
    """The tokens, steps and minutes of one model's stages, summed."""
    states = [torch.load(run.path(f"{name}.pt"), map_location="cpu") for name in names]
    keys = (("tokens", "seen", 1), ("steps", "step", 1), ("minutes", "spent", 60))
    return {ours: sum(state[theirs] for state in states) / unit for ours, theirs, unit in keys}


if __name__ == "__main__":
    typer.run(main)
