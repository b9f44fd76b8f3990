"""The bars of the engine. Each function measures one of them in one run, and returns the bound beside what was
found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sybil.agreement import first_difference
from sybil.decoding import Decoder
from sybil.drafting import DraftModel
from sybil.loading import load
from sybil.measuring import prompts as texts
from sybil.measuring.contenders import (
    AUTOREGRESSIVE,
    SPECULATIVE,
    TRANSFORMERS,
    Contender,
    SybilContender,
    TransformersContender,
)
from sybil.measuring.profile import DEPTH, VERIFIED, bytes_read
from sybil.measuring.timing import (
    STREAM,
    STREAM_BYTES,
    Interval,
    forward_case,
    interleave,
    speed_up,
    stream_case,
)
from sybil.measuring.workload import SHAPES, RandomModel, Replay, record, token_rate, workload
from sybil.models import Model

CPU = torch.device("cpu")
Tick = Callable[[str], None]
"""Called with the name of what was measured, after each measurement."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What was found with its 95 % interval, and the bound that it must keep. Without a bound the number is only
    reported."""

    what: str
    found: Interval
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        if self.at_most is None and self.at_least is None:
            return None
        return (self.at_most is None or self.found.value <= self.at_most) and (
            self.at_least is None or self.found.value >= self.at_least
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The bars, and the samples that they were computed from. Both can be written as JSON."""

    bars: list[Bar] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {"bars": [asdict(bar) | {"met": bar.met} for bar in self.bars], "samples": self.samples}


def _columns(samples: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def flat(passes: int, tick: Tick) -> Result:
    """Verification is flat: forwards of 1 to 17 tokens after 128 tokens, for GPT-2 Medium's shape and the embedded
    target."""
    medium = SHAPES["gpt2-medium"]
    made: dict[str, Callable[[], Model]] = {
        "gpt2-medium float32": lambda: medium.build(torch.float32, CPU),
        "gpt2-medium bfloat16": lambda: medium.build(torch.bfloat16, CPU),
        "embedded target float32": lambda: load("stdlib", dtype=torch.float32, device=CPU).target,
    }
    result = Result()
    for name, make in made.items():
        model = make()
        cases = {str(tokens): forward_case(model, tokens, DEPTH) for tokens in VERIFIED}
        samples = []
        for sample in interleave(cases, passes, CPU):
            samples.append(sample)
            tick(name)
        ms = _columns(samples)
        result.samples[name] = ms
        for tokens in VERIFIED[1:]:
            bound = 1.25 if tokens == 9 else None
            what = f"{name}: {tokens} tokens over 1 ({median(ms['1']):.2f} ms)"
            result.bars.append(Bar(what, speed_up(ms[str(tokens)], ms["1"]), at_most=bound))
        del model, cases
    return result


def step(passes: int, tick: Tick) -> Result:
    """The time of a forward of GPT-2 Medium's shape in float32, over 1 and 5 tokens after 128, beside transformers'
    forward."""
    medium = SHAPES["gpt2-medium"]
    ours = medium.build(torch.float32, CPU)
    twin = medium.twin(torch.float32, CPU)
    cases: dict[str, Callable[[], object]] = {STREAM: stream_case(CPU)}
    for tokens in (1, 5):
        cases[f"sybil {tokens}"] = forward_case(ours, tokens, DEPTH)
        cases[f"transformers {tokens}"] = _transformers_case(twin, tokens)
    samples = []
    for sample in interleave(cases, passes, CPU):
        samples.append(sample)
        tick("gpt2-medium float32")
    ms = _columns(samples)
    streamed = [bytes_read(ours) / STREAM_BYTES * each for each in ms[STREAM]]  # the time to read the weights alone
    bars = [
        Bar(
            f"gpt2-medium float32, tokens: {tokens}: sybil {median(ms[f'sybil {tokens}']):.1f} ms over transformers "
            f"{median(ms[f'transformers {tokens}']):.1f} ms",
            speed_up(ms[f"sybil {tokens}"], ms[f"transformers {tokens}"]),
            at_most=bound,
        )
        for tokens, bound in ((1, 0.75), (5, 0.35))
    ]
    gigabytes = STREAM_BYTES / median(ms[STREAM]) / 1e6
    what = f"gpt2-medium float32, tokens: 1: share of the streaming bandwidth ({gigabytes:.1f} GB/s)"
    bars.append(Bar(what, speed_up(streamed, ms["sybil 1"]), at_least=0.7))
    return Result(bars, ms)


def _transformers_case(model: Any, tokens: int) -> Callable[[], object]:
    from transformers import DynamicCache

    ids, cache = torch.arange(DEPTH + tokens)[None] % model.config.vocab_size, DynamicCache()
    with torch.inference_mode():
        model(input_ids=ids[:, :DEPTH], past_key_values=cache, use_cache=True)

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=ids[:, DEPTH:], past_key_values=cache, use_cache=True)
            cache.crop(-tokens)

    return run


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """How much is replayed: each contender decodes each of `prompts` prompts of `prompt_tokens` tokens `repetitions`
    times."""

    prompts: int = 2
    prompt_tokens: int = 32
    new_tokens: int = 64
    repetitions: int = 5
    gamma: int = 4
    acceptance_rate: float = 0.75


