"""Measures where a round's time goes, and how near the forwards are to the memory's bandwidth."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast

import torch
from torch import Tensor

from sybil.clock import event
from sybil.decoding import Decoder
from sybil.drafting import DrafterFactory, DraftSelf
from sybil.errors import InvalidSetting
from sybil.loading import IN_BLOCKS
from sybil.measuring import prompts as texts
from sybil.measuring import workload as workloads
from sybil.measuring.memory import PeakMemory, release, weight_bytes
from sybil.measuring.prompts import Prompt
from sybil.measuring.timing import (
    STREAM,
    STREAM_BYTES,
    forward_case,
    interleave,
    stream_case,
    synchronise,
    unrecorded,
)
from sybil.models import Model
from sybil.models.rounding import BLOCK, block_bytes
from sybil.models.storage import BLOCKS, FORMATS, Kept, Rounding, Storage
from sybil.pairs import default_draft_dtype
from sybil.results import Step
from sybil.sampling import GREEDY, Sampling
from sybil.transfer import integers

DRAFT_STEP, VERIFIED = "draft step", (1, 2, 4, 6, 9, 17)
PARTS = ("draft forwards", "target forward", "sampling and rule", "everything else")
NEW_TOKENS, DEPTH = 64, 128
TEXT_TOKENS = 256  # new tokens of the text whose rounds are shown one by one


def verification(tokens: int) -> str:
    """The name of a target forward over that many tokens."""
    return f"verification of {tokens}"


@dataclass(frozen=True, slots=True)
class ProfiledDecoder:
    """A decoder and the prompts over which it is profiled. title: a readable name. prompts: (n,) each; the rounds are
    measured over them."""

    title: str
    decoder: Decoder
    prompts: list[Tensor]
    replay: bool = False


def of_pair(title: str, decoder: Decoder, prompts: list[Prompt] | None = None) -> ProfiledDecoder:
    """A loaded pair over some prompts; stdlib's shipped prompts where none are given. Prompts are cut to half of the
    model's context at most."""
    most = min(DEPTH, decoder.target.context // 2)
    chosen = texts.spread(texts.load() if prompts is None else prompts, 9)
    encoded = [texts.encode(prompt, decoder)[:most] for prompt in chosen]
    return ProfiledDecoder(title, decoder, [integers(ids) for ids in encoded if ids])


def of_workload(
    name: str,
    dtype: torch.dtype,
    draft_dtype: torch.dtype | None,
    device: torch.device,
    acceptance_rate: float,
    gamma: int,
) -> ProfiledDecoder:
    """Published shapes with random weights, the draft replaying the target. draft_dtype: None is int8 on a CPU,
    dtype elsewhere. Raises InvalidSetting."""
    workload = workloads.workload(name)
    target = workload.target.build(dtype, device)
    draft = workload.draft.build(draft_dtype or default_draft_dtype(dtype, device), device)
    prompts = workload.prompts(1, DEPTH // 2)
    scripts = workloads.record(target, prompts, NEW_TOKENS, acceptance_rate, gamma)
    title = (
        f"{name}: {workload.target.name} with {workload.draft.name}, random weights, a replay in which "
        f"{acceptance_rate:.0%} of what is proposed is accepted"
    )
    return ProfiledDecoder(title, Decoder(target, workloads.Replay(draft, scripts)), prompts, replay=True)


class _Timed:
    """A model whose forwards are timed. On a GPU CUDA events time them, so that the work doesn't wait for the clock."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.vocab_size, self.context, self.device = model.vocab_size, model.context, model.device
        self.weight_bytes, self.new_cache, self.prefill = model.weight_bytes, model.new_cache, model.prefill

    def forward(self, tokens: Tensor, cache: Any) -> Tensor:
        if self.device.type == "cuda":
            began = event(self.device)
            logits = self._model.forward(tokens, cache)
            self._events.append((began, event(self.device)))
            return logits
        start = time.perf_counter()
        logits = self._model.forward(tokens, cache)
        self._seconds += time.perf_counter() - start
        return logits

    def seconds(self) -> float:
        """The seconds of all forwards since the last call of this method."""
        synchronise(self.device)
        seconds: float = self._seconds + sum(began.elapsed_time(ended) for began, ended in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return seconds


class _TimedRounds:
    """Decodes the prompts again and again. The first and the last round of a text are left out, because their work is
    unusual: in the first the draft reads the prompt, and in the last fewer tokens are proposed."""

    def __init__(self, subject: ProfiledDecoder, draft: DrafterFactory | None, settings: Mapping[str, Any]) -> None:
        self._prompts, self._settings = subject.prompts, settings
        self._gamma = settings["gamma"] if draft else 0  # how many tokens a whole round proposes
        self._target, self._drafts = (
            _Timed(subject.decoder.target),
            [_Timed(each) for each in draft.models] if draft else [],
        )
        self._decoder = Decoder(self._target, draft and draft.over(*self._drafts))
        self._texts = itertools.cycle(self._prompts)

    def __call__(self) -> dict[str, float]:
        """The parts of a whole round in milliseconds, as means over the next text."""
        for _ in self._prompts:
            rounds = unrecorded(self._text)
            if rounds:  # empty where the text ended at once
                return {part: fmean(each[part] for each in rounds) for part in PARTS}
        raise InvalidSetting(f"no text of {len(self._prompts)} prompts lasts two rounds: give a pair that says more")

    def _text(self) -> list[dict[str, float]]:
        """The parts of the next text's whole rounds."""
        steps = self._decoder.stream([next(self._texts)], **self._settings)
        next(steps)
        return [parts for step, parts in self._measured(steps) if step.proposed == (self._gamma,)]

    def _measured(self, steps: Iterator[Step]) -> Iterator[tuple[Step, dict[str, float]]]:
        self._seconds()  # forget what was timed before
        for step in steps:
            forwards, sample = self._seconds(), step.timings.sample
            seconds = (*forwards, sample, step.timings.total - sum(forwards) - sample)
            yield step, {part: 1e3 * each for part, each in zip(PARTS, seconds, strict=True)}

    def _seconds(self) -> tuple[float, float]:
        """(the seconds of the draft's forwards, those of the target's) since the last call of this method."""
        return sum(each.seconds() for each in self._drafts), self._target.seconds()


class Profile:
    """The cases of one subject, measured pass by pass. sampling, rule: how the rounds' tokens are chosen."""

    def __init__(self, subject: ProfiledDecoder, gamma: int, sampling: Sampling = GREEDY, rule: str = "token") -> None:
        target, draft = subject.decoder.target, subject.decoder.draft
        if draft is not None and len(draft.models) != 1:
            count = len(draft.models) or "no"
            raise InvalidSetting(f"{subject.title} drafts by {count} models: a profile takes one model, or no draft")
        model = draft.models[0] if draft else None
        self.device, context = target.device, min(each.context for each in subject.decoder.models)
        self.depth = min(DEPTH, context - max(VERIFIED))
        new_tokens = min(NEW_TOKENS, context - max(map(len, subject.prompts), default=context))
        if self.depth < 1 or new_tokens < 2 * (gamma + 1):  # a round that is whole comes second
            raise InvalidSetting(
                f"{subject.title} has a context of {context} and gamma is {gamma}: a profile needs a context of "
                f"{max(VERIFIED) + 1} or more, and {2 * (gamma + 1)} tokens of {NEW_TOKENS} after its prompts"
            )
        settings = {"gamma": gamma, "max_new_tokens": new_tokens, "rule": rule, "seed": 0, **sampling.keywords}
        self.memory = _memory(Decoder(target, draft), subject.prompts[0], settings)
        self.precisions = tuple(map(_told, subject.decoder.models))
        self.bytes_read = {}
        self._cases = {STREAM: stream_case(self.device)}
        if model is not None:
            self.bytes_read[DRAFT_STEP] = bytes_read(model)
            self._cases[DRAFT_STEP] = forward_case(model, 1, self.depth)
        for tokens in VERIFIED:
            self._cases[verification(tokens)] = forward_case(target, tokens, self.depth)
            self.bytes_read[verification(tokens)] = bytes_read(target)
        self._rounds = _TimedRounds(subject, draft, settings)
        self._decoder, self._prompt = subject.decoder.without_defaults(), subject.prompts[0]
        most = NEW_TOKENS if subject.replay else TEXT_TOKENS  # where a replay's script ends
        self._settings = {**settings, "max_new_tokens": min(most, context - len(self._prompt))}

    def text(self) -> list[Step]:
        """All rounds of one text, with the times of the decoding loop's own clock."""
        return unrecorded(lambda: list(self._decoder.stream([self._prompt], **self._settings)))

    def passes(self, count: int) -> Iterator[dict[str, float]]:
        """Measure `count` passes. A pass has every case once and a round's parts, in milliseconds."""
        for sample in interleave(self._cases, count, self.device):
            yield sample | self._rounds()

    def kernels(self, trace: Path) -> dict[str, float]:
        """On a GPU: the milliseconds of a text's ten costliest kernels. trace: the file to write for Perfetto."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            self._rounds()
            synchronise(self.device)
        profiler.export_chrome_trace(str(trace))
        kernels = [event for event in profiler.key_averages() if event.device_type.name == "CUDA"]
        kernels.sort(key=lambda event: -event.self_device_time_total)
        return {event.key: event.self_device_time_total / 1e3 for event in kernels[:10]}


def _memory(decoder: Decoder, prompt: Tensor, settings: Mapping[str, Any]) -> dict[str, int | None]:
    """Bytes by part. "peak" is that of weights, caches and everything else in a generation; None where the system
    doesn't tell it."""
    target, capacity = decoder.target, len(prompt) + settings["max_new_tokens"] + settings["gamma"] + 1
    release()
    with PeakMemory(target.device, decoder.models) as peak:
        decoder.generate([prompt], **settings)
    held: dict[str, int | None] = {}
    for whose, model in zip(("target's", "draft's"), decoder.models, strict=False):
        held[f"{whose} weights"] = model.weight_bytes
        if model is target or not isinstance(decoder.draft, DraftSelf):  # a DraftSelf has no cache of its own
            # None: transformers' caches grow
            held[f"{whose} cache"] = getattr(model.new_cache(1, capacity), "nbytes", None)
    return {**held, "peak": None if peak.growth is None else weight_bytes(decoder) + peak.growth}


def precision(model: Model) -> Storage | None:
    """The storage of the products' weights; int8 where they are rounded to few bits for a draft. None where it isn't
    known, and where the weights are in blocks."""
    ours: Kept | None = getattr(model, "storage", None)
    words: dict[object, Storage] = {kept.dtype: word for word, kept in FORMATS.items()}
    if isinstance(ours, Rounding):
        return "int8"
    if ours is not None:
        return cast(Storage, ours) if ours in FORMATS else None
    return words.get(getattr(getattr(model, "model", None), "dtype", None))  # of a HuggingFaceModel's model


def _told(model: Model) -> str | None:
    """precision() in words. Weights in blocks and rounded weights are told more exactly: a GGUF file may have blocks of
    several kinds, and "int8" stands for 8 bits only."""
    kept: Kept | None = getattr(model, "storage", None)
    if isinstance(kept, Rounding):
        return f"{kept.bits} bits" if kept.bits < 8 else "int8"
    return IN_BLOCKS if kept == "stored" else kept if kept in BLOCKS else precision(model)


def bytes_read(model: Model) -> int:
    """The bytes of weights that a step reads: the weights of every product, once, without norms and without the
    looked-up rows of the embedding. For a model that runs by transformers, all weights."""
    shape, storage, kept = getattr(model, "shape", None), precision(model), getattr(model, "storage", None)
    if shape is None or storage is None:
        return model.weight_bytes
    heads, projected = shape.heads * shape.head_size, shape.embedding_width != shape.width
    query_key_value = shape.width * (heads + 2 * shape.kv_heads * shape.head_size)
    layer = query_key_value + heads * shape.width + (3 if shape.gated else 2) * shape.width * shape.inner
    ends = shape.vocab_size * shape.embedding_width + 2 * projected * shape.width * shape.embedding_width
    layers = len(getattr(model, "layers", range(shape.layers)))  # a draft may leave some out
    if isinstance(kept, Rounding):
        head = kept.bits_of("token_embedding" if shape.tied_head else "head")
        return int((layers * layer * block_bytes(kept.bits) + ends * block_bytes(head)) / BLOCK)
    return int((layers * layer + ends) * FORMATS[storage].dtype.itemsize)


@dataclass(frozen=True, slots=True)
class ForwardSpeed:
    """A forward's speed. ms: the median. bandwidth: bytes of weights a second. share: the bandwidth as a share of the
    streaming bandwidth in the same run."""

    name: str
    ms: float
    bandwidth: float
    share: float


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """Medians over the passes. parts: of a round, in ms. streaming: the memory's bandwidth in bytes a second. overhead:
    the share of a round that is spent outside the models' forwards."""

    forwards: list[ForwardSpeed]
    parts: dict[str, float]
    streaming: float
    overhead: float
    passes: int

    @property
    def round_ms(self) -> float:
        return sum(self.parts.values())


def summarise(samples: Sequence[dict[str, float]], bytes_read: dict[str, int]) -> ProfileReport:
    """The report of a profile. samples: one or more passes, by Profile.passes(). bytes_read: that of the Profile."""
    ms = {name: median(sample[name] for sample in samples) for name in samples[0]}
    streaming = STREAM_BYTES / ms[STREAM] * 1e3
    bandwidths = {name: count / ms[name] * 1e3 for name, count in bytes_read.items()}
    parts = {name: ms[name] for name in PARTS}
    return ProfileReport(
        [ForwardSpeed(name, ms[name], bandwidth, bandwidth / streaming) for name, bandwidth in bandwidths.items()],
        parts,
        streaming,
        sum(parts[name] for name in PARTS[2:]) / sum(parts.values()),
        len(samples),
    )
