"""The bars of drafting without a second model: how much faster drafters are, and what a copy of the target costs. See
bars.py."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.engine.bars import CPU, Bar, Result, Tick
from sybil.decoding import Decoder
from sybil.drafting.window import AUTO
from sybil.drafts import LOOKUP
from sybil.loading import load, read
from sybil.measuring import prompts as texts
from sybil.measuring.contenders import TRANSFORMERS, Contender, PromptResult, SybilContender, TransformersContender
from sybil.measuring.drafters import DRAFT, NONE, SELF, SHORT, Drafters
from sybil.measuring.memory import weight_bytes
from sybil.measuring.profile import DEPTH, bytes_read
from sybil.measuring.timing import STREAM, STREAM_BYTES, Interval, forward_case, interleave, stream_case
from sybil.measuring.workload import SelfReplay, record, workload
from sybil.models.storage import Bits, Rounding
from sybil.pairs import PAIRS, SMOLLM2, STDLIB
from sybil.transfer import integers

NEW_TOKENS = 64
EVERYWHERE = "every kind"
BITS: tuple[Bits, ...] = (4, 5, 6, 8)
STEP = 1.3
"""The bound of a copy's step: its time, divided by the time to read the copy's weights at the streaming rate."""
Rows = dict[str, list[PromptResult]]


@dataclass(frozen=True, slots=True)
class DrafterComparison:
    """Drafters of one target at gamma auto, beside plain decoding.

    asked: by drafter and kind of prompt, at least how many times as fast as plain decoding it must be.
    over_transformers: the same, compared with transformers' generate, which takes part only if this names something.
    best: what the quickest drafter must reach."""

    pair: str
    dtype: str
    drafters: tuple[str, ...]
    asked: Mapping[tuple[str, str], float] = field(default_factory=dict)
    over_transformers: Mapping[str, float] = field(default_factory=dict)
    best: float | None = None


MIXED = tuple(SHORT.values())
COMPARISONS: Mapping[str, DrafterComparison] = {
    SMOLLM2: DrafterComparison(
        SMOLLM2,
        "float32",
        (SELF, "self:4", "self:8", *MIXED),
        {(SELF, EVERYWHERE): 2.1},
        {SELF: 3.6},
        best=2.6,
    ),
    f"{SMOLLM2}-bfloat16": DrafterComparison(
        SMOLLM2, "bfloat16", (SELF, "self:4", "self:8", *MIXED), {(SELF, EVERYWHERE): 1.4}
    ),
    STDLIB: DrafterComparison(
        STDLIB,
        "float32",
        (DRAFT, SELF, "self:4", "self:8", *MIXED, f"hybrid:lookup,{PAIRS[STDLIB].draft}"),
        best=1.8,
    ),
    LOOKUP: DrafterComparison(
        SMOLLM2,
        "float32",
        (LOOKUP,),
        {
            (LOOKUP, "summarization"): 2.0,
            (LOOKUP, "editing"): 2.0,
            (LOOKUP, "code"): 0.97,
            (LOOKUP, "conversation"): 0.97,
        },
    ),
    f"{LOOKUP}-{STDLIB}": DrafterComparison(
        STDLIB, "float32", (LOOKUP,), {(LOOKUP, kind): 0.97 for kind in ("code", "prose", "structured")}
    ),
}


def compare(name: str, count: int, gamma: str | int, tick: Tick) -> Result:
    """Run one of COMPARISONS over `count` prompts of its pair. All decoders run a prompt before the next prompt
    begins."""
    asked = COMPARISONS[name]
    decoder, making = _loaded(asked.pair, asked.dtype)
    chosen = texts.spread(texts.load(shipped=PAIRS[asked.pair].prompts), count)
    encoded = [integers(texts.encode(prompt, decoder)) for prompt in chosen]
    contenders: dict[str, Contender] = {
        each: SybilContender(making.by(each), gamma=gamma, eos_token_id=[]) for each in (NONE, *asked.drafters)
    }
    if asked.over_transformers:
        contenders[TRANSFORMERS] = _transformers(asked)
    rows = interleaved(contenders, encoded, NEW_TOKENS, tick)
    seconds = {each: [row.seconds for row in group] for each, group in rows.items()}
    result = Result(samples={each: [row.seconds for row in group] for each, group in rows.items()})
    result.samples.update({"kinds": [prompt.domain for prompt in chosen], "prompts": [prompt.id for prompt in chosen]})
    kinds = {EVERYWHERE: range(count)} | {
        kind: [place for place, prompt in enumerate(chosen) if prompt.domain == kind]
        for kind in dict.fromkeys(prompt.domain for prompt in chosen)
    }
    best = Interval(0.0, 0.0, 0.0)
    for drafter, (kind, places) in itertools.product(asked.drafters, kinds.items()):
        plain, drafted = ([seconds[each][place] for place in places] for each in (NONE, drafter))
        found = quartiles(plain, drafted)
        what = f"{name}, {drafter}, {kind}: over none ({_rate(plain):.0f} tokens/s), {_rate(drafted):.0f} tokens/s"
        result.bars.append(Bar(what, found, at_least=asked.asked.get((drafter, kind))))
        if kind == EVERYWHERE:
            best = max(best, found, key=lambda each: each.value)
            result.bars.extend(_counted(f"{name}, {drafter}", rows[drafter], rows[NONE]))
            if asked.over_transformers:
                bound = asked.over_transformers.get(drafter)
                what = f"{name}, {drafter}: over transformers ({_rate(seconds[TRANSFORMERS]):.0f} tokens/s)"
                result.bars.append(Bar(what, quartiles(seconds[TRANSFORMERS], drafted), at_least=bound))
    if asked.best is not None:
        result.bars.append(Bar(f"{name}: the best of them over none", best, at_least=asked.best))
    return result


def interleaved(contenders: Mapping[str, Contender], prompts: Sequence[Tensor], count: int, tick: Tick) -> Rows:
    """The rows of each contender. Every contender runs a prompt before the next prompt begins, and their order
    alternates."""
    for contender in contenders.values():
        contender.run(prompts[0], 16)  # warm up
    rows: Rows = {name: [] for name in contenders}
    for place, prompt in enumerate(prompts):
        for name in list(contenders)[:: 1 if place % 2 == 0 else -1]:
            rows[name].append(contenders[name].run(prompt, count))
            tick(name)
    return rows


def quartiles(baseline: Sequence[float], other: Sequence[float]) -> Interval:
    """The median of baseline / other, sample by sample, and the quartiles of these ratios."""
    ratios = np.asarray(baseline, dtype=float) / np.asarray(other, dtype=float)
    low, value, high = np.percentile(ratios, (25, 50, 75))
    return Interval(float(value), float(low), float(high))


def copies(pair: str, count: int, passes: int, tick: Tick) -> Result:
    """Copies of a pair's float32 target, by their bits: the time of a step compared with reading the copy's bytes at
    the streaming rate, the bytes themselves, the acceptance rate, and the speed-up at gamma auto."""
    decoder, making = _loaded(pair, "float32")
    result, drafted = Result(), {}
    for bits in BITS:
        began = time.perf_counter()
        drafted[bits] = making.by(f"self:{bits}")
        made, size = time.perf_counter() - began, _beyond(drafted[bits])
        result.bars.append(Bar(f"{pair}, {bits} bits: seconds to make", _exactly(made)))
        result.bars.append(Bar(f"{pair}, {bits} bits: MB beside {decoder.target.weight_bytes / 1e6:.0f}", size))
    models = {str(bits): each.models[1] for bits, each in drafted.items()}
    cases = {name: forward_case(model, 1, DEPTH) for name, model in models.items()}
    cases |= {"target": forward_case(decoder.target, 1, DEPTH), STREAM: stream_case(CPU)}
    samples = []
    for sample in interleave(cases, passes, CPU):
        samples.append(sample)
        tick(f"{pair}: steps")
    ms = {name: [sample[name] for sample in samples] for name in cases}
    for name, model in models.items():
        streamed = [bytes_read(model) / STREAM_BYTES * each for each in ms[STREAM]]
        what = f"{pair}, {name} bits: a step ({median(ms[name]):.2f} ms, the target's {median(ms['target']):.2f}) over "
        result.bars.append(Bar(f"{what}its bytes streamed", quartiles(ms[name], streamed), at_most=STEP))
    chosen = texts.spread(texts.load(shipped=PAIRS[pair].prompts), count)
    encoded = [integers(texts.encode(prompt, decoder)) for prompt in chosen]
    contenders: dict[str, Contender] = {NONE: SybilContender(decoder.without_draft(), eos_token_id=[])}
    for (bits, each), gamma in itertools.product(drafted.items(), (4, 8, AUTO)):
        contenders[f"{bits} bits, gamma {gamma}"] = SybilContender(each, gamma=gamma, eos_token_id=[])
    rows = interleaved(contenders, encoded, NEW_TOKENS, tick)
    seconds = {name: [row.seconds for row in group] for name, group in rows.items()}
    for name in list(contenders)[1:]:
        result.bars.append(Bar(f"{pair}, {name}: over none", quartiles(seconds[NONE], seconds[name])))
        result.bars.extend(_counted(f"{pair}, {name}", rows[name], rows[NONE]))
    result.samples.update({"forwards": ms, "seconds": seconds})
    return result


REPLAYED, REPLAY_BAR = "gpt2:medium", 2.83


def replay(bits: Bits, gammas: Sequence[int], repetitions: int, tick: Tick) -> Result:
    """GPT-2 Medium's shape with random weights, and a copy of it in `bits` bits as the draft, which replays the
    target's text so that 75 % of the proposed tokens are accepted. The bars say, for each gamma, how many times as fast
    as the target alone that is. See bars.replay."""
    pair = workload(REPLAYED)
    target, copy = pair.target.build(torch.float32, CPU), pair.target.build(torch.float32, CPU, Rounding(bits))
    prompts, result, best = pair.prompts(1, 32), Result(), _exactly(0.0)
    for gamma in gammas:
        scripts = record(target, prompts, NEW_TOKENS, 0.75, gamma)
        contenders: dict[str, Contender] = {
            NONE: SybilContender(Decoder(target)),
            SELF: SybilContender(Decoder(target, SelfReplay(copy, scripts)), gamma=gamma),
        }
        rows = interleaved(contenders, prompts * repetitions, NEW_TOKENS, tick)
        seconds = {name: [row.seconds for row in group] for name, group in rows.items()}
        found = quartiles(seconds[NONE], seconds[SELF])
        what = f"{REPLAYED} replay by its copy in {bits} bits, gamma {gamma}"
        result.bars.append(Bar(f"{what}: over none ({_rate(seconds[NONE]):.1f} tokens/s)", found))
        result.bars.extend(_counted(what, rows[SELF], rows[NONE]))
        result.samples[f"gamma {gamma}"] = seconds
        best = max(best, found, key=lambda each: each.value)
    result.bars.append(
        Bar(f"{REPLAYED} replay by its copy in {bits} bits: the best over none", best, at_least=REPLAY_BAR)
    )
    return result


def _loaded(pair: str, dtype: str) -> tuple[Decoder, Drafters]:
    """The pair's target, and the maker of its drafters."""
    decoder = load(pair, dtype=dtype, device=CPU)
    return decoder, Drafters(decoder, read(PAIRS[pair].source), getattr(torch, dtype))