REPLAY_BARS: Mapping[str, Mapping[str, float]] = {
    "gpt2:medium": {AUTOREGRESSIVE: 2.2, TRANSFORMERS: 4.0},
    "opt:1.3b": {AUTOREGRESSIVE: 2.5},
}
"""By workload and contender: how many times as fast as the contender the replay must be. A contender that isn't named
is neither loaded nor run."""


def replay(plan: ReplayPlan, tick: Tick) -> Result:
    """Whole generations, prompt included, which take turns: a float32 target alone, the target with an int8 draft that
    replays its text, and transformers' generate. It is no speed-up on real text: workload.record decides which tokens
    are accepted."""
    result = Result()
    rate = token_rate(plan.acceptance_rate, plan.gamma)
    for name, bounds in REPLAY_BARS.items():
        pair = workload(name)
        target, draft = pair.target.build(torch.float32, CPU), pair.draft.build(torch.int8, CPU)
        prompts = pair.prompts(plan.prompts, plan.prompt_tokens)
        scripts = record(target, prompts, plan.new_tokens, plan.acceptance_rate, plan.gamma)
        contenders: dict[str, Contender] = {
            AUTOREGRESSIVE: SybilContender(Decoder(target), gamma=plan.gamma),
            SPECULATIVE: SybilContender(Decoder(target, Replay(draft, scripts)), gamma=plan.gamma),
        }
        if TRANSFORMERS in bounds:
            contenders[TRANSFORMERS] = TransformersContender(pair.target.twin(torch.float32, CPU), frozenset())
        for contender in contenders.values():
            contender.run(prompts[0], 8)  # warm up
        rows = []
        for repetition, (index, prompt) in itertools.product(range(plan.repetitions), enumerate(prompts)):
            order = list(contenders) if (repetition + index) % 2 == 0 else list(reversed(contenders))
            for each in order:
                measured = contenders[each].run(prompt, plan.new_tokens)
                same = measured.tokens == scripts[index].tokens[plan.prompt_tokens :].tolist()
                rows.append({"contender": each, "prompt": index, "replay": True, "same": same, **asdict(measured)})
                tick(f"{name}: {each}")
        result.samples[name] = {"token_rate": rate, "rows": [row | {"tokens": len(row["tokens"])} for row in rows]}
        result.bars.extend(_replay_bars(name, rows, bounds))
        del contenders, target, draft
    return result


def _replay_bars(name: str, rows: list[dict[str, Any]], bounds: Mapping[str, float]) -> Iterator[Bar]:
    by_contender = {each: [row for row in rows if row["contender"] == each] for each in (SPECULATIVE, *bounds)}
    # Rows come in rounds of all contenders, so the n-th rows of two contenders belong together.
    seconds = {each: [row["seconds"] for row in group] for each, group in by_contender.items()}
    for each, bound in bounds.items():
        ms = " over ".join(
            f"{1e3 * median(seconds[who]) / len(by_contender[who][0]['tokens']):.1f}" for who in (each, SPECULATIVE)
        )
        what = f"{name} replay, speculative against {each} ({ms} ms a token)"
        yield Bar(what, speed_up(seconds[each], seconds[SPECULATIVE]), at_least=bound)
    spoken = by_contender[SPECULATIVE]
    proposed, rounds = sum(row["proposed"] for row in spoken), sum(row["rounds"] for row in spoken)
    accepted, emitted = sum(row["accepted"] for row in spoken), sum(len(row["tokens"]) for row in spoken)
    yield Bar(f"{name} replay: accepted / proposed, measured", _exactly(accepted / proposed))
    yield Bar(f"{name} replay: tokens a round, measured", _exactly(emitted / rounds))
    for each, group in by_contender.items():
        what = f"{name} replay: texts of {each} that are the recorded ones"
        ours = each != TRANSFORMERS  # transformers sums in another order, which may decide a near-tie otherwise
        yield Bar(what, _exactly(sum(row["same"] for row in group) / len(group)), at_least=1.0 if ours else None)


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)


