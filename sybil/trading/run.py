"""Runs every candidate over the same prompts, greedily and sampled at temperature 1, interleaved in one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sybil.agreement import FLOAT32
from sybil.decoding import Decoder
from sybil.errors import InvalidSetting, SybilError
from sybil.judging.original import Original
from sybil.loading import load
from sybil.losslessness.evidence import Reference, sampled
from sybil.losslessness.samples import Sample
from sybil.measuring.compare import WARM_UP
from sybil.measuring.contenders import SybilContender
from sybil.measuring.drafters import Drafters
from sybil.measuring.machine import describe
from sybil.measuring.prompts import Prompt, check_lengths, encode
from sybil.measuring.timing import unrecorded
from sybil.progress import transformers_bars
from sybil.sampling import GREEDY as CERTAIN
from sybil.sampling import Sampling
from sybil.trading.candidates import PLAIN, TradeoffCandidate, candidates
from sybil.trading.rows import GREEDY, SAMPLED, Mode, Said, Trade, TradeoffRow
from sybil.transfer import integers

FLOAT = "float32"
"""The dtype in which the float target is computed, by Sybil and by transformers."""
MODES: Mapping[Mode, Sampling] = {GREEDY: CERTAIN, SAMPLED: Sampling(temperature=1.0)}


class Tradeoff:
    """The models of a trade, each loaded once, and the loop over prompts. left_out: the candidates that can't be made,
    and why. Raises the errors of sybil.errors where the float target itself can't be loaded."""

    def __init__(self, trade: Trade) -> None:
        self.trade = trade
        self.decoder = load(trade.target, draft=trade.draft, dtype=FLOAT, device=trade.device, progress=False)
        if self.decoder.tokenizer is None:
            raise InvalidSetting(f"{trade.target} has no tokenizer: choose a model that does")
        self.device = self.decoder.target.device
        original = Original(trade.target, dtype=FLOAT, device=self.device)
        with transformers_bars(False):
            self.reference = Reference(original.reference, self.decoder.tokenizer)
        known = original.checkpoint.known
        self._drafters = Drafters(self.decoder, original.checkpoint, torch.float32)
        self.candidates: dict[str, TradeoffCandidate] = {}
        self.left_out: dict[str, str] = {}
        self._contenders: dict[tuple[str, str], SybilContender] = {}
        self.environment = describe(self.device)
        for each in candidates(trade.draft, 0 if known is None else known[1].width):
            self._enter(each)

    def _enter(self, candidate: TradeoffCandidate) -> None:
        """Add a candidate, or leave it out where it can't be made."""
        try:
            decoder = self._decoder(candidate)
        except SybilError as error:
            if candidate.name == PLAIN:
                raise
            self.left_out[candidate.name] = str(error)
            return
        self.candidates[candidate.name] = candidate
        for mode, sampling in MODES.items():
            settings: dict[str, Any] = {"rule": candidate.rule, **sampling.keywords}
            self._contenders[candidate.name, mode] = SybilContender(decoder, **settings)

    def _decoder(self, candidate: TradeoffCandidate) -> Decoder:
        """The decoder of a candidate. Raises the errors of sybil.errors."""
        if candidate.dtype == FLOAT:
            return self._drafters.by(candidate.drafter)
        return load(self.trade.target, dtype=candidate.dtype, device=self.device, progress=False)

    def total(self, prompts: Sequence[Prompt]) -> int:
        """How many rows a whole run has."""
        return len(prompts) * len(self._contenders)

    def rows(
        self, prompts: Sequence[Prompt], done: frozenset[tuple[str, str, str]] = frozenset()
    ) -> Iterator[TradeoffRow]:
        """Measure every prompt with every candidate in both modes. done: the keys of rows to be left out. Candidates
        take turns in alternating order, so that a machine that slows down does so for all."""
        encoded = [integers(encode(prompt, self.decoder)) for prompt in prompts]
        context = min(self.decoder.target.context, self.reference.context)
        check_lengths(prompts, encoded, self.trade.max_new_tokens, context)
        for contender in self._contenders.values():
            contender.run(encoded[0], min(WARM_UP, self.trade.max_new_tokens))
        for index, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
            order = tuple(self._contenders) if index % 2 == 0 else tuple(reversed(self._contenders))
            for name, mode in order:
                if (prompt.id, name, mode) not in done:
                    yield self._row(name, mode, prompt, ids, index)

    def _row(self, name: str, mode: str, prompt: Prompt, ids: Tensor, index: int) -> TradeoffRow:
        contender, seed = self._contenders[name, mode], self.trade.seed_of(index)
        found = unrecorded(lambda: contender.run(ids, self.trade.max_new_tokens, seed))
        return TradeoffRow(
            trade=self.trade,
            candidate=name,
            mode=mode,  # type: ignore[arg-type]  # of MODES
            prompt=prompt.id,
            domain=prompt.domain,
            prompt_tokens=len(ids),
            tokens=found.tokens,
            seconds=found.seconds,
            rounds=found.rounds,
            proposed=found.proposed,
            accepted=found.accepted,
            said=self._said(ids, found.tokens, index) if mode == SAMPLED else None,
            environment=self.environment,
        )

    @torch.inference_mode()
    def _said(self, prompt: Tensor, tokens: Sequence[int], index: int) -> Said:
        """The float target's judgement of a sampled text, by transformers' forward, after the time was measured."""
        sample, noise = Sample(tuple(prompt.tolist()), tuple(tokens)), np.random.default_rng(index)
        evidence = sampled(self.reference, sample, index, MODES[SAMPLED], noise, FLOAT32)
        return Said(
            judged=len(evidence),
            log_prob=float(evidence.log_prob.sum()),
            entropy=float(evidence.entropy.sum()),
            variance=float(evidence.variance.sum()),
        )