def _transformers(asked: DrafterComparison) -> Contender:
    from sybil.models.pretrained import load_transformers

    model = load_transformers(read(PAIRS[asked.pair].source), getattr(torch, asked.dtype), CPU).eval()
    return TransformersContender(model, frozenset())


def _beyond(decoder: Decoder) -> Interval:
    return _exactly((weight_bytes(decoder) - decoder.target.weight_bytes) / 1e6)


def _counted(what: str, rows: Sequence[PromptResult], plain: Sequence[PromptResult]) -> list[Bar]:
    """The acceptance rate, the tokens a round, and the share of texts that equal plain decoding's, which must be
    all."""
    proposed, rounds = sum(row.proposed or 0 for row in rows), sum(row.rounds for row in rows)
    accepted, emitted = sum(row.accepted or 0 for row in rows), sum(len(row.tokens) for row in rows)
    same = sum(row.tokens == other.tokens for row, other in zip(rows, plain, strict=True))
    return [
        Bar(f"{what}: accepted / proposed", _exactly(accepted / max(proposed, 1))),
        Bar(f"{what}: tokens a round", _exactly(emitted / rounds)),
        Bar(f"{what}: texts that are plain decoding's", _exactly(same / len(rows)), at_least=1.0),
    ]


def _rate(seconds: Sequence[float]) -> float:
    """Tokens a second."""
    return NEW_TOKENS * len(seconds) / sum(seconds)


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)
