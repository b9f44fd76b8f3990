"""The main job: the same prompts through transformers and through Sybil, interleaved, in one process.

Every contender decodes greedily. A prompt goes through all of them before the next one's turn, in
alternating order, so that a machine that slows down or speeds up does so for all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sybil.errors import InvalidSetting, PromptTooLong, ResultsMismatch, VocabularyMismatch
from sybil.loading import load
from sybil.measuring.contenders import Contender, SybilContender, TransformersContender
from sybil.measuring.files import replace
from sybil.measuring.machine import describe
from sybil.measuring.memory import PeakMemory
from sybil.measuring.prompts import Prompt
from sybil.measuring.timing import Interval, speed_up
from sybil.models.folders import locate

TRANSFORMERS, ASSISTED = "transformers generate", "transformers assisted"
AUTOREGRESSIVE, SPECULATIVE = "sybil autoregressive", "sybil speculative"
CONTENDERS = (TRANSFORMERS, ASSISTED, AUTOREGRESSIVE, SPECULATIVE)


@dataclass(frozen=True, slots=True)
class Task:
    """What is compared: the settings that a row must share to be comparable with another."""

    target: str
    draft: str
    max_new_tokens: int
    gamma: int
    dtype: str
    device: str
    prompts: str  # their digest


def digest(prompts: list[Prompt]) -> str:
    """Of the prompts' ids and texts, so that rows of other prompts are known as such."""
    return hashlib.sha256(json.dumps([(prompt.id, prompt.text) for prompt in prompts]).encode()).hexdigest()[:16]


Row = dict[str, Any]


def ms_per_token(row: Row) -> float:
    """Milliseconds that a row's run took for each new token."""
    return 1e3 * float(row["seconds"]) / len(row["tokens"])


class Comparison:
    """The models of a task, loaded once each way, and the loop over prompts."""

    def __init__(self, task: Task) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()  # our own bar is the only one
        logging.disable_progress_bar()
        self.task = task
        dtype: torch.dtype = getattr(torch, task.dtype)
        decoder = load(task.target, draft=task.draft, dtype=dtype, device=task.device)
        if decoder.tokenizer is None:
            raise InvalidSetting(f"{task.target} has no tokenizer: choose a model that does")
        self.tokenizer, self.device, self.context = decoder.tokenizer, decoder.target.device, decoder.target.context
        self.machine = describe(self.device)
        target, draft = (
            AutoModelForCausalLM.from_pretrained(locate(name), dtype=dtype).to(self.device).eval()
            for name in (task.target, task.draft)
        )
        sizes = target.config.get_text_config().vocab_size, draft.config.get_text_config().vocab_size
        if sizes[0] != sizes[1]:  # the same tokens with other padding: Sybil takes it
            raise VocabularyMismatch(
                f"target {task.target} has logits for {sizes[0]} tokens and draft {task.draft} for {sizes[1]}, which "
                "transformers' assisted generation refuses: compare a pair of equal sizes"
            )
        ends = decoder.eos_token_ids  # config.json's where generation_config.json names none: for all the same
        plain, assisted = TransformersContender(target, None, ends), TransformersContender(target, draft, ends)
        self.reference = target
        self.contenders: dict[str, Contender] = {
            TRANSFORMERS: plain,
            ASSISTED: assisted,
            AUTOREGRESSIVE: SybilContender(decoder.without_draft(), task.gamma),
            SPECULATIVE: SybilContender(decoder, task.gamma),
        }

    def rows(self, prompts: list[Prompt], done: frozenset[tuple[str, str]] = frozenset()) -> Iterator[Row]:
        """Measure every prompt with every contender, but for the (prompt, contender) done already."""
        about: Row = {**self.machine, **asdict(self.task)}
        encoded = [torch.tensor(self.tokenizer.encode(prompt.text).ids) for prompt in prompts]
        self._check(prompts, encoded)
        for contender in self.contenders.values():
            contender.run(encoded[0], min(8, self.task.max_new_tokens))  # warm up
        for index, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
            order = list(self.contenders) if index % 2 == 0 else list(reversed(self.contenders))
            for name in order:
                if (prompt.id, name) in done:
                    continue
                contender = self.contenders[name]
                with PeakMemory(self.device) as peak:
                    measured = contender.run(ids, self.task.max_new_tokens)
                yield {
                    "contender": name,
                    "prompt": prompt.id,
                    "domain": prompt.domain,
                    "prompt_tokens": len(ids),
                    **asdict(measured),
                    "memory_growth": peak.growth,
                    "weight_bytes": contender.weight_bytes,
                    **about,
                }

    def _check(self, prompts: list[Prompt], encoded: list[Tensor]) -> None:
        """transformers would run past the context: refuse before anything is measured."""
        for prompt, ids in zip(prompts, encoded, strict=True):
            if len(ids) + self.task.max_new_tokens > self.context:
                raise PromptTooLong(
                    f"prompt {prompt.id} has {len(ids)} tokens and max_new_tokens is {self.task.max_new_tokens}, "
                    f"more together than the context of {self.context}: lower max_new_tokens or leave the prompt out"
                )

    @torch.inference_mode()
    def gap(self, prompt: Prompt, tokens: list[int]) -> float:
        """The target's top-2 logit gap after the prompt and tokens, by transformers' forward."""
        ids = torch.tensor([[*self.tokenizer.encode(prompt.text).ids, *tokens]], device=self.device)
        top = self.reference(input_ids=ids).logits[0, -1].float().topk(2).values
        return float(top[0] - top[1])


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a contender's tokens first leave transformers', and how near a tie the target was there."""

    prompt: str
    contender: str
    position: int
    gap: float


def differences(comparison: Comparison, rows: list[Row], prompts: list[Prompt]) -> list[Difference]:
    """Every prompt on which a contender's tokens aren't transformers' greedy tokens."""
    by_id = {prompt.id: prompt for prompt in prompts}
    reference = {row["prompt"]: row["tokens"] for row in rows if row["contender"] == TRANSFORMERS}
    found = []
    for row in rows:
        tokens, wanted = row["tokens"], reference.get(row["prompt"])
        if wanted is None or tokens == wanted:
            continue
        same = next(
            (i for i, (a, b) in enumerate(zip(tokens, wanted, strict=False)) if a != b), min(len(tokens), len(wanted))
        )
        gap = comparison.gap(by_id[row["prompt"]], wanted[:same])
        found.append(Difference(row["prompt"], row["contender"], same, gap))
    return found


