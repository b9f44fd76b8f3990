"""One target's models, loaded once for all its cells, and one pass of a cell over its texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from sybil.devices import dtype_named
from sybil.drafting import DrafterFactory
from sybil.drafts import DraftMaker, parse
from sybil.errors import InvalidSetting, PromptTooLong
from sybil.loading import dtype_chosen, load, maker, read
from sybil.measuring.energy import Energy
from sybil.measuring.machine import describe
from sybil.measuring.memory import PeakMemory, release, weight_bytes
from sybil.measuring.prompts import encode
from sybil.measuring.timing import unrecorded
from sybil.models import Model
from sybil.pairs import pair
from sybil.progress import silence_transformers
from sybil.results import Step
from sybil.sampling import Sampling
from sybil.sweeping.passes import Pass, largest, phases_of, rounds_of
from sybil.sweeping.plan import draft_of, prompts_of
from sybil.sweeping.run import NONE, UNCACHED, UNCACHED_PLAIN, RunConfig
from sybil.sweeping.uncached import Uncached
from sybil.transfer import integers


@dataclass(frozen=True, slots=True)
class ReadyCell:
    """A cell that is ready to be measured. batches: lists of texts, token ids (n,) each. stream: decodes a batch with a
    seed, and yields a Step for each round. models: those that may keep a cache between generations."""

    config: RunConfig
    batches: list[list[Tensor]]
    stream: Callable[[list[Tensor], int], Iterator[Step]]
    models: Sequence[Model]
    weight_bytes: int
    device: torch.device

    def warm_up(self) -> None:
        """Decode the first batch without measuring it."""
        for _ in self.stream(self.batches[0], self._seed(0)):
            pass

    def measure(self) -> Pass:
        """Decode all texts once. A repeat draws the same tokens again, so repeats differ in their times only."""
        release()
        with Energy(self.device) as energy:
            runs = [
                unrecorded(partial(self._run, texts, self._seed(number))) for number, texts in enumerate(self.batches)
            ]
        batch = self.config.batch
        return Pass(
            batch=batch,
            seconds=tuple(run.seconds for run in runs),
            ms_to_first_token=tuple(1e3 * run.first for run in runs for _ in range(batch)),
            rounds=tuple(chain.from_iterable(rounds_of(run.steps, batch) for run in runs)),
            phases=phases_of(step for run in runs for step in run.steps),
            weights=self.weight_bytes,
            prefill=largest(run.prefill for run in runs),
            decode=largest(run.decode for run in runs),
            joules=energy.joules,
        )

    def _seed(self, number: int) -> int:
        """The seed of a batch: the cell's seed plus the number of the batch's first text."""
        return (self.config.seed + number * self.config.batch) % 2**63

    def _run(self, texts: list[Tensor], seed: int) -> _TimedBatch:
        """Decode a batch. Memory is read before the first round and after it, outside the timed parts."""
        with PeakMemory(self.device, self.models) as decode:  # its peak is reset after the first round
            with PeakMemory(self.device, self.models) as prefill:
                began = time.perf_counter()
                stream = self.stream(texts, seed)
                steps = [next(stream)]
                first = time.perf_counter() - began
            with PeakMemory(self.device, self.models):
                began = time.perf_counter()
                steps.extend(stream)
                rest = time.perf_counter() - began
        return _TimedBatch(steps, first + rest, first, prefill.growth, decode.growth)


@dataclass(frozen=True, slots=True)
class _TimedBatch:
    """A batch's rounds, its seconds, the seconds to its first tokens, and the growth of memory in bytes."""

    steps: list[Step]
    seconds: float
    first: float
    prefill: int | None
    decode: int | None


class TargetBench:
    """The models of one target. Each draft, copy or uncached loop is made when a cell first needs it, and is kept.

    any_cell: one of the target's cells. Raises the errors of sybil.load."""

    def __init__(self, any_cell: RunConfig) -> None:
        silence_transformers()
        self._dtype, self._source = any_cell.dtype, pair(any_cell.pair).source
        target = load(self._source, dtype=self._dtype, device=any_cell.device, progress=False)
        if target.tokenizer is None:
            raise InvalidSetting(f"{self._source} has no tokenizer: choose a pair that does")
        self.device, self._target = target.target.device, target.without_defaults()
        self.environment: Mapping[str, str | int] = describe(self.device)
        self._makers: dict[str | None, DraftMaker] = {}
        self._loops: dict[str, Uncached] = {}

    def cell(self, config: RunConfig) -> ReadyCell:
        """Make a cell of this target ready. Raises the errors of sybil.errors."""
        batches, tokens = self._batches(config), config.new_tokens
        sampling = Sampling(config.temperature, config.top_k, config.top_p, config.min_p)
        if config.drafter in (UNCACHED, UNCACHED_PLAIN):
            loop = self._loop(config)
            gamma = 0 if config.plain else int(config.gamma)

            def whole(texts: list[Tensor], seed: int) -> Iterator[Step]:
                return loop.stream(texts, max_new_tokens=tokens, gamma=gamma, sampling=sampling, seed=seed)

            return ReadyCell(config, batches, whole, (), loop.weight_bytes, self.device)
        # each cell has its own decoder, because a decoder learns its costs
        decoder = self._target.without_draft()
        if config.drafter != NONE:
            decoder = decoder.with_draft(self._draft(draft_of(config), config.draft_dtype))
        settings = {"gamma": config.gamma, "rule": config.rule, "window": config.window, **sampling.keywords}

        def cached(texts: list[Tensor], seed: int) -> Iterator[Step]:
            return decoder.stream(texts, max_new_tokens=tokens, seed=seed, **settings)

        return ReadyCell(config, batches, cached, decoder.models, weight_bytes(decoder), self.device)

    def _batches(self, config: RunConfig) -> list[list[Tensor]]:
        prompts, context = prompts_of(config), self._target.target.context
        texts = [integers(encode(prompt, self._target)) for prompt in prompts]
        for prompt, ids in zip(prompts, texts, strict=True):
            if len(ids) + config.new_tokens > context:
                raise PromptTooLong(
                    f"prompt {prompt.id} has {len(ids)} tokens and new_tokens is {config.new_tokens}, more together "
                    f"than the context of {config.pair}, {context}: lower new_tokens"
                )
        return [texts[start : start + config.batch] for start in range(0, len(texts), config.batch)]

    def _loop(self, config: RunConfig) -> Uncached:
        if config.drafter not in self._loops:
            draft = None if config.plain else draft_of(config)
            ends = self._target.eos_token_ids
            self._loops[config.drafter] = Uncached(self._source, draft, self._dtype, self.device, ends)
        return self._loops[config.drafter]

    def _draft(self, name: str, dtype: str | None) -> DrafterFactory:
        """The draft of that name. The maker keeps it, and also what several drafts share, such as a copy of the
        target."""
        if dtype not in self._makers:
            computed = dtype_chosen(self._source, self._dtype, self.device)
            asked = dtype_named(dtype, draft=True)
            self._makers[dtype] = maker(read(self._source), self._target.target, computed, asked, progress=False)
        return self._makers[dtype].make(parse(name))
