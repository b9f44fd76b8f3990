"""Faults, each planted by patching Sybil: those of other decoders and four suspects, numbered as in docs/quality.md.

S1 to S4 are what the author of Sybil's first prototype suspected when its text became worse as it became faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from counting import VOCAB
from torch import Tensor

from sybil import decoding, fit, residual, verification
from sybil.decoding import _BatchRun, _Row
from sybil.drafting import (
    Context,
    Generating,
    LookupDrafter,
    ModelDrafter,
    Outcome,
    Proposal,
    SelfDrafter,
    hybrid,
    surfaces,
)
from sybil.drafting import model as drafting_model
from sybil.drafting.cascade import _Proposing
from sybil.drafting.reader import ReaderCache, RetokenizingReader
from sybil.drafting.vocabulary import Intersection
from sybil.errors import VocabularyMismatch
from sybil.models import rounding
from sybil.models.operators import cache
from sybil.models.operators.cache import CacheLayout, KVCache
from sybil.models.operators.transformer import Transformer
from sybil.noise import Exponentials, Noise
from sybil.results import FinishReason
from sybil.sampling import Sampling, draw
from sybil.stopping import Stops
from sybil.transfer import back
from sybil.verification import Proposed, Rule, Verdict

NEVER = 2.0  # a uniform that no probability exceeds


@dataclass(frozen=True)
class Fault:
    """A fault, and how it is planted. number: with a letter if a fault has several shapes. seen: where the fault was
    met, "" if nowhere in particular. plant: puts the fault into the library until the patch is undone. caught_by: the
    checks that must find it."""

    number: str
    name: str
    seen: str
    plant: Callable[[pytest.MonkeyPatch], None]
    caught_by: tuple[str, ...]


FAULTS: list[Fault] = []


def fault(number: str, name: str, seen: str, *caught_by: str) -> Callable[..., Any]:
    """Register the function that plants a fault."""

    def enter(plant: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
        FAULTS.append(Fault(number, name, seen, plant, caught_by))
        return plant

    return enter


def wrong_rule(number: str, name: str, seen: str, *caught_by: str, rule: str = "token") -> Callable[[Rule], Rule]:
    """Register a rule that takes the place of one of the lossless rules."""

    def enter(wrong: Rule) -> Rule:
        fault(number, name, seen, *caught_by)(lambda patch: patch.setitem(verification.RULES, rule, wrong))
        return wrong

    return enter


def at_tokens(proposed: Proposed) -> tuple[Tensor, Tensor]:
    """The target's and the draft's probabilities of the proposed tokens."""
    target_at, draft_at = verification._at_tokens(proposed)
    return back(target_at), back(draft_at)


def judged(proposed: Proposed, noise: Tensor, kept: Tensor) -> Verdict:
    """The token rule's verdict with other tokens kept, (batch, gamma) of booleans."""
    inside = torch.arange(kept.shape[1]) < proposed.counts[:, None]
    accepted = (kept & inside).long().cumprod(1).sum(1)
    return Verdict(accepted, verification._next_token(proposed, accepted, 1.0, noise[:, 0]))


