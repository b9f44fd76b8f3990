"""Published shapes with random weights, and a draft that replays the target's text: speed, and a small GPU's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

import torch

from benchmarks.gpu.models import dtype_of, pair_of
from benchmarks.gpu.rows import GpuPlan, GpuRow
from sybil.decoding import Decoder
from sybil.measuring.contenders import (
    AUTOREGRESSIVE,
    SPECULATIVE,
    TRANSFORMERS,
    Contender,
    PromptResult,
    SybilContender,
    TransformersContender,
)
from sybil.measuring.memory import PeakMemory, weight_bytes
from sybil.measuring.timing import unrecorded
from sybil.measuring.workload import Replay, SelfReplay, record
from sybil.models.operators.packaged import packaged
from sybil.models.operators.transformer import Transformer

GAMMA, ACCEPTANCE, PROMPT = 4, 0.75, 32
SMALL_GPU, CONTEXT = 4_000_000_000, 600_000_000
"""The memory in bytes of the smallest GPU that Sybil is meant for, and an estimate of what CUDA itself takes of it."""


def _measured(
    contenders: Mapping[str, Contender], prompt: torch.Tensor, plan: GpuPlan
) -> dict[str, list[PromptResult]]:
    """The runs of each contender, by turns, after one run that isn't counted."""
    for each in contenders.values():
        each.run(prompt, plan.replayed_tokens)
    runs: dict[str, list[PromptResult]] = {name: [] for name in contenders}
    for _ in range(plan.repetitions):
        for name, each in contenders.items():
            runs[name].append(unrecorded(lambda each=each: each.run(prompt, plan.replayed_tokens)))  # type: ignore[misc]
    return runs


def _rows(part: str, what: str, runs: Mapping[str, list[PromptResult]]) -> Iterator[GpuRow]:
    """One row for each contender: its speed, the ratio to plain decoding's, and whether its tokens are plain
    decoding's."""
    ms = {name: 1e3 * median(run.seconds / len(run.tokens) for run in group) for name, group in runs.items()}
    plain = runs[AUTOREGRESSIVE][0].tokens
    for name, group in runs.items():
        over, same = ms[AUTOREGRESSIVE] / ms[name], all(run.tokens == plain for run in group)
        found = f"{ms[name]:.3f} ms a token, {over:.2f} times plain"
        if group[0].proposed:
            found += (
                f"; accepted {sum(run.accepted or 0 for run in group) / sum(run.proposed or 0 for run in group):.0%}"
            )
        found += "" if same else "; not plain decoding's text"
        numbers = {"ms": ms[name], "over_plain": over, "same": same}
        yield GpuRow(part, f"{what}, {name}", found, numbers=numbers)  # no verdict: random models have many near-ties


def replay(plan: GpuPlan, device: torch.device) -> Iterator[GpuRow]:
    """Plain decoding, speculative decoding, and transformers' generate."""
    pair = pair_of(plan)
    for name in reversed(plan.dtypes):
        dtype = dtype_of(name)
        target, draft = pair.target.build(dtype, device), pair.draft.build(dtype, device)
        (prompt,) = pair.prompts(1, PROMPT)
        scripts = record(target, [prompt], plan.replayed_tokens, ACCEPTANCE, GAMMA)
        contenders: dict[str, Contender] = {
            AUTOREGRESSIVE: SybilContender(Decoder(target), gamma=GAMMA),
            SPECULATIVE: SybilContender(Decoder(target, Replay(draft, scripts)), gamma=GAMMA),
            TRANSFORMERS: TransformersContender(pair.target.twin(dtype, device), frozenset()),
        }
        yield from _rows("replay", f"{pair.target.name} {name}", _measured(contenders, prompt, plan))
        del contenders, target, draft


def self(plan: GpuPlan, device: torch.device) -> Iterator[GpuRow]:
    """The target with its own 8-bit copy as the draft, computed by whichever library does that here."""
    pair, dtype = pair_of(plan), dtype_of(plan.dtypes[-1])
    way = packaged(8, dtype, "self:8") if device.type == "cuda" else "int8"
    weights = dict(pair.target.weights(dtype, device))
    target, copy = Transformer(pair.target.shape, weights), Transformer(pair.target.shape, weights, way)
    (prompt,) = pair.prompts(1, PROMPT)
    scripts = record(target, [prompt], plan.replayed_tokens, ACCEPTANCE, GAMMA)
    contenders: dict[str, Contender] = {
        AUTOREGRESSIVE: SybilContender(Decoder(target), gamma=GAMMA),
        SPECULATIVE: SybilContender(Decoder(target, SelfReplay(copy, scripts)), gamma=GAMMA),
    }
    yield from _rows("self", f"{pair.target.name} {plan.dtypes[-1]} by its 8 bits", _measured(contenders, prompt, plan))


def memory(plan: GpuPlan, device: torch.device) -> Iterator[GpuRow]:
    """Decode a whole context within a small GPU's memory. On a larger GPU this process may use no more than that."""
    pair, dtype = pair_of(plan), dtype_of(plan.dtypes[-1])
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min((SMALL_GPU - CONTEXT) / total, 1.0), device)
    target, draft = pair.target.build(dtype, device), pair.draft.build(dtype, device)
    new = plan.tokens_in_memory // 5
    for count in plan.rows_in_memory:
        prompts = pair.prompts(count, plan.tokens_in_memory - new)
        decoder = Decoder(target, Replay(draft, ()))
        with PeakMemory(device, decoder.models) as peak:
            decoder.generate(prompts, max_new_tokens=new, gamma=GAMMA, eos_token_id=[])
        numbers = {"weights": weight_bytes(decoder), "growth": peak.growth}
        found = f"weights {weight_bytes(decoder) / 1e6:.0f} MB"
        found += "" if peak.growth is None else f", and {peak.growth / 1e6:.0f} MB more at most"
        if device.type == "cuda":
            numbers["reserved"] = torch.cuda.max_memory_reserved(device)
            found += f"; torch took {numbers['reserved'] / 1e6:.0f} MB"
        what = f"{pair.target.name} {plan.dtypes[-1]}, {count} rows of {plan.tokens_in_memory} tokens in 4 GB"
        yield GpuRow(
            "memory", what, found, device.type != "cuda" or numbers["reserved"] <= SMALL_GPU - CONTEXT, numbers
        )