_SMALL = {"vocab_size": 512, "max_position_embeddings": 256, "hidden_size": 64, "num_attention_heads": 4}
_SMALL |= {"intermediate_size": 160}
RANDOM_PAIRS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"vocab_size": 512, "n_positions": 256, "n_embd": 64, "n_head": 4},
    "opt": {**_SMALL, "word_embed_proj_dim": 64, "ffn_dim": 160},
    "gpt_neox": _SMALL,
    "llama": {**_SMALL, "num_key_value_heads": 2},
    "mistral": {**_SMALL, "num_key_value_heads": 2, "sliding_window": 24},
    "qwen3": {**_SMALL, "num_key_value_heads": 4, "head_dim": 20},
}
"""By model_type: small shapes of three layers. The draft is the first two layers in int8."""
GAMMAS, BATCHES, BITS_NEW_TOKENS = range(1, 9), range(1, 5), 96


@dataclass(frozen=True, slots=True)
class Bits:
    """One batch, decoded speculatively. compared: the number of tokens. differing: the tokens of each row from the
    first one on that differs from plain decoding of that row alone."""

    pair: str
    dtype: str
    gamma: int
    batch: int
    compared: int
    differing: int
    accepted: int
    proposed: int


def bits(tokens: int, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> Iterator[Bits]:
    """Compare speculative greedy tokens with autoregressive decoding of each row alone, at least `tokens` of them in
    each dtype. Half are from the embedded prompts, half from random pairs; gammas and batch sizes take turns."""
    for dtype in dtypes:
        embedded = load("stdlib", dtype=dtype, device=CPU)
        assert embedded.tokenizer is not None
        prompts = [torch.tensor(embedded.tokenizer.encode(prompt.text).ids) for prompt in texts.load()]
        yield from _bits("embedded", dtype, embedded, prompts, tokens // 2)
        for kind, config in RANDOM_PAIRS.items():
            layers = "n_layer" if kind == "gpt2" else "num_hidden_layers"
            model, fewer = (RandomModel(kind, {"model_type": kind, **config, layers: count}) for count in (3, 2))
            target, draft = model.build(dtype, CPU), fewer.build(torch.int8, CPU)
            generator = torch.Generator().manual_seed(0)
            lengths = torch.randint(1, 64, (64,), generator=generator).tolist()
            prompts = [torch.randint(model.vocab_size, (length,), generator=generator) for length in lengths]
            quota = -(-tokens // 2 // len(RANDOM_PAIRS))
            yield from _bits(f"random {kind}", dtype, Decoder(target, DraftModel(draft)), prompts, quota)


def _bits(name: str, dtype: torch.dtype, decoder: Decoder, prompts: list[Tensor], quota: int) -> Iterator[Bits]:
    plain: dict[int, list[int]] = {}
    turns, done = itertools.cycle(range(len(prompts))), 0
    for gamma, batch in itertools.cycle(itertools.product(GAMMAS, BATCHES)):
        if done >= quota:
            return
        chosen = list(itertools.islice(turns, batch))
        for index in chosen:
            if index not in plain:
                alone = decoder.without_draft().generate([prompts[index]], max_new_tokens=BITS_NEW_TOKENS)
                plain[index] = alone.tokens[0].tolist()
        out = decoder.generate([prompts[index] for index in chosen], max_new_tokens=BITS_NEW_TOKENS, gamma=gamma)
        differing = sum(_differing(row.tolist(), plain[index]) for row, index in zip(out.tokens, chosen, strict=True))
        stats = out.stats
        done += stats.emitted
        precision = str(dtype).removeprefix("torch.")
        yield Bits(name, precision, gamma, batch, stats.emitted, differing, stats.accepted, stats.proposed)


def _differing(said: list[int], wanted: list[int]) -> int:
    """How many tokens there are from the first difference on."""
    apart = first_difference(said, wanted)
    return 0 if apart is None else max(len(said), len(wanted)) - apart