def from_target(proposed: Proposed, places: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (batch,) drawn from the target's distributions at those places."""
    return draw(proposed.target_probs[torch.arange(len(places)), places], uniforms)


# what the draft draws, and what it says it drew from


def redrawn(patch: pytest.MonkeyPatch, other: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The draft draws its tokens by other(probs, tokens it would have drawn), and hands the same probs over."""
    original = ModelDrafter._draws

    def draws(self: ModelDrafter, *arguments: Any) -> Any:
        drawn = original(self, *arguments)
        return drawn and (lambda probs, index: other(probs, drawn(probs, index)))

    patch.setattr(ModelDrafter, "_draws", draws)


@fault("1", "draft takes the argmax, ratio uses its softmax", "transformers #32867", "proposals", "counts", "verify")
def _(patch: pytest.MonkeyPatch) -> None:
    redrawn(patch, lambda probs, drawn: probs.argmax(-1))


def drawn_through(patch: pytest.MonkeyPatch, changed: Callable[[Tensor], Tensor]) -> None:
    """The draft draws from changed(probs), but hands probs over."""
    original = ModelDrafter._draws

    def draws(self: ModelDrafter, *arguments: Any) -> Any:
        drawn = original(self, *arguments)
        return drawn and (lambda probs, index: drawn(changed(probs), index))

    patch.setattr(ModelDrafter, "_draws", draws)


@fault("2a", "draft draws at another temperature than its probabilities", "transformers #47932", "proposals", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    drawn_through(patch, lambda probs: probs.sqrt() / probs.sqrt().sum(-1, keepdim=True))


@fault("2b", "draft draws from its top 2, hands over all", "transformers #47932", "proposals", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    drawn_through(patch, lambda probs: probs.where(probs >= probs.topk(2).values[:, -1:], 0.0))


@fault("2c", "top-p is read by the draft's draw, and not by what it hands over", "", "proposals")
def _(patch: pytest.MonkeyPatch) -> None:
    original, seen = drafting_model.probabilities, list[Tensor]()

    def unread(logits: Tensor, sampling: Sampling) -> Tensor:
        seen[:] = [original(logits, sampling)]
        return original(logits, replace(sampling, top_p=1.0))

    patch.setattr(drafting_model, "probabilities", unread)
    drawn_through(patch, lambda probs: seen[-1])


# noise


@wrong_rule("3a", "one uniform for every place of a block", "feifeibear", "proof")
def one_uniform(proposed: Proposed, noise: Tensor) -> Verdict:
    return verification.token(proposed, torch.cat([noise[:, :1], noise[:, 1:2].expand(-1, noise.shape[1] - 1)], 1))


@fault("3b", "the same uniforms in every round", "feifeibear", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    original = Noise.uniforms

    def reseeded(self: Noise, rows: Tensor, positions: Tensor, count: int, use: int) -> Tensor:
        return original(self, rows, torch.zeros_like(positions), count, use)

    patch.setattr(Noise, "uniforms", reseeded)


@fault("3c", "the draft's uniforms judge its own tokens", "vLLM", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Noise, "JUDGE", Noise.PROPOSE)


@fault("3d", "shared noise keyed by place in the block", "vLLM", "seeds")
def _(patch: pytest.MonkeyPatch) -> None:
    def race_noise(self: Context, count: int, vocab: int) -> Exponentials:
        return replace(original(self, count, vocab), positions=torch.arange(count).expand(len(self.lengths), -1))

    original = Context.race_noise

    patch.setattr(Context, "race_noise", race_noise)


@fault("3e", "block rule: a rejected place's uniforms come again, keyed by the token's position", "", "blocks")
def _(patch: pytest.MonkeyPatch) -> None:
    original = Context.uniforms

    def uniforms(self: Context, count: int, use: int) -> Tensor:
        first = 0 if use == Noise.PROPOSE else 1  # a judge's first uniform draws the next token
        rows, index = torch.arange(len(self.lengths)), slice(first, first + 1)
        own = [self.noise.uniforms(rows, self.lengths + i, 2, use)[:, index] for i in range(count - first)]
        return torch.cat([original(self, first, use), *own], 1)

    patch.setattr(Context, "uniforms", uniforms)


@fault("3f", "draft and target draw from one stream: a token and what takes its place", "llama.cpp #27694", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    original, drew = Context.uniforms, list[Tensor]()

    def uniforms(self: Context, count: int, use: int) -> Tensor:
        found = original(self, count, use)
        if use == Noise.PROPOSE:
            drew[:] = [found]
        return found

    def token(proposed: Proposed, noise: Tensor) -> Verdict:
        accepted, gamma = verification.token(proposed, noise).accepted, proposed.tokens.shape[1]
        own = torch.cat([drew[-1][:, :gamma], noise[:, :1]], 1) if gamma and drew else noise[:, :1].expand_as(noise)
        following = own.gather(1, accepted[:, None])[:, 0]
        return Verdict(accepted, verification._next_token(proposed, accepted, 1.0, following))

    patch.setattr(Context, "uniforms", uniforms)
    patch.setitem(verification.RULES, "token", token)


# the rule


@wrong_rule("4", "a rejection draws from the target, not the residual", "", "proof", "counts")
def from_the_target(proposed: Proposed, noise: Tensor) -> Verdict:
    accepted = verification.token(proposed, noise).accepted
    return Verdict(accepted, from_target(proposed, accepted, noise[:, 0]))


@wrong_rule("5a", "the bonus token comes from one place too early", "", "proof", "counts")
def bonus_too_early(proposed: Proposed, noise: Tensor) -> Verdict:
    verdict = verification.token(proposed, noise)
    early = from_target(proposed, (verdict.accepted - 1).clamp(min=0), noise[:, 0])
    return Verdict(verdict.accepted, torch.where(verdict.accepted == proposed.counts, early, verdict.next_token))


@wrong_rule("5b", "the recovered token comes from one place too late", "", "proof", "counts")
def recovered_too_late(proposed: Proposed, noise: Tensor) -> Verdict:
    verdict = verification.token(proposed, noise)
    late = from_target(proposed, (verdict.accepted + 1).clamp(max=noise.shape[1] - 1), noise[:, 0])
    return Verdict(verdict.accepted, torch.where(verdict.accepted < proposed.counts, late, verdict.next_token))


@fault("5c", "greedily, the next token comes from one place too early", "", "greedy", "stops", "processors")
def _(patch: pytest.MonkeyPatch) -> None:
    def early(proposed: Sequence[int], chosen: Sequence[int]) -> tuple[int, int]:
        accepted, _ = original(proposed, chosen)
        return accepted, chosen[max(accepted - 1, 0)]

    original = verification.greedy
    patch.setattr(verification, "greedy", early)


@fault("5d", "a rejection is handled one round late", "", "counts", "verify")
def _(patch: pytest.MonkeyPatch) -> None:
    original, late = _BatchRun.__init__, list[Tensor]()

    def start(self: _BatchRun, *arguments: Any) -> None:
        late.clear()
        original(self, *arguments)

    def token(proposed: Proposed, noise: Tensor) -> Verdict:
        before = late[-1] if late else proposed.counts
        late[:] = [verification.token(proposed, noise).accepted]
        return judged(proposed, noise, torch.arange(proposed.tokens.shape[1]) < before[:, None])

    patch.setattr(_BatchRun, "__init__", start)
    patch.setitem(verification.RULES, "token", token)


@wrong_rule("6", "min(1, draft(x) / target(y)), y an independent draw", "OpenVINO GenAI", "proof", "counts", "verify")
def independent_draw(proposed: Proposed, noise: Tensor) -> Verdict:
    other = draw(proposed.target_probs, (noise * 1024) % 1)  # (batch, gamma + 1), from the noise's lower digits
    target_at = proposed.target_probs.gather(-1, other[..., None])[:, :-1, 0]
    draft_at = at_tokens(proposed)[1]
    accepted = judged(proposed, noise, noise[:, 1:] * target_at < draft_at).accepted
    return Verdict(accepted, other.gather(1, accepted[:, None])[:, 0])


@fault("7", "greedily, softmax ratios decide", "romsto", "greedy", "verify")
def _(patch: pytest.MonkeyPatch) -> None:
    processed, propose, judge = ModelDrafter._processed, ModelDrafter.propose, _BatchRun._judge
    seen: list[Tensor] = []

    def recorded(self: ModelDrafter, *arguments: Any) -> Tensor:
        seen.append(processed(self, *arguments))
        return seen[-1]

    def proposing(self: ModelDrafter, context: Context, gamma: int) -> Proposal:
        seen.clear()
        proposal = propose(self, context, gamma)
        return replace(proposal, probs=torch.stack(seen, 1).softmax(-1)) if seen else proposal

    def judging(
        self: _BatchRun, logits: Tensor, tokens: Tensor, probs: Tensor | None, counts: list[int]
    ) -> list[list[int]]:
        if probs is None or not self.sampling.greedy:
            return judge(self, logits, tokens, probs, counts)
        proposed = Proposed(tokens, probs, logits.softmax(-1), torch.tensor(counts))
        accepted = verification.token(proposed, self.context.uniforms(tokens.shape[1] + 1, Noise.JUDGE)).accepted
        following = logits.argmax(-1).gather(1, accepted[:, None]).tolist()
        return [[*row[:n], *last] for row, n, last in zip(tokens.tolist(), accepted.tolist(), following, strict=True)]

    patch.setattr(ModelDrafter, "_processed", recorded)
    patch.setattr(ModelDrafter, "propose", proposing)
    patch.setattr(_BatchRun, "_judge", judging)


@wrong_rule("14a", "lenience: min(1, 1.5 target(x) / draft(x))", "presented as lossless", "proof", "counts")
def lenient(proposed: Proposed, noise: Tensor) -> Verdict:
    target_at, draft_at = at_tokens(proposed)
    return judged(proposed, noise, noise[:, 1:] * draft_at < 1.5 * target_at)


@wrong_rule("14b", "typical acceptance", "presented as lossless", "proof", "counts")
def typical(proposed: Proposed, noise: Tensor) -> Verdict:
    probs = proposed.target_probs[:, :-1]
    threshold = (0.3 * torch.special.entr(probs).sum(-1).neg().exp()).clamp(max=0.09)
    return judged(proposed, noise, at_tokens(proposed)[0] > threshold)


@wrong_rule("14c", "an ensemble of target and draft is the target", "presented as lossless", "proof")
def ensemble(proposed: Proposed, noise: Tensor) -> Verdict:
    if proposed.draft_probs is None:
        return verification.token(proposed, noise)
    mixed = proposed.target_probs.clone()
    mixed[:, :-1] = 0.7 * mixed[:, :-1] + 0.3 * proposed.draft_probs
    return verification.token(replace(proposed, target_probs=mixed), noise)


@wrong_rule("15", "block rule, broken off at the first rejection", "vllm-ascend #7807", "proof", "counts", rule="block")
def broken_off(proposed: Proposed, noise: Tensor) -> Verdict:
    gamma = proposed.tokens.shape[1]

    def only(places: Tensor) -> Verdict:
        """block() with every other place refused; places: (batch, gamma) of booleans."""
        return verification.block(proposed, torch.cat([noise[:, :1], noise[:, 1:].where(places, NEVER)], 1))

    alone = torch.eye(gamma, dtype=torch.bool)
    agrees = [only(alone[place].expand_as(proposed.tokens)).accepted == place + 1 for place in range(gamma)]
    run = torch.stack(agrees, 1).cumprod(1).bool() if gamma else torch.zeros_like(proposed.tokens, dtype=torch.bool)
    return only(run)


@fault("19", "residual 0/0 where both distributions agree", "gpt-fast", "equal")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(residual.drawing, "does", lambda rows: False)  # the C code has a residual of its own
    patch.setattr(residual, "unless_nothing", lambda left, target: left / left.sum(-1)[:, None])


# caches and positions


def rolling_back(patch: pytest.MonkeyPatch, seen: Callable[[KVCache], None]) -> None:
    """Call `seen` whenever a cache's lengths become smaller."""
    original = KVCache.__setattr__

    def assign(self: KVCache, name: str, value: Any) -> None:
        if name == "lengths" and hasattr(self, "lengths") and bool((value < self.lengths).any()):
            seen(self)
        original(self, name, value)

    patch.setattr(KVCache, "__setattr__", assign, raising=False)


@fault("8", "keys of rejected tokens stay", "", "cache", "greedy", "verify")
def _(patch: pytest.MonkeyPatch) -> None:
    original = KVCache.write

    def write(self: KVCache, layer: int, keys: Tensor, values: Tensor, layout: CacheLayout) -> tuple[Tensor, Tensor]:
        filled = vars(self).setdefault("filled", torch.zeros(self.keys.shape[:2] + self.keys.shape[3:4]).bool())
        before = self.keys[layer].clone()
        original(self, layer, keys, values, layout)
        held = filled[layer][:, None, :, None]
        self.keys[layer] = torch.where(held, before, self.keys[layer])
        filled[layer].scatter_(1, layout.positions.expand(len(before), -1), True)
        return self.keys[layer][:, :, : layout.end], self.values[layer][:, :, : layout.end]

    patch.setattr(KVCache, "write", write)


@fault("9", "positions off by one after a rejection", "transformers #30042", "cache", "greedy", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    hidden, embed = Transformer._hidden, Transformer._embed
    shifts = [0]
    rolled: list[KVCache] = []
    rolling_back(patch, rolled.append)

    def at_places(self: Transformer, tokens: Tensor, store: KVCache, layout: CacheLayout) -> Tensor:
        shifts[0] = int(any(each is store for each in rolled))
        return hidden(self, tokens, store, layout)

    patch.setattr(Transformer, "_hidden", at_places)
    patch.setattr(Transformer, "_embed", lambda self, tokens, positions: embed(
        self, tokens, (positions + shifts[0]).clamp(max=self.context - 1)))  # fmt: skip


@fault("10", "draft's cache lacks the last token after a full acceptance", "", "cache")
def _(patch: pytest.MonkeyPatch) -> None:
    def observe(self: ModelDrafter, outcome: Outcome) -> None:
        self.cache.lengths = outcome.lengths - 1

    patch.setattr(ModelDrafter, "observe", observe)


@fault("18", "rows see each other's padding", "", "rows", "greedy", "cache", "processors")
def _(patch: pytest.MonkeyPatch) -> None:
    original = cache._mask

    def of_the_longest(positions: Tensor, end: int, window: int | None) -> Tensor:
        return original(positions.amax(0, keepdim=True).expand_as(positions), end, window)

    patch.setattr(cache, "_mask", of_the_longest)


# where a row ends


def asked_at_the_end(patch: pytest.MonkeyPatch, what: str, nothing: Any) -> None:
    """Stop conditions of one kind are asked about only the last token of a block."""
    original = Stops.keep

    def keep(
        self: Stops, prompt: Sequence[int], new: Sequence[int], block: Sequence[int], row: int = 0
    ) -> tuple[int, FinishReason | None]:
        count, reason = original(replace(self, **{what: nothing}), prompt, new, block, row)
        return (count, reason) if reason else (count, self._reason(prompt, [*new, *block], row))

    patch.setattr(Stops, "keep", keep)


@fault("11", "an end token inside a block is passed over", "transformers #47912", "stops", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    asked_at_the_end(patch, "eos", frozenset())


@fault("12a", "stop strings are looked for at a block's end", "transformers #48039", "stops")
def _(patch: pytest.MonkeyPatch) -> None:
    asked_at_the_end(patch, "strings", ())


@fault("12b", "criteria are asked at a block's end", "transformers #48039", "stops")
def _(patch: pytest.MonkeyPatch) -> None:
    asked_at_the_end(patch, "criteria", ())


@fault("17", "max_new_tokens is overshot by a block", "", "stops", "greedy")
def _(patch: pytest.MonkeyPatch) -> None:
    room = _Row.room.fget

    def roomy(self: _Row) -> int:
        return 1_000 if room(self) > 0 else 0

    patch.setattr(_Row, "room", property(roomy))


# what is left out of a proposal


@fault("13", "a drafted token of low confidence is dropped", "", "proposals", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    original = ModelDrafter.propose

    def propose(self: ModelDrafter, context: Context, gamma: int) -> Proposal:
        proposal = original(self, context, gamma)
        if not context.least_confidence:
            return proposal
        return replace(proposal, counts=[count - (0 < count < gamma) for count in proposal.counts])

    patch.setattr(ModelDrafter, "propose", propose)


@fault("16a", "a proposal ends before token 0, taken for padding", "feifeibear", "proposals", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    original = ModelDrafter.propose

    def propose(self: ModelDrafter, context: Context, gamma: int) -> Proposal:
        proposal = original(self, context, gamma)
        ends = [row.index(0) if 0 in row else len(row) for row in proposal.tokens.tolist()]
        return replace(proposal, counts=list(map(min, proposal.counts, ends)))

    patch.setattr(ModelDrafter, "propose", propose)


@fault("16b", "token 0 is taken for none drawn", "feifeibear", "counts", "greedy")
def _(patch: pytest.MonkeyPatch) -> None:
    original = _BatchRun._commit

    def commit(self: _BatchRun, blocks: list[list[int]]) -> Any:
        return original(self, [[*block[:-1], block[-1] or -1] for block in blocks])

    patch.setattr(_BatchRun, "_commit", commit)


# vocabularies


@fault("20a", "padding is compared as tokens", "152,064 tokens against 151,936", "vocabularies")
def _(patch: pytest.MonkeyPatch) -> None:
    original = fit.drafter

    def by_padded_size(target: Any, draft: Any, model: Any, drafting: Any) -> Any:
        if model.vocab_size != drafting.vocab_size:
            raise VocabularyMismatch(f"{model.vocab_size} tokens and {drafting.vocab_size}")
        return original(target, draft, model, drafting)

    patch.setattr(fit, "drafter", by_padded_size)


@fault("20b", "vocabularies of one size are held for the same", "", "vocabularies")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fit, "differing_tokens", lambda one, other: abs(one.get_vocab_size() - other.get_vocab_size()))


@fault("20c", "padded vocabularies are indexed as the same", "152,064 tokens against 151,936", "greedy", "vocabularies")
def _(patch: pytest.MonkeyPatch) -> None:
    original = ModelDrafter.__init__

    def start(self: ModelDrafter, model: Any, generating: Generating, *rest: Any) -> None:
        original(self, model, replace(generating, vocab_size=model.vocab_size), *rest)

    patch.setattr(ModelDrafter, "__init__", start)


# two tokenizers


def masses(patch: pytest.MonkeyPatch) -> list[Tensor]:
    """For each forward of an intersection's draft, the mass that it gives to the tokens of both vocabularies, (batch,
    1)."""
    original, seen = RetokenizingReader.forward, list[Tensor]()

    def forward(self: Intersection, tokens: Tensor, cache: ReaderCache) -> Tensor:
        logits = original(self, tokens, cache)
        seen.append(logits[:, -1].softmax(-1)[:, self._own].sum(-1, keepdim=True))
        return logits

    patch.setattr(RetokenizingReader, "forward", forward)
    return seen


@fault("21a", "an intersection is not renormalised", "", "intersection")
def _(patch: pytest.MonkeyPatch) -> None:
    original, seen = ModelDrafter.propose, masses(patch)

    def propose(self: ModelDrafter, context: Context, gamma: int) -> Proposal:
        seen.clear()
        proposal = original(self, context, gamma)
        return replace(proposal, probs=proposal.probs * torch.stack(seen, 1)) if seen else proposal

    patch.setattr(ModelDrafter, "propose", propose)


@fault("21b", "what only the draft has becomes token 0", "vLLM #38174", "intersection")
def _(patch: pytest.MonkeyPatch) -> None:
    seen = masses(patch)
    none = torch.eye(VOCAB, dtype=torch.float64)[0]
    drawn_through(patch, lambda probs: probs * seen[-1] + none * (1 - seen[-1]) if seen else probs)


@fault("21c", "columns are read in another order than they were written in", "transformers 5.23", "intersection")
def _(patch: pytest.MonkeyPatch) -> None:
    original, seen = ModelDrafter.propose, masses(patch)

    def propose(self: ModelDrafter, context: Context, gamma: int) -> Proposal:
        seen.clear()
        proposal = original(self, context, gamma)
        return replace(proposal, probs=proposal.probs.roll(1, -1)) if seen else proposal

    patch.setattr(ModelDrafter, "propose", propose)


@fault("21d", "a special token is added by every re-encoding", "transformers", "reencoding")
def _(patch: pytest.MonkeyPatch) -> None:
    original = surfaces.encode
    patch.setattr(surfaces, "encode", lambda tokenizer, text, special=True: original(tokenizer, text))


@fault("21e", "the first bytes of a character are lost", "transformers", "reencoding")
def _(patch: pytest.MonkeyPatch) -> None:
    original = surfaces._characters
    patch.setattr(surfaces, "_characters", lambda data: ((text, b"") for text, _ in original(data)))


# the target as its own draft


def scaled_by(patch: pytest.MonkeyPatch, changed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Every block of a copy is kept with changed(scale, minimum)."""
    original = rounding.rounded

    def rounded(weight: Tensor, bits: Any, *rest: Any) -> Tensor:
        numbers = original(weight, bits, *rest)
        kept = numbers.view(len(numbers), -1, rounding.block_bytes(bits))[..., :4]
        scale, least = kept.contiguous().view(torch.float16).float().unbind(-1)
        kept.copy_(torch.stack(changed(scale, least), -1).half().view(torch.uint8))
        return numbers

    patch.setattr(rounding, "rounded", rounded)


@fault("22a", "a wrong scale in the copy", "", "copies")
def _(patch: pytest.MonkeyPatch) -> None:
    scaled_by(patch, lambda scale, least: (scale * 1.05, least))


@fault("22b", "a block's zero point is rounded to a whole step", "", "copies")
def _(patch: pytest.MonkeyPatch) -> None:
    scaled_by(patch, lambda scale, least: (scale, (least / scale).round() * scale))


@fault("23a", "the target's cache counts what the draft wrote", "", "guard")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SelfDrafter, "propose", ModelDrafter.propose)


@fault("23b", "the draft's keys stay in the target's cache", "", "itself")
def _(patch: pytest.MonkeyPatch) -> None:
    propose, write = SelfDrafter.propose, KVCache.write
    drafting: list[SelfDrafter] = []

    def proposing(self: SelfDrafter, context: Context, gamma: int) -> Proposal:
        drafting.append(self)
        try:
            return propose(self, context, gamma)
        finally:
            drafting.pop()

    def written(self: KVCache, layer: int, keys: Tensor, values: Tensor, layout: CacheLayout) -> tuple[Tensor, Tensor]:
        drafted = vars(self).setdefault("drafted", torch.zeros(self.keys.shape[:2] + self.keys.shape[3:4]).bool())
        before = self.keys[layer].clone()
        write(self, layer, keys, values, layout)
        if drafting:
            drafted[layer].scatter_(1, layout.positions.expand(len(before), -1), True)
        else:
            self.keys[layer] = torch.where(drafted[layer][:, None, :, None], before, self.keys[layer])
        return self.keys[layer][:, :, : layout.end], self.values[layer][:, :, : layout.end]

    patch.setattr(SelfDrafter, "propose", proposing)
    patch.setattr(KVCache, "write", written)


# windows, and drafts that are made of others


@fault("24", "a window looks at a drafted token, and leaves it out", "", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    original = _BatchRun._propose

    def without_threes(self: _BatchRun, limits: list[int]) -> Proposal:
        proposal = original(self, limits)
        lengths = [row.index(3) if 3 in row else len(row) for row in proposal.tokens.tolist()]
        return replace(proposal, counts=[min(pair) for pair in zip(proposal.counts, lengths, strict=True)])

    patch.setattr(_BatchRun, "_propose", without_threes)


@fault("25", "a hybrid's looked-up token is said to be drawn from the model", "", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    original = hybrid.mixed

    def unmixed(looked_up: Proposal, other: Proposal, holding: Sequence[bool]) -> Proposal:
        both = original(looked_up, other, holding)
        return both if both.probs is None else replace(both, probs=torch.full_like(both.probs, 1 / VOCAB))

    patch.setattr(hybrid, "mixed", unmixed)


@fault("27", "a cascade keeps its helper's token, whatever the draft draws", "", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    original = _Proposing.take

    def take(self: _Proposing, drawn: Any, rows: list[bool]) -> None:
        tokens, probs, goes_on = drawn
        places = [start + count for start, count in zip(self.starts, self.drawn, strict=True)]
        offered = self.text.tokens[torch.arange(len(places)), torch.tensor(places)]
        original(self, (torch.where(offered > 0, offered, tokens), probs, goes_on), rows)

    patch.setattr(_Proposing, "take", take)


# drafting from the text itself


@fault("26", "an automaton looks beyond the row's end", "", "lookups")
def _(patch: pytest.MonkeyPatch) -> None:
    original = LookupDrafter._read

    def read(self: LookupDrafter, context: Context) -> list[list[int]]:
        return original(self, replace(context, lengths=context.lengths + 1))

    patch.setattr(LookupDrafter, "_read", read)


# the prototype's suspects


@wrong_rule("S1", "acceptance: whatever is the target's argmax is kept", "the prototype", "proof", "counts")
def argmax_is_kept(proposed: Proposed, noise: Tensor) -> Verdict:
    target_at, draft_at = at_tokens(proposed)
    best = proposed.target_probs[:, :-1].argmax(-1) == proposed.tokens
    return judged(proposed, noise, best | (noise[:, 1:] * draft_at < target_at))


@fault("S2a", "distributions: the target is judged without top-p", "the prototype", "counts")
def _(patch: pytest.MonkeyPatch) -> None:
    original = decoding.probabilities
    patch.setattr(decoding, "probabilities", lambda logits, sampling: original(logits, replace(sampling, top_p=1.0)))


@fault("S2b", "distributions: processors see the round's prefix at every place", "the prototype", "processors")
def _(patch: pytest.MonkeyPatch) -> None:
    original = decoding.process

    def process(logits: Tensor, prefixes: list[Tensor], wanted: Tensor, processors: Any) -> Tensor:
        at_start = [prefix[: len(prefix) - logits.shape[1] + 1] for prefix in prefixes]
        places = [
            original(logits[:, place : place + 1], at_start, wanted[:, place : place + 1], processors)
            for place in range(logits.shape[1])
        ]
        return torch.cat(places, 1)

    patch.setattr(decoding, "process", process)


@wrong_rule("S3a", "edge: what follows a proposal cut short is a residual's", "the prototype", "proof", "counts")
def cut_short(proposed: Proposed, noise: Tensor) -> Verdict:
    accepted = verification.token(proposed, noise).accepted
    longest = replace(proposed, counts=torch.full_like(proposed.counts, proposed.tokens.shape[1]))
    return Verdict(accepted, verification._next_token(longest, accepted, 1.0, noise[:, 0]))


@wrong_rule("S3b", "edge: a block's last proposed token is never refused", "the prototype", "proof", "counts", "verify")
def last_is_kept(proposed: Proposed, noise: Tensor) -> Verdict:
    target_at, draft_at = at_tokens(proposed)
    last = torch.arange(1, proposed.tokens.shape[1] + 1) == proposed.counts[:, None]
    return judged(proposed, noise, last | (noise[:, 1:] * draft_at < target_at))


@fault("S4a", "caches: the target's keeps a rejected token", "the prototype", "guard")
def _(patch: pytest.MonkeyPatch) -> None:
    original = _BatchRun._commit

    def commit(self: _BatchRun, blocks: list[list[int]]) -> Any:
        held = self.cache.lengths
        gained = original(self, blocks)
        self.cache.lengths = torch.minimum(self.cache.lengths + 1, held)
        return gained

    patch.setattr(_BatchRun, "_commit", commit)


@fault("S4b", "caches: the draft's goes on from the token that was rejected", "the prototype", "cache")
def _(patch: pytest.MonkeyPatch) -> None:
    propose, observe = ModelDrafter.propose, ModelDrafter.observe
    proposed: dict[ModelDrafter, Proposal] = {}
    refused: dict[ModelDrafter, list[tuple[int, int, int]]] = {}  # row, place, token

    def proposing(self: ModelDrafter, context: Context, gamma: int) -> Proposal:
        known = context.tokens.clone()
        for row, place, token in refused.get(self, ()):
            known[row, place] = token
        proposed[self] = propose(self, replace(context, tokens=known), gamma)
        return proposed[self]

    def observing(self: ModelDrafter, outcome: Outcome) -> None:
        observe(self, outcome)
        last = proposed.get(self, Proposal.nothing(len(outcome.accepted)))
        refused[self] = [
            (row, int(outcome.lengths[row]) - 1, int(last.tokens[row, kept]))
            for row, (kept, count) in enumerate(zip(outcome.accepted, last.counts, strict=True))
            if kept < count
        ]

    patch.setattr(ModelDrafter, "propose", proposing)
    patch.setattr(ModelDrafter, "observe", observing)
