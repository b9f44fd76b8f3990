"""The main job: the same prompts through transformers and through Sybil, interleaved, in one process.

Every contender decodes greedily, or samples by the same settings. All contenders decode a prompt before the next prompt
begins, in alternating order. So a machine that slows down or speeds up does so for all contenders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sybil.agreement import FLOAT32, first_difference, lead
from sybil.decoding import Decoder
from sybil.drafting.window import AUTO
from sybil.errors import InvalidSetting, PeerFailed, SybilError, VocabularyMismatch
from sybil.fit import check_assisted, way_of
from sybil.loading import IN_BLOCKS, load, read
from sybil.measuring.contenders import (
    ASSISTED,
    AUTOREGRESSIVE,
    PEERS,
    PROMPT_LOOKUP,
    SPECULATIVE,
    Contender,
    PromptResult,
    SybilContender,
    TransformersContender,
)
from sybil.measuring.drafters import Drafters
from sybil.measuring.machine import describe
from sybil.measuring.memory import PeakMemory
from sybil.measuring.peers import peers
from sybil.measuring.profile import precision
from sybil.measuring.prompts import Prompt, check_lengths, encode
from sybil.measuring.task import Row, Task
from sybil.measuring.timing import unrecorded
from sybil.models.storage import FORMATS
from sybil.noise import Noise
from sybil.progress import silence_transformers
from sybil.sampling import probabilities
from sybil.transfer import integers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARM_UP = 8  # tokens, uncounted
LOOKED_UP = 10
"""How many tokens transformers' prompt lookup proposes where Sybil's gamma is "auto": the number of transformers' own
guide."""
NEAR_TIE = FLOAT32.absolute
"""In logits. The rounding of float32 may swap two tokens whose logits are nearer than this."""


def digest(prompts: list[Prompt]) -> str:
    """A digest of the prompts' ids and texts. It tells whether rows were measured over the same prompts."""
    return hashlib.sha256(json.dumps([(prompt.id, prompt.text) for prompt in prompts]).encode()).hexdigest()[:16]


