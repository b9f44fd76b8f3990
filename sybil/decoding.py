"""The one loop: propose -> target forward -> verify -> commit. Autoregressive decoding is gamma 0."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sybil import verification
from sybil.clock import Clock
from sybil.drafting import Context, Drafter, DrafterFactory, Outcome, Proposal
from sybil.drafting.window import Window, window_named
from sybil.errors import CacheOutOfStep, EmptyPrompt, InvalidSetting, NumericalFailure, PromptTooLong
from sybil.models import Model, prefill
from sybil.results import FinishReason, Generation, Stats, Step
from sybil.sampling import Noise, likeliest, probabilities, process
from sybil.settings import BY_ROW, Settings
from sybil.stopping import Stops
from sybil.text import decode, encode
from sybil.transfer import upload
from sybil.verification import Proposed, Rule

Inputs = str | Sequence[str] | Sequence[Tensor] | Tensor


class Decoder:
    """A target, whatever drafts for it, and the tokenizer both share. Made by sybil.load."""

    def __init__(
        self,
        target: Model,
        draft: DrafterFactory | None = None,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.target, self.draft, self.tokenizer, self.eos_token_ids = target, draft, tokenizer, eos_token_ids

    @property
    def models(self) -> tuple[Model, ...]:
        """The target, and those of the draft."""
        return (self.target, *(() if self.draft is None else self.draft.models))

    def without_draft(self) -> Decoder:
        """The same target decoding autoregressively."""
        return Decoder(self.target, None, self.tokenizer, self.eos_token_ids)

    def generate(self, inputs: Inputs, *, streamer: Any = None, **settings: Any) -> Generation:
        """Generate after inputs: a string, a list of strings, a list of 1-d LongTensors, or (batch, n).

        settings: the fields of Settings. streamer: transformers' (put, end), for a single row.
        Raises the errors of sybil.errors; nothing has been generated then."""
        run = self._run(inputs, settings)
        if streamer is not None:
            if len(run.rows) != 1:
                raise InvalidSetting(f"streamer is set with {len(run.rows)} rows: stream one prompt at a time")
            streamer.put(torch.tensor([run.rows[0].prompt]))
        steps = []
        for step in run:
            steps.append(step)
            if streamer is not None:
                streamer.put(torch.tensor(step.tokens[0]))
        if streamer is not None:
            streamer.end()
        text = [decode(self.tokenizer, row.new) for row in run.rows] if self.tokenizer else []
        reasons = tuple(row.finished or "length" for row in run.rows)
        return Generation([torch.tensor(row.new) for row in run.rows], text, reasons, Stats.of(steps))

    def stream(self, inputs: Inputs, **settings: Any) -> Iterator[Step]:
        """generate(), a Step at a time. Settings are checked at once; leaving early is fine."""
        return iter(self._run(inputs, settings))

    def _run(self, inputs: Inputs, settings: dict[str, Any]) -> _Run:
        unknown = settings.keys() - Settings.__dataclass_fields__.keys()
        if unknown:
            known = ", ".join(Settings.__dataclass_fields__)
            raise InvalidSetting(f"unknown setting {', '.join(sorted(unknown))}: the settings are {known}")
        chosen = Settings(**{name: value for name, value in settings.items() if value is not None})
        prompts = [prompt for prompt in self._encode(inputs) for _ in range(chosen.num_return_sequences)]
        if len(prompts) > 1 and BY_ROW in {type(each).__name__ for each in chosen.logits_processor}:
            raise InvalidSetting(
                f"{BY_ROW} asks for its row's number, and there are {len(prompts)} rows: generate one prompt at a "
                "time, or by model.generate(custom_generate=sybil.custom_generate)"
            )
        return _Run(self, prompts, chosen)

    def _encode(self, inputs: Inputs) -> list[list[int]]:
        if isinstance(inputs, str):
            inputs = [inputs]
        if isinstance(inputs, Mapping):
            raise InvalidSetting(
                "inputs is a mapping: pass its input_ids, a list of 1-d LongTensors where rows are padded"
            )
        prompts: list[list[int]] = []
        for item in inputs:
            if isinstance(item, Tensor):
                if item.ndim != 1 or item.is_floating_point():
                    raise InvalidSetting(
                        f"inputs holds a tensor of shape {tuple(item.shape)} and {item.dtype}: "
                        "pass 1-d LongTensors, or one of shape (batch, n)"
                    )
                prompts.append(item.tolist())
            elif not isinstance(item, str):
                raise InvalidSetting(
                    f"inputs holds {item!r}: pass strings, 1-d LongTensors, or a (batch, n) LongTensor"
                )
            elif self.tokenizer is None:
                raise InvalidSetting(
                    "inputs are text, but the decoder has no tokenizer: pass token ids, or load() with tokenizer="
                )
            elif not item.isascii() and any("\ud800" <= letter <= "\udfff" for letter in item):
                raise InvalidSetting("the prompt holds bytes that are no UTF-8 text: give it in UTF-8")
            else:
                prompts.append(encode(self.tokenizer, item))
        if not prompts:
            raise EmptyPrompt("inputs is empty: give at least one prompt")
        for prompt in prompts:
            self._check(prompt)
        return prompts

    def _check(self, prompt: list[int]) -> None:
        if not prompt:
            raise EmptyPrompt("the prompt has 0 tokens: give at least 1 to continue from")
        if len(prompt) >= self.target.context:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens and the model's context is {self.target.context}: "
                f"shorten it to at most {self.target.context - 1}"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.target.vocab_size:
            raise InvalidSetting(
                f"the prompt has token ids from {min(prompt)} to {max(prompt)} and the target's vocabulary is "
                f"0 to {self.target.vocab_size - 1}: encode it with the target's tokenizer"
            )


@dataclass(slots=True)
class _Row:
    """One sequence of a batch. limit: how many tokens it may have, prompt included."""

    prompt: list[int]
    limit: int
    at_limit: FinishReason
    new: list[int] = field(default_factory=list)
    finished: FinishReason | None = None

    @property
    def last(self) -> int:
        return self.new[-1] if self.new else self.prompt[-1]

    @property
    def room(self) -> int:
        return 0 if self.finished else self.limit - len(self.prompt) - len(self.new)


class _Run:
    """A generation under way: what is committed, the target's cache, the drafter."""

    def __init__(self, decoder: Decoder, prompts: list[list[int]], settings: Settings) -> None:
        self.target, self.settings, self.sampling = decoder.target, settings, settings.sampling()
        # plain sampling is the coupled rule without a proposal: the same tokens for the same seed
        self.rule: Rule = verification.rule_named(settings.rule if decoder.draft else "coupled")
        self.window: Window = window_named(settings.window)(len(prompts), settings.gamma if decoder.draft else 0)
        self.stops = _stops(decoder, settings)
        self.rows = []
        for prompt in prompts:
            wanted, possible = len(prompt) + settings.max_new_tokens, self.target.context
            at_limit: FinishReason = "length" if wanted <= possible else "context"
            self.rows.append(_Row(prompt, min(wanted, possible), at_limit))

        capacity = max(row.limit for row in self.rows) + self.window.most + 1
        tokens = torch.zeros(len(prompts), capacity, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        seed = _fresh_seed(self.target) if settings.seed is None else settings.seed
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.context = Context(tokens, lengths, Noise(seed), least_confidence=self.window.least_confidence)
        self.committed = tokens.numpy()  # the context's own memory: writing there costs a tenth of torch's indexing
        self.cache = self.target.new_cache(len(prompts), capacity)
        self.drafter: Drafter | None = None
        if decoder.draft:
            self.drafter = decoder.draft(len(prompts), capacity, self.target.vocab_size, self.sampling)

    def __iter__(self) -> Iterator[Step]:
        clock = Clock(self.target.device)
        self._prefill()
        clock.lap("prefill")
        while any(row.room for row in self.rows):
            yield self._round(clock)
            clock.restart()

    @torch.inference_mode()
    def _prefill(self) -> None:
        prefill(self.target, self.cache, self.context.tokens, self.context.lengths - 1)

    @torch.inference_mode()
    def _round(self, clock: Clock) -> Step:
        """Propose, verify, judge, commit. limits: how many tokens each row may be offered; proposed: how many it was;
        accepted: how many of those the rule kept."""
        limits = [min(size, max(row.room - 1, 0)) for size, row in zip(self.window.sizes, self.rows, strict=True)]
        proposal = self._propose(limits)
        proposed = [min(pair) for pair in zip(limits, proposal.counts, strict=True)]
        clock.lap("draft")

        logits = self._verify(proposal.tokens)  # (batch, gamma + 1, vocab)
        clock.lap("verify")

        blocks = self._judge(logits, proposal.tokens.to(logits.device), proposal.probs, proposed)
        clock.lap("sample")

        kept = self._commit(blocks)
        accepted = [len(block) - 1 for block in blocks]
        self.window.observe(accepted, proposed)
        if self.drafter:
            self.drafter.observe(Outcome(accepted, self.context.lengths))
        clock.lap("other")
        return Step(
            tokens=tuple(tokens for tokens, _ in kept),
            accepted=tuple(accepted for _, accepted in kept),
            proposed=tuple(proposed),
            finished=tuple(row.finished for row in self.rows),
            timings=clock.timings(),
        )

    def _propose(self, limits: list[int]) -> Proposal:
        """At most limits tokens a row. Where the rule is coupled, the drafter gets the target's noise to draw with."""
        context, gamma = self.context, max(limits)
        context.limits = limits
        if self.rule is verification.coupled and not self.sampling.greedy:
            context.exponentials = upload(context.race_noise(gamma + 1, self.target.vocab_size), self.target.device)
        if self.drafter is None or not gamma:
            return Proposal.nothing(len(self.rows))
        return self.drafter.propose(context, gamma)

    def _verify(self, tokens: Tensor) -> Tensor:
        """The target's logits (batch, gamma + 1, vocab) after each row's last token and after each of tokens (batch,
        gamma), in one forward."""
        held, due = self.cache.lengths.tolist(), [length - 1 for length in self.context.lengths.tolist()]
        if held != due:
            raise CacheOutOfStep(
                f"the target's cache holds {held} tokens where {due} are due: "
                "this is a defect of Sybil, please report it"
            )
        last = upload(torch.tensor([[row.last] for row in self.rows]), tokens.device)
        return self.target.forward(torch.cat([last, tokens], 1), self.cache)

    def _judge(
        self, logits: Tensor, tokens: Tensor, draft_probs: Tensor | None, proposed: list[int]
    ) -> list[list[int]]:
        """What each row gains of a proposal of tokens (batch, gamma): those accepted, and the next token.

        All that the host must know comes in one transfer: on a GPU the only time in a round that it waits."""
        gamma = tokens.shape[1]
        if self.sampling.processors:
            here = tokens.cpu()
            prefixes = [torch.cat(pair) for pair in zip(self.context.prefixes(), here, strict=True)]
            logits = process(logits, prefixes, self._wanted(here, proposed), self.sampling.processors)
        if self.sampling.greedy:
            rows = torch.cat([tokens, likeliest(logits)], 1).tolist()
            verdicts = [verification.greedy(row[:n], row[gamma:]) for row, n in zip(rows, proposed, strict=True)]
            return [[*row[:n], following] for row, (n, following) in zip(rows, verdicts, strict=True)]
        noise = self.context.exponentials
        if noise is None:
            noise = upload(self.context.uniforms(gamma + 1, Noise.JUDGE), logits.device)
        if draft_probs is not None:
            draft_probs = draft_probs.to(logits.device)
        target_probs = probabilities(logits, self.sampling)
        offer = Proposed(tokens, draft_probs, target_probs, upload(torch.tensor(proposed), logits.device))
        verdict = self.rule(offer, noise[:, : gamma + 1])
        rows = torch.cat([verdict.accepted[:, None], verdict.next_token[:, None], tokens], 1).tolist()
        return [[*row[2 : 2 + row[0]], row[1]] for row in rows]

    def _wanted(self, tokens: Tensor, proposed: list[int]) -> Tensor:
        """(batch, gamma + 1), True where plain decoding could come to stand, and processors be asked: not in a row
        that has ended, not beyond what is proposed, not after a proposed end token."""
        wanted = torch.arange(tokens.shape[1] + 1) <= torch.tensor(proposed)[:, None]
        wanted &= torch.tensor([row.room > 0 for row in self.rows])[:, None]
        if self.stops.eos:
            ended = torch.isin(tokens, torch.tensor(sorted(self.stops.eos))).cumsum(1) > 0
            wanted[:, 1:] &= ~ended
        return wanted

    def _commit(self, blocks: list[list[int]]) -> list[tuple[tuple[int, ...], int]]:
        """Append what each row gained, up to its stop; (tokens, how many of them were proposed) a row."""
        lengths = self.context.lengths.tolist()
        gained: list[tuple[tuple[int, ...], int]] = []
        for index, (row, block) in enumerate(zip(self.rows, blocks, strict=True)):
            if not row.room:
                gained.append(((), 0))
                continue
            accepted = len(block) - 1
            broken = block[-1] < 0  # there was nothing to draw it from
            count, row.finished = self.stops.keep(row.prompt, row.new, block[:-1] if broken else block, index)
            block = block[:count]
            if broken and not row.finished:
                raise NumericalFailure(
                    "the model's logits hold NaN or infinity, so there is no distribution to draw from: "
                    "check its weights, or load it with dtype=torch.float32"
                )
            row.new += block
            self.committed[index, lengths[index] : lengths[index] + count] = block
            lengths[index] += count
            if not row.room:
                row.finished = row.finished or row.at_limit
            gained.append((tuple(block), min(accepted, count)))
        self.context.lengths = torch.tensor(lengths)
        self.cache.lengths = self.context.lengths - 1
        return gained


def _stops(decoder: Decoder, settings: Settings) -> Stops:
    eos = settings.eos_token_id
    ids = decoder.eos_token_ids if eos is None else frozenset([eos] if isinstance(eos, int) else eos)
    strings = settings.stop_strings or ()
    strings = (strings,) if isinstance(strings, str) else tuple(strings)
    if strings and decoder.tokenizer is None:
        raise InvalidSetting("stop_strings are set, but the decoder has no tokenizer: load() with tokenizer=")
    if "" in strings:
        raise InvalidSetting("stop_strings holds '', which every text contains: leave it out")
    return Stops(ids, strings, tuple(settings.stopping_criteria), decoder.tokenizer)


def _fresh_seed(target: Model) -> int:
    seeds = [secrets.randbits(63)]
    if getattr(target, "is_shared_by_ranks", False):  # which must draw the same tokens
        torch.distributed.broadcast_object_list(seeds, src=0)
    return seeds[0]
