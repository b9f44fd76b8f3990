"""The decoding loop: propose -> target forward -> verify -> commit. Autoregressive decoding is this loop with gamma
0."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sybil import verification
from sybil.allocation import as_out_of_memory, taking
from sybil.arguments import check_streamer, strings
from sybil.chat import ChatTemplate
from sybil.clock import Clock
from sybil.drafting import Context, Drafter, DrafterFactory, Generating, Outcome, Proposal
from sybil.drafting.auto import Known, window_for
from sybil.errors import CacheOutOfStep, InvalidSetting
from sybil.inputs import Inputs, prompts_of
from sybil.lossy import Lossy, rule_named
from sybil.models import Model, prefill
from sybil.noise import Noise
from sybil.results import FinishReason, Generation, Stats, Step
from sybil.sampling import likeliest, no_distribution, probabilities, process
from sybil.settings import BY_ROW, MOST, Settings, blamed, chosen
from sybil.shaping import sampling
from sybil.stopping import Stops
from sybil.text import decode
from sybil.transfer import CPU, count_to, drawn_at, integers, upload
from sybil.verification import Proposed, Rule


class Decoder:
    """Generates text by a target model, with the help of a drafter if there is one. sybil.load makes a Decoder.

    - draft: makes the drafter of each generation; None for plain autoregressive decoding.
    - tokenizer: the models' own; None where all prompts are token ids.
    - defaults: the settings that a caller leaves out, by their names; sybil.load takes them from the model's own files.
    - chat_template: makes a prompt of messages; None where the model has none."""

    def __init__(
        self,
        target: Model,
        draft: DrafterFactory | None = None,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        defaults: Mapping[str, Any] = MappingProxyType({}),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self.target, self.draft, self.tokenizer, self.eos_token_ids = target, draft, tokenizer, eos_token_ids
        self.chat_template, self._defaults = chat_template, dict(defaults)
        self.costs: Known = {}

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The values of the settings that a caller leaves out, by the settings' names. The end tokens are among
        them."""
        ends = {"eos_token_id": sorted(self.eos_token_ids)} if self.eos_token_ids else {}
        return MappingProxyType({**ends, **self._defaults})

    @property
    def models(self) -> tuple[Model, ...]:
        """The target, then the draft's models if it has any."""
        return (self.target, *(() if self.draft is None else self.draft.models))

    def without_draft(self) -> Decoder:
        """A Decoder with the same target and no draft: it decodes autoregressively."""
        return Decoder(self.target, None, self.tokenizer, self.eos_token_ids, self._defaults, self.chat_template)

    def with_draft(self, draft: DrafterFactory) -> Decoder:
        """A Decoder with the same target and another draft, which must be made for this target."""
        return Decoder(self.target, draft, self.tokenizer, self.eos_token_ids, self._defaults, self.chat_template)

    def without_defaults(self) -> Decoder:
        """A Decoder with the same models and end tokens, and Sybil's own defaults in place of the target's files'."""
        return Decoder(self.target, self.draft, self.tokenizer, self.eos_token_ids, {}, self.chat_template)

    def generate(self, inputs: Inputs, *, streamer: Any = None, **settings: Any) -> Generation:
        """Generate a continuation of each prompt.

        - inputs: a string; a list of messages ({"role", "content"}), from which the chat template makes a prompt; a
          list of several of either, of 1-d LongTensors or of lists of token ids; or a LongTensor (batch, n).
        - streamer: an object with the methods put and end of transformers' streamers; for a single row.
        - settings: the fields of Settings, or transformers' generation_config; `defaults` has those that are left out.

        A prompt has num_return_sequences rows. Raises the errors of sybil.errors, and returns nothing then."""
        run = self._run(inputs, settings)
        check_streamer(streamer, len(run.rows))
        if streamer is not None:
            streamer.put(integers([run.rows[0].prompt]))
        steps = []
        for step in run:
            steps.append(step)
            if streamer is not None:
                streamer.put(integers(step.tokens[0]))
        if streamer is not None:
            streamer.end()
        text = [decode(self.tokenizer, row.new) for row in run.rows] if self.tokenizer else []
        reasons = tuple(row.finished or "length" for row in run.rows)
        tokens, lossless = [integers(row.new) for row in run.rows], not isinstance(run.rule, Lossy)
        return Generation(tokens, text, reasons, Stats.of(steps), lossless)

    def stream(self, inputs: Inputs, **settings: Any) -> Iterator[Step]:
        """generate(), a Step after each round. Settings are checked at the call; the iteration may be left early."""
        return iter(self._run(inputs, settings))

    def _run(self, inputs: Inputs, asked: Mapping[str, Any]) -> _BatchRun:
        try:
            settings = chosen(self.defaults, asked)
            prompts = prompts_of(inputs, self.tokenizer, self.target, self.chat_template)
            return _BatchRun(self, self._rows(prompts, settings), settings)
        except InvalidSetting as error:
            raise blamed(error, self.defaults, asked) from None

    def _rows(self, prompts: list[list[int]], settings: Settings) -> list[list[int]]:
        """The prompt of each row: every prompt num_return_sequences times. Raises InvalidSetting, or OutOfMemory."""
        rows = len(prompts) * settings.num_return_sequences
        longest = min(max(settings.limit(len(prompt)) for prompt in prompts), self.target.context)
        if rows * longest > MOST:
            raise InvalidSetting(
                f"num_return_sequences is {settings.num_return_sequences}, which makes {rows} rows of up to {longest} "
                f"tokens: a batch may have {MOST} tokens, lower it"
            )
        if rows > 1 and BY_ROW in {type(each).__name__ for each in settings.logits_processor}:
            raise InvalidSetting(
                f"{BY_ROW} asks for its row's number, and there are {rows} rows: generate one prompt at a time, or by "
                "model.generate(custom_generate=sybil.custom_generate)"
            )
        with taking(4 * rows * self.target.vocab_size, f"the logits of {rows} rows", self.target.device):
            return [prompt for prompt in prompts for _ in range(settings.num_return_sequences)]