class Comparison:
    """The models of a task, loaded once for each system, and the loop over prompts."""

    def __init__(self, task: Task) -> None:
        from sybil.models.pretrained import load_transformers

        silence_transformers()
        self.task = task
        dtype = None if task.dtype == IN_BLOCKS else task.dtype
        # the default dtype is left to load(), which knows whether the draft can have it
        asked = None if task.draft_dtype == task.usual_draft_dtype else task.draft_dtype
        decoder = load(
            task.target, draft=task.draft, dtype=dtype, draft_dtype=asked, device=task.device,
            revision=task.revision, adapter=task.adapter, progress=False,
        )  # fmt: skip
        if decoder.tokenizer is None:
            raise InvalidSetting(f"{task.target} has no tokenizer: choose a model that does")
        self.decoder, self.device, self.context = decoder, decoder.target.device, decoder.target.context
        self.machine = describe(self.device)
        drafting = next(iter(decoder.models[1:]), None)
        self.draft_storage = None if drafting is None else precision(drafting)  # the storage that load() has chosen
        checkpoint = read(task.target, revision=task.revision, adapter=task.adapter)
        self.target = load_transformers(checkpoint, task.computed, self.device).eval()
        self._drafters = Drafters(decoder, checkpoint, task.computed)
        self.contenders: dict[str, Contender] = {}
        self.left_out: dict[str, str] = {}
        for name in task.contenders:
            try:
                self.contenders[name] = self._contender(name, decoder)
            except SybilError as error:
                self._leave_out(name, error)
        if self.device.type == "cpu" and task.sampling.greedy:
            others, lacking = peers(checkpoint.file, self.context, decoder.eos_token_ids)
            self.contenders |= others
            self.left_out |= lacking

    @property
    def translated(self) -> dict[str, str]:
        """The way of drafting of each draft whose tokenizer isn't the target's, by the draft's name."""
        drafts = {way.drafter: self.contenders.get(name) for name, way in self.task.ways.items()}
        found = {name: way_of(each.decoder.draft) for name, each in drafts.items() if isinstance(each, SybilContender)}
        if not drafts:
            found = {str(self.task.draft): way_of(self.decoder.draft)}
        return {name: way for name, way in found.items() if way is not None}

    def _leave_out(self, name: str, error: SybilError) -> None:
        """Continue without a drafter that can't be made, or without a peer that fails. Raises every other error."""
        if not isinstance(error, PeerFailed) and (name not in self.task.ways or name == self.task.plain):
            raise error
        self.left_out[name] = str(error)
        self.contenders.pop(name, None)

    def _contender(self, name: str, decoder: Decoder) -> Contender:
        task = self.task
        ends = decoder.eos_token_ids  # config.json's where generation_config.json names none: for all the same
        if way := task.ways.get(name):
            gamma = {} if way.gamma is None else {"gamma": way.gamma}
            return SybilContender(self._drafters.by(way.drafter), **task.settings | gamma)
        if name == SPECULATIVE:
            return SybilContender(decoder, **task.settings)
        if name == AUTOREGRESSIVE:
            return SybilContender(decoder.without_draft(), **task.settings)
        if name == ASSISTED:
            if found := way_of(decoder.draft):
                why = "knows the commonest tokens alone" if found == "commonest" else "has another tokenizer"
                raise PeerFailed(f"{name} is left out: the draft {why} (Sybil drafts by {found})")
            assistant = self._assistant(str(task.draft))
            return TransformersContender(self.target, ends, assistant, sampling=task.sampling)
        proposed = (LOOKED_UP if task.gamma == AUTO else int(task.gamma)) if name == PROMPT_LOOKUP else None
        return TransformersContender(self.target, ends, prompt_lookup=proposed, sampling=task.sampling)

    def _assistant(self, draft: str) -> PreTrainedModel:
        """The draft as a transformers model, in Sybil's dtype where transformers supports it. Raises PeerFailed for a
        draft that Sybil accepts and transformers refuses."""
        from sybil.models.pretrained import load_transformers

        kept = FORMATS[self.draft_storage].dtype if self.draft_storage else self.task.computed
        dtype = kept if kept.is_floating_point else self.task.computed
        assistant = load_transformers(read(draft), dtype, self.device).eval()
        try:
            check_assisted(self.target, assistant, draft)
        except VocabularyMismatch as error:
            raise PeerFailed(f"{ASSISTED} is left out: {error}") from None
        return assistant

    def rows(self, prompts: list[Prompt], done: frozenset[tuple[str, str]] = frozenset()) -> Iterator[Row]:
        """Measure every prompt with every contender. done: the pairs (prompt's id, contender) to be left out."""
        about: Row = {**self.machine, **asdict(self.task)}
        encoded = [integers(encode(prompt, self.decoder)) for prompt in prompts]
        # transformers would run past the context: refused before anything is measured
        check_lengths(prompts, encoded, self.task.max_new_tokens, self.context)
        for name in tuple(self.contenders):
            self._run(name, encoded[0], min(WARM_UP, self.task.max_new_tokens), 0)
        for index, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
            order = tuple(self.contenders) if index % 2 == 0 else tuple(reversed(self.contenders))
            for name in order:
                if (prompt.id, name) in done:
                    continue
                measured, growth = unrecorded(partial(self._remembered, name, ids, self.task.seed_of(index)))
                if measured is None:
                    continue
                yield {
                    "contender": name,
                    "prompt": prompt.id,
                    "domain": prompt.domain,
                    "prompt_tokens": len(ids),
                    **asdict(measured),
                    "memory_growth": None if name in PEERS else growth,  # which is this process's
                    "weight_bytes": self.contenders[name].weight_bytes,
                    **about,
                    "gamma": self.gamma_of(name),
                }

    def gamma_of(self, name: str) -> int | str:
        """How many tokens the contender proposes in a round, if it proposes any."""
        way = self.task.ways.get(name)
        return self.task.gamma if way is None or way.gamma is None else way.gamma

    def _remembered(self, name: str, ids: Tensor, seed: int) -> tuple[PromptResult | None, int | None]:
        """(one contender's run, the growth of memory during it)."""
        who = self.contenders.get(name)  # None: it failed at the first try
        if who is None:
            return None, None
        models = who.decoder.models if isinstance(who, SybilContender) else ()
        with PeakMemory(self.device, models) as peak:
            measured = self._run(name, ids, self.task.max_new_tokens, seed)
        return measured, peak.growth

    def _run(self, name: str, ids: Tensor, max_new_tokens: int, seed: int) -> PromptResult | None:
        """One contender's run; None for a contender that fails, which takes no further part."""
        try:
            return self.contenders[name].run(ids, max_new_tokens, seed)
        except SybilError as error:
            self._leave_out(name, error)
            return None

    @torch.inference_mode()
    def gap(self, prompt: Prompt, tokens: list[int], seed: int) -> float:
        """The likeliest next token's logit minus the second likeliest's, after prompt and tokens, by transformers'
        forward.

        When sampling, the race of the rule `coupled` decides, so Gumbel noise times the temperature is added to each
        logit. Where a filter cuts between two tokens, rounding may decide although this gap is wide."""
        known = [*encode(prompt, self.decoder), *tokens]
        logits = self.target(input_ids=integers([known]).to(self.device)).logits[0, -1].double().cpu()
        sampling = self.task.sampling
        if not sampling.greedy:
            exponentials = Noise(seed).exponentials(integers([0]), integers([[len(known)]]), len(logits))[0, 0]
            logits = sampling.temperature * (probabilities(logits, sampling).log() - exponentials.log())
        return float(lead(logits))


@dataclass(frozen=True, slots=True)
class Difference:
    """The place where a contender's tokens first differ from the reference's, and the target's gap there; see
    Comparison.gap()."""

    prompt: str
    position: int
    gap: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """A contender's texts compared with the reference's. texts: how many prompts both have finished. bound: whether the
    texts must be the same. A peer rounds in its own way, so its texts may differ."""

    contender: str
    texts: int
    differences: tuple[Difference, ...]
    bound: bool = True

    @property
    def same(self) -> int:
        """How many texts are the same as the reference's."""
        return self.texts - len(self.differences)

    @property
    def unexplained(self) -> int:
        """How many texts differ in a way that rounding can't explain."""
        return sum(not each.gap <= NEAR_TIE for each in self.differences)  # NaN is no near-tie


def agreements(comparison: Comparison, rows: list[Row], prompts: list[Prompt]) -> list[Agreement]:
    """The Agreement of each contender that must give the reference's tokens, and of each peer."""
    task = comparison.task
    said = {(row["contender"], row["prompt"]): row["tokens"] for row in rows}
    found = []
    for name in (*task.bound, *(name for name in comparison.contenders if name in PEERS)):
        texts, differences = 0, []
        for index, prompt in enumerate(prompts):
            tokens, wanted = said.get((name, prompt.id)), said.get((task.reference, prompt.id))
            if tokens is None or wanted is None:
                continue
            texts += 1
            apart = first_difference(tokens, wanted)
            if apart is not None:
                gap = comparison.gap(prompt, wanted[:apart], task.seed_of(index))
                differences.append(Difference(prompt.id, apart, gap))
        found.append(Agreement(name, texts, tuple(differences), name in task.bound))
    return found