@dataclass(frozen=True, slots=True)
class Summary:
    """One contender over all prompts. Times in ms; medians over prompts; None where it doesn't apply."""

    contender: str
    ms_per_token: float
    tokens_per_second: float
    over_transformers: Interval
    over_autoregressive: Interval
    acceptance_rate: float | None
    tokens_per_round: float
    ms_to_first_token: float
    peak_memory: int | None
    prompts: int


def summarise(rows: list[Row]) -> list[Summary]:
    """A Summary a contender, over the prompts that all of them have finished."""
    by_contender = {name: {row["prompt"]: row for row in rows if row["contender"] == name} for name in CONTENDERS}
    common = sorted(set.intersection(*(set(group) for group in by_contender.values())))
    if not common:
        return []
    ms = {name: [ms_per_token(group[prompt]) for prompt in common] for name, group in by_contender.items()}
    summaries = []
    for name, group in by_contender.items():
        chosen = [group[prompt] for prompt in common]
        emitted = sum(len(row["tokens"]) for row in chosen)
        proposed = sum(row["proposed"] or 0 for row in chosen)
        growth = [row["memory_growth"] for row in chosen if row["memory_growth"] is not None]
        summaries.append(
            Summary(
                contender=name,
                ms_per_token=median(ms[name]),
                tokens_per_second=emitted / sum(row["seconds"] for row in chosen),
                over_transformers=speed_up(ms[TRANSFORMERS], ms[name]),
                over_autoregressive=speed_up(ms[AUTOREGRESSIVE], ms[name]),
                acceptance_rate=sum(row["accepted"] or 0 for row in chosen) / proposed if proposed else None,
                tokens_per_round=emitted / sum(row["rounds"] for row in chosen),
                ms_to_first_token=1e3 * median([row["time_to_first_token"] for row in chosen]),
                peak_memory=chosen[0]["weight_bytes"] + max(growth) if growth else None,
                prompts=len(common),
            )
        )
    return summaries


def read(path: Path, task: Task) -> list[Row]:
    """The rows of a run to be resumed. A last line cut short is dropped, from the file too, once the rest has shown
    itself to be this task's; raises ResultsMismatch where it is another's or no such file, which is left alone."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror
        raise ResultsMismatch(f"{path} can't be resumed ({reason}): name the JSONL file of an earlier run") from None
    except UnicodeDecodeError:
        raise ResultsMismatch(f"{path} is no text file: name the JSONL file of an earlier run") from None
    *lines, rest = text.split("\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            theirs = Task(**{name: row[name] for name in Task.__dataclass_fields__})
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ResultsMismatch(f"{path}, line {number}, is no row of a comparison: name another file") from None
        if theirs != task:
            raise ResultsMismatch(f"{path} was measured with {theirs}, this run asks for {task}: use the same settings")
        rows.append(row)
    if not rows:
        raise ResultsMismatch(f"{path} holds no whole row of a comparison: name another file, or start anew")
    if rest:
        replace(path, text.removesuffix(rest).encode())
    return rows