@dataclass(slots=True)
class _Row:
    """One sequence of a batch. limit: the most tokens it may have, prompt included; at_limit: why it ends there."""

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


class _BatchRun:
    """A generation under way: the committed tokens, the target's cache, the drafter."""

    def __init__(self, decoder: Decoder, prompts: list[list[int]], settings: Settings) -> None:
        self.target, self.settings = decoder.target, settings
        self.sampling = sampling(settings, prompts, decoder.target.vocab_size, drawn_at(decoder.target.device))
        # plain sampling is the coupled rule with nothing proposed, so both give the same tokens for the same seed
        self.rule: Rule = rule_named(settings.rule if decoder.draft else "coupled")
        self.window = window_for(settings, decoder.target, decoder.draft, prompts, decoder.costs)
        self.stops = _stops(decoder, settings)
        self.rows = []
        for prompt in prompts:
            wanted, possible = settings.limit(len(prompt)), self.target.context
            at_limit: FinishReason = "length" if wanted <= possible else "context"
            self.rows.append(_Row(prompt, min(wanted, possible), at_limit))

        # a forward takes a row's last token and its proposed ones, which are fewer than it still has room for
        widest = min(self.window.most + 1, max(row.room for row in self.rows))
        capacity = max(row.limit for row in self.rows) + widest
        size = len(prompts) * (8 * capacity + self._bytes_a_logit * widest * self.target.vocab_size)
        with taking(size, f"{len(prompts)} rows of {capacity} tokens, {widest} verified at once,", self.target.device):
            tokens = torch.zeros(len(prompts), capacity, dtype=torch.int64, device=CPU)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = integers(prompt)
        seed = _fresh_seed(self.target) if settings.seed is None else settings.seed
        lengths = integers([len(prompt) for prompt in prompts])
        self.context = Context(tokens, lengths, Noise(seed), least_confidence=self.window.least_confidence)
        self.committed = tokens.numpy()  # the same memory; writing to it takes a tenth of the time of torch's indexing
        self.cache = self.target.new_cache(len(prompts), capacity)
        held = self.cache.lengths.tolist()  # not 0 where a conversation's earlier turns are in the cache
        self.prefilled = tuple(len(prompt) - size for prompt, size in zip(prompts, held, strict=True))
        self.drafter: Drafter | None = None
        if decoder.draft:
            generating = Generating(
                len(prompts), capacity, self.target.vocab_size, self.sampling, self.cache, isinstance(self.rule, Lossy)
            )
            self.drafter = decoder.draft(generating)

    @property
    def _bytes_a_logit(self) -> int:
        """About how many bytes a round holds for each logit: the logit; when sampling, probabilities; noise if
        coupled."""
        if self.sampling.greedy and not isinstance(self.rule, Lossy):
            return 4
        return 32 if self.rule is verification.coupled else 16

    def __iter__(self) -> Iterator[Step]:
        clock = Clock(self.target.device)
        with as_out_of_memory("the generation takes more memory than there is"):
            self._prefill()
            clock.lap("prefill")
            while any(row.room for row in self.rows):
                yield (step := self._round(clock))
                self.prefilled = ()
                clock.restart()
                self.window.observe(step)

    @torch.inference_mode()
    def _prefill(self) -> None:
        prefill(self.target, self.cache, self.context.tokens, self.context.lengths - 1)

    @torch.inference_mode()
    def _round(self, clock: Clock) -> Step:
        """Propose, verify, judge, commit. For each row, limits: how many tokens may be proposed; proposed: how many
        were; accepted: how many of those the rule kept."""
        sources = self.drafter.sources(self.context) if self.drafter else [0] * len(self.rows)
        limits = self.window.sizes(sources, [max(row.room - 1, 0) for row in self.rows])
        proposal = self._propose(limits)
        proposed = [min(pair) for pair in zip(limits, proposal.counts, strict=True)]
        clock.lap("draft")

        tokens = upload(proposal.tokens, self.target.device)  # before the forward: a copy after it would wait for it
        logits = self._verify(tokens)  # (batch, gamma + 1, vocab)
        clock.lap("verify")

        blocks = self._judge(logits, upload(tokens, logits.device), proposal.probs, proposed)
        clock.lap("sample")

        kept = self._commit(blocks)
        accepted = [len(block) - 1 for block in blocks]
        if self.drafter and any(limits):  # else the drafter wasn't asked for a proposal
            self.drafter.observe(Outcome(accepted, self.context.lengths))
        clock.lap("other")
        return Step(
            tokens=tuple(tokens for tokens, _ in kept),
            accepted=tuple(accepted for _, accepted in kept),
            proposed=tuple(proposed),
            finished=tuple(row.finished for row in self.rows),
            timings=clock.timings(),
            prefilled=self.prefilled,
        )

    def _propose(self, limits: list[int]) -> Proposal:
        """At most limits[row] proposed tokens for each row. By the rule `coupled` the drafter gets the target's
        noise."""
        context, gamma = self.context, max(limits)
        context.limits = limits
        asked = self.drafter if gamma else None
        if self.rule is verification.coupled and not self.sampling.greedy:
            noise = context.race_noise(gamma + 1, self.target.vocab_size)
            # if no drafter draws with the noise, it is made later, while the target's forward is under way
            context.exponentials = noise if asked is None else noise.on(drawn_at(self.target.device))
        return Proposal.nothing(len(self.rows)) if asked is None else asked.propose(context, gamma)

    def _verify(self, tokens: Tensor) -> Tensor:
        """The target's logits (batch, gamma + 1, vocab) after each row's last token and after each of tokens (batch,
        gamma), in one forward."""
        held, due = self.cache.lengths.tolist(), [length - 1 for length in self.context.lengths.tolist()]
        if held != due:
            raise CacheOutOfStep(
                f"the target's cache holds {held} tokens where {due} are due: "
                "this is a defect of Sybil, please report it"
            )
        last = upload(integers([[row.last] for row in self.rows]), tokens.device)
        return self.target.forward(torch.cat([last, tokens], 1), self.cache)

    def _judge(
        self, logits: Tensor, tokens: Tensor, draft_probs: Tensor | None, proposed: list[int]
    ) -> list[list[int]]:
        """The tokens that each row gains from a proposal of tokens (batch, gamma): the accepted ones and the next
        token. On a GPU a round waits only once: for the one transfer of all that the host must know."""
        gamma = tokens.shape[1]
        if self.sampling.processors:
            here = tokens.cpu()
            prefixes = [torch.cat(pair) for pair in zip(self.context.prefixes(), here, strict=True)]
            logits = process(logits, prefixes, self._wanted(here, proposed), self.sampling.processors)
        if self.sampling.greedy:
            rows = torch.cat([tokens, likeliest(logits)], 1).tolist()
            if isinstance(self.rule, Lossy):
                kept = self.rule.greedily(tokens, logits, proposed)
                return [[*row[:n], row[gamma + n]] for row, n in zip(rows, kept, strict=True)]
            verdicts = [verification.greedy(row[:n], row[gamma:]) for row, n in zip(rows, proposed, strict=True)]
            return [[*row[:n], following] for row, (n, following) in zip(rows, verdicts, strict=True)]
        noise = self.context.exponentials
        if noise is None:
            noise = upload(self.context.uniforms(gamma + 1, Noise.JUDGE), logits.device)
        draft_probs = None if draft_probs is None else upload(draft_probs, logits.device)
        target_probs = probabilities(logits, self.sampling)
        offer = Proposed(tokens, draft_probs, target_probs, upload(integers(proposed), logits.device))
        verdict = self.rule(offer, noise[:, : gamma + 1])
        rows = torch.cat([verdict.accepted[:, None], verdict.next_token[:, None], tokens], 1).tolist()
        return [[*row[2 : 2 + row[0]], row[1]] for row in rows]

    def _wanted(self, tokens: Tensor, proposed: list[int]) -> Tensor:
        """(batch, gamma + 1), True where processors must be asked. These are the places that plain decoding could
        reach: none in a row that has ended, beyond the proposed tokens, or after a proposed end token."""
        wanted = count_to(tokens.shape[1] + 1) <= integers(proposed)[:, None]
        wanted &= integers([row.room for row in self.rows])[:, None] > 0
        if self.stops.eos:
            ended = torch.isin(tokens, integers(sorted(self.stops.eos))).cumsum(1) > 0
            wanted[:, 1:] &= ~ended
        return wanted

    def _commit(self, blocks: list[list[int]]) -> list[tuple[tuple[int, ...], int]]:
        """Append each row's new tokens up to its stop. Gives (tokens, how many of them were proposed) for each row."""
        lengths = self.context.lengths.tolist()
        gained: list[tuple[tuple[int, ...], int]] = []
        for index, (row, block) in enumerate(zip(self.rows, blocks, strict=True)):
            if not row.room:
                gained.append(((), 0))
                continue
            accepted = len(block) - 1
            broken = block[-1] < 0  # -1: the row's logits made no distribution
            count, row.finished = self.stops.keep(row.prompt, row.new, block[:-1] if broken else block, index)
            block = block[:count]
            if broken and not row.finished:
                raise no_distribution(bool(self.sampling.processors))
            row.new += block
            self.committed[index, lengths[index] : lengths[index] + count] = block
            lengths[index] += count
            if not row.room:
                row.finished = row.finished or row.at_limit
            gained.append((tuple(block), min(accepted, count)))
        self.context.lengths = integers(lengths)
        self.cache.lengths = self.context.lengths - 1
        return gained


def _stops(decoder: Decoder, settings: Settings) -> Stops:
    sought, criteria = strings("stop_strings", settings.stop_strings), tuple(settings.stopping_criteria)
    if sought and decoder.tokenizer is None:
        raise InvalidSetting("stop_strings are set, but the decoder has no tokenizer: load() with tokenizer=")
    if settings.max_time is not None:
        from transformers import MaxTimeCriteria

        criteria = (MaxTimeCriteria(settings.max_time), *criteria)
    return Stops(settings.end_tokens, sought, criteria, decoder.tokenizer)


def _fresh_seed(target: Model) -> int:
    seeds = [secrets.randbits(63)]
    if getattr(target, "is_shared_by_ranks", False):  # all ranks must draw the same tokens
        torch.distributed.broadcast_object_list(seeds, src=0)
    return seeds[0]
