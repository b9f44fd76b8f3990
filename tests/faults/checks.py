"""The suite's checks by name, each small enough to be run on every planted fault.

A check is given a seed. It raises AssertionError if it finds something wrong, and returns otherwise. It asks what the
suite asks elsewhere, with the same helpers (proof.py, counting.py, transformers' own generate) but in fewer cases."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from counting import ALPHA, DECODED, DRAFTERS, TARGET, VOCAB, Case, ChiSquare, p_values
from counting import PROMPTS as COUNTED
from proof import BELOW_ONE, Problem, error
from tiny import gpt2, in_sybil, letters, perturbed, prompts, save
from tiny import greedy as by_transformers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import GPT2LMHeadModel, NoRepeatNGramLogitsProcessor, PreTrainedModel, StoppingCriteria
from translating import drafting, letters_of, with_turned_ids
from vocabularies import byte_level, bytes_alone, turned

import sybil
from sybil import Decoder, verification
from sybil.drafting import Context, Drafter, DraftLookup, DraftModel, DraftSelf, Generating, Outcome, Proposal
from sybil.drafting.reencoding import ReencodedRow
from sybil.drafting.surfaces import Vocabulary
from sybil.errors import CacheOutOfStep, VocabularyMismatch
from sybil.fit import way_of
from sybil.losslessness.evidence import Reference
from sybil.losslessness.judge import Plan
from sybil.losslessness.judge import verify as judge
from sybil.losslessness.samples import Request
from sybil.losslessness.subjects import SybilSubject
from sybil.models import rounding
from sybil.noise import Noise
from sybil.sampling import Sampling, probabilities
from sybil.verification import Proposed

Check = Callable[[int], None]
CHECKS: dict[str, Check] = {}

BITS = (4, 5, 6, 8)  # bits of a copy
COUNT = 20
MODELS = (13, 20, 2)  # random weights whose greedy text varies: a text of one token over and over hides much
ROUNDING = 1e-9  # tolerance of logits and probabilities in float64
SEQUENCES = 3_000  # counted for each case: shows a relative error of 23 % (root mean square, 63 cells) 99 times in 100
SAMPLED: dict[str, Any] = {"max_new_tokens": COUNT, "do_sample": True, "top_k": 0, "eos_token_id": []}

# not in the matrix of counting.py, because its texts take long in Python
DRAFTERS["intersection"] = drafting(
    "intersection", TARGET, gpt2(9, vocab=4, layers=1, width=8), letters(VOCAB), letters_of("c?!a")
)


def check(function: Check) -> Check:
    """Register a check by its name."""
    CHECKS[function.__name__] = function
    return function


def model(seed: int) -> GPT2LMHeadModel:
    """The target: random weights in float64."""
    return gpt2(MODELS[seed % len(MODELS)])


def texts(seed: int) -> list[Tensor]:
    """Prompts of unequal lengths."""
    return prompts([3, 8, 1, 5], seed=seed)


def drafted(seed: int, noise: float = 0.02, **rest: Any) -> Decoder:
    """A decoder whose draft agrees with the target often, but not always."""
    return Decoder(in_sybil(model(seed)), DraftModel(in_sybil(perturbed(model(seed), noise))), **rest)


def said(decoder: Decoder, inputs: list[Tensor], **settings: Any) -> list[list[int]]:
    """What a decoder generates."""
    return [row.tolist() for row in decoder.generate(inputs, **settings).tokens]


@lru_cache
def plain(seed: int) -> list[list[int]]:
    """transformers' own greedy tokens after each prompt, alone."""
    return [by_transformers(model(seed), prompt, COUNT) for prompt in texts(seed)]


def mixed_problem(vocab: int, gamma: int, seed: int, stops: frozenset[int], determined: bool = False) -> Problem:
    """Random distributions. If gamma is above 1, target and draft are equal at one node, and the target is one-hot at
    another."""
    generator = torch.Generator().manual_seed(seed)
    nodes = sum(vocab**depth for depth in range(gamma + 1))
    target, draft = torch.randn(2, nodes, vocab, dtype=torch.float64, generator=generator).mul(1.5).softmax(-1)
    if gamma > 1:
        draft[3] = target[3]
        target[6] = torch.eye(vocab, dtype=torch.float64)[0]
    return Problem(gamma, target, None if determined else draft, stops)


@check
def proof(seed: int) -> None:
    """The rules that the loop uses give the target's distribution, up to rounding, when all proposals and noise are
    integrated."""
    problems = [
        mixed_problem(3, 1, seed, frozenset()),
        mixed_problem(2, 2, seed + 100, frozenset({1}), determined=True),
        mixed_problem(2, 3, seed + 200, frozenset({4})),
    ]
    for name, rule in verification.RULES.items():
        for problem in problems:
            found = error(rule, problem, coupled=name == "coupled")
            assert found < 1e-12, f"{name}, gamma {problem.gamma}: {found:.2g} from the target"


@check
def equal(seed: int) -> None:
    """When target and draft are equal, float32 rejects one token in 2**25. Its replacement is drawn from the target
    itself."""
    probs = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    proposed = Proposed(torch.zeros(4, 2, dtype=torch.int64), probs[:, :2], probs, torch.full((4,), 2))
    for name in ("token", "block"):
        verdict = verification.RULES[name](proposed, torch.full((4, 3), BELOW_ONE, dtype=torch.float64))
        assert (verdict.next_token >= 0).all(), f"{name} draws nothing after a rejection"


@check
def counts(seed: int) -> None:
    """The loop's samples, counted as whole sequences and by place, follow the target's exact distribution."""
    for case in (
        Case(),
        Case(drafter="transformers"),  # many tokens are rejected
        Case(processors="filters", stop="end token"),
        Case(window="confident", batch="mixed"),
        Case(rule="block"),
        Case(rule="coupled", window="heuristic"),
        Case(drafter="self", window="auto"),
        Case(drafter="hybrid", batch="mixed"),
        Case(drafter="cascade"),
    ):
        for counted, p_value in p_values(case, seed, SEQUENCES).items():
            assert p_value > ALPHA, f"{case}, {counted}: p = {p_value:.1g}"


@check
def blocks(seed: int) -> None:
    """The same as counts() for longer blocks by the block rule, whose places depend on one another in subtler ways."""
    for counted, p_value in p_values(Case(rule="block"), seed, 6 * SEQUENCES).items():
        assert p_value > ALPHA, f"block, {counted}: p = {p_value:.1g}"


@check
def proposals(seed: int) -> None:
    """Drafted tokens, counted, follow the probabilities that the draft hands over with them."""
    rows, gamma = SEQUENCES, 3
    for least_confidence, coupled, sampling in (
        (0.0, False, Sampling(0.8, top_k=3)),
        (0.0, False, Sampling(1.0, top_p=0.8)),
        (0.4, False, Sampling(1.0)),
        (0.0, True, Sampling(1.0)),
    ):
        prompt = torch.tensor(COUNTED[0])
        tokens = torch.zeros(rows, len(prompt) + gamma + 1, dtype=torch.int64)
        tokens[:, : len(prompt)] = prompt
        context = Context(tokens, torch.full((rows,), len(prompt)), Noise(seed), None, least_confidence)
        if coupled:
            context.exponentials = context.race_noise(gamma + 1, VOCAB)
        generating = Generating(rows, tokens.shape[1], VOCAB, sampling, DECODED.new_cache(rows, tokens.shape[1]))
        proposal = DRAFTERS["model"](generating).propose(context, gamma)
        assert proposal.probs is not None
        table: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        due: dict[tuple[int, ...], dict[int, float]] = {}
        for drawn, probs, count in zip(proposal.tokens.tolist(), proposal.probs.tolist(), proposal.counts, strict=True):
            for place in range(count):
                prefix = tuple(drawn[:place])
                table[prefix][drawn[place]] += 1
                due[prefix] = dict(enumerate(probs[place]))
        statistic = ChiSquare()
        for prefix, found in table.items():
            statistic.add(found, due[prefix])
        assert statistic.p_value > ALPHA, f"{sampling}, confidence {least_confidence}: p = {statistic.p_value:.1g}"


@check
def greedy(seed: int) -> None:
    """Greedy speculative tokens equal those of transformers' generate: in a batch, alone, and with padded
    vocabularies."""
    inputs, wanted = texts(seed), plain(seed)
    for gamma in range(1, 6):
        found = said(drafted(seed), inputs, max_new_tokens=COUNT, gamma=gamma, eos_token_id=[])
        assert found == wanted, f"gamma {gamma}, in a batch"
        alone = said(drafted(seed), inputs[:1], max_new_tokens=COUNT, gamma=gamma, eos_token_id=[])
        assert alone == wanted[:1], f"gamma {gamma}, alone"
    for vocab in (24, 40):
        decoder = Decoder(in_sybil(model(seed)), DraftModel(in_sybil(gpt2(seed + 10, vocab=vocab))))
        found = said(decoder, inputs, max_new_tokens=COUNT, gamma=4, eos_token_id=[])
        assert found == wanted, f"a draft of {vocab} tokens for a target of 31"


@check
def itself(seed: int) -> None:
    """A target that drafts for itself in its own cache gives the tokens that it gives without: greedily those of
    transformers, and by the coupled rule those of plain sampling."""
    target, inputs = in_sybil(model(seed)), texts(seed)
    sampled = said(Decoder(target), inputs, seed=seed, **SAMPLED)
    for copy in (in_sybil(perturbed(model(seed), 0.02)), target.with_layers([0])):
        for helper in (None, DraftLookup(least=0.0)):
            decoder = Decoder(target, DraftSelf(copy, helper=helper))
            for gamma in (1, 4):
                found = said(decoder, inputs, max_new_tokens=COUNT, gamma=gamma, eos_token_id=[])
                assert found == plain(seed), f"gamma {gamma}"
                found = said(decoder, inputs, gamma=gamma, rule="coupled", seed=seed, **SAMPLED)
                assert found == sampled, f"gamma {gamma}, sampled"


@check
def copies(seed: int) -> None:
    """The numbers that a copy keeps differ from the weights by half a step at most."""
    weights = torch.randn(8, 96, generator=torch.Generator().manual_seed(seed))
    blocks = weights.reshape(8, 3, 32)
    for bits in BITS:
        step = (blocks.amax(-1) - blocks.amin(-1)) / (2**bits - 1)
        kept = rounding.decoded(rounding.rounded(weights, bits), bits, 96).reshape(8, 3, 32)
        apart = (kept - blocks).abs().amax(-1)
        assert (apart < 0.51 * step + 0.003).all(), f"{bits} bits: {float((apart / step).max()):.2g} steps"


@check
def seeds(seed: int) -> None:
    """With the same seed the coupled rule gives the tokens of autoregressive sampling, whatever the drafter."""
    inputs = texts(seed)
    wanted = said(drafted(seed).without_draft(), inputs, seed=seed, **SAMPLED)
    for noise, gamma, window in ((0.02, 1, "constant"), (0.02, 3, "heuristic"), (0.3, 4, "confident")):
        found = said(drafted(seed, noise), inputs, seed=seed, rule="coupled", gamma=gamma, window=window, **SAMPLED)
        assert found == wanted, f"gamma {gamma}, {window}"


@check
def rows(seed: int) -> None:
    """A row of a batch gives the tokens that it gives alone, whatever stands beside it."""
    inputs = texts(seed)
    for chosen in ({}, {"do_sample": True, "seed": seed, "rule": "block", "window": "heuristic"}):
        settings: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": [], "gamma": 3, **chosen}
        for first in range(len(inputs)):  # a sampled row's noise is keyed by its place
            together = said(drafted(seed), inputs[first:] + inputs[:first], **settings)
            assert together[0] == said(drafted(seed), inputs[first : first + 1], **settings)[0], f"row {first}"


@check
def lookups(seed: int) -> None:
    """What is looked up follows the row's own kept tokens, whatever stands after them and beside it."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        lengths = torch.randint(1, 15, (3,), generator=generator)
        tokens = torch.randint(0, 3, (3, 20), generator=generator)
        found = []
        for other in (tokens, tokens.where(torch.arange(20) < lengths[:, None], 3 - tokens)):
            generating = Generating(3, 20, VOCAB, Sampling(), DECODED.new_cache(3, 20))
            drafter = DraftLookup(least=0.0)(generating)
            found.append(drafter.propose(Context(other, lengths, Noise(seed)), 4))
        assert found[0].counts == found[1].counts, f"numbers of tokens after {lengths.tolist()} kept ones"
        assert found[0].tokens.equal(found[1].tokens), f"tokens after {lengths.tolist()} kept ones"


class AtEleven(StoppingCriteria):
    """Stops a row of exactly eleven tokens: whoever passes it by is not asked again."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] == 11)


@check
def stops(seed: int) -> None:
    """A row ends with the token with which transformers' plain generate ends it, wherever that is in a block."""
    tokenizer = letters()
    decoder = drafted(seed, 0.0, tokenizer=tokenizer)  # all is accepted: blocks are as long as can be
    prompt, tokens = texts(seed)[0], plain(seed)[0]
    ends = [token for index, token in enumerate(tokens) if index and token not in tokens[:index]][:4]
    text = tokenizer.decode(tokens)
    completed = tokens.index(ends[0])
    stop = text[completed - 1 : completed + 1]
    criteria = [AtEleven()]
    eleven = by_transformers(model(seed), prompt, COUNT, stopping_criteria=criteria)
    for gamma in (2, 5):
        for eos in ends:
            found = said(decoder, [prompt], max_new_tokens=COUNT, gamma=gamma, eos_token_id=eos)
            assert found == [by_transformers(model(seed), prompt, COUNT, eos_token_id=eos)], (
                f"end token {eos}, gamma {gamma}"
            )
        out = decoder.generate([prompt], max_new_tokens=COUNT, gamma=gamma, stop_strings=stop, eos_token_id=[])
        assert out.text == [text[: text.index(stop) + len(stop)]], f"stop string, gamma {gamma}"
        found = said(decoder, [prompt], max_new_tokens=COUNT, gamma=gamma, stopping_criteria=criteria, eos_token_id=[])
        assert found == [eleven], f"criterion, gamma {gamma}"
        for count in range(1, 8):
            found = said(decoder, [prompt], max_new_tokens=count, gamma=gamma, eos_token_id=[])
            assert found == [tokens[:count]], f"max_new_tokens {count}, gamma {gamma}"


class Witness:
    """Between the loop and its models: holds what each says to transformers' forward over the whole text, uncached."""

    def __init__(self, target: GPT2LMHeadModel, draft: GPT2LMHeadModel) -> None:
        self.references, self.model = (target, draft), in_sybil(target)
        self.drafts = DraftModel(in_sybil(draft))
        self.models = self.drafts.models
        self.proposal = Proposal.nothing(0)
        self.prefixes: list[Tensor] = []

    # the target

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, cache: Any) -> Tensor:
        logits = self.model.forward(tokens, cache)
        for row, (prefix, count) in enumerate(zip(self.prefixes, self.proposal.counts, strict=True)):
            found = logits[row, : count + 1]
            wanted = uncached(self.references[0], prefix, self.proposal.tokens[row, :count])
            assert (found - wanted).abs().max() < ROUNDING, f"the target's logits after {len(prefix)} tokens"
        self.proposal, self.prefixes = Proposal.nothing(0), []
        return logits

    # the draft

    def __call__(self, generating: Generating) -> Drafter:
        self.drafter, self.sampling = self.drafts(generating), generating.sampling
        return self

    def sources(self, context: Context) -> Sequence[int]:
        return self.drafter.sources(context)

    def propose(self, context: Context, gamma: int) -> Proposal:
        self.prefixes, self.proposal = context.prefixes(), self.drafter.propose(context, gamma)
        assert self.proposal.probs is not None
        for row, (prefix, count) in enumerate(zip(self.prefixes, self.proposal.counts, strict=True)):
            logits = uncached(self.references[1], prefix, self.proposal.tokens[row, :count])[:count]
            apart = (self.proposal.probs[row, :count] - probabilities(logits, self.sampling)).abs()
            assert (apart < ROUNDING).all(), f"the draft's probabilities after {len(prefix)} tokens"
        return self.proposal

    def observe(self, outcome: Outcome) -> None:
        self.drafter.observe(outcome)


@torch.no_grad()
def uncached(model: PreTrainedModel, prefix: Tensor, tokens: Tensor) -> Tensor:
    """The logits after prefix and after each of tokens (n,), (n + 1, vocab), without a cache."""
    logits: Tensor = model(input_ids=torch.cat([prefix, tokens])[None], use_cache=False).logits[0, len(prefix) - 1 :]
    return logits


@check
def cache(seed: int) -> None:
    """In every round both models say what they say of the whole text without a cache."""
    for noise in (0.005, 0.1):  # nearly all is accepted; much is rejected
        witness = Witness(model(seed), perturbed(model(seed), noise))
        for inputs in (texts(seed), texts(seed)[:1]):
            Decoder(witness, witness).generate(inputs, seed=seed, gamma=3, **SAMPLED)


@check
def guard(seed: int) -> None:
    """The loop's own check of its cache stays silent."""
    try:
        for chosen in (SAMPLED, {"max_new_tokens": COUNT, "eos_token_id": []}):
            drafted(seed, 0.1).generate(texts(seed), seed=seed, gamma=3, **chosen)
            itself = Decoder(in_sybil(model(seed)), DraftSelf(in_sybil(perturbed(model(seed), 0.1))))
            itself.generate(texts(seed), seed=seed, gamma=3, **chosen)
    except CacheOutOfStep as error:
        raise AssertionError(str(error)) from error


@check
def processors(seed: int) -> None:
    """With processors that look at the prefix: greedily transformers' tokens, sampled those of plain decoding."""
    inputs = texts(seed)
    wanted = [
        by_transformers(model(seed), row, COUNT, repetition_penalty=1.3, no_repeat_ngram_size=2) for row in inputs
    ]
    processing: dict[str, Any] = {"repetition_penalty": 1.3, "logits_processor": [NoRepeatNGramLogitsProcessor(2)]}
    for gamma in (1, 4):
        found = said(drafted(seed), inputs, max_new_tokens=COUNT, gamma=gamma, eos_token_id=[], **processing)
        assert found == wanted, f"greedy, gamma {gamma}"
        sampled = said(drafted(seed), inputs, gamma=gamma, rule="coupled", seed=seed, **SAMPLED, **processing)
        autoregressive = said(drafted(seed).without_draft(), inputs, seed=seed, **SAMPLED, **processing)
        assert sampled == autoregressive, f"sampled, gamma {gamma}"


@check
def vocabularies(seed: int) -> None:
    """Drafts with other tokens, as many of them or not, are known; padding beyond the same tokens is none. The text is
    the target's, and that of the very target under other ids is always right."""
    reversed_ids = turned(letters())
    with TemporaryDirectory() as name:
        folder = Path(name)
        target = save(model(seed), folder / "target")
        exact: dict[str, Any] = {"dtype": torch.float64, "draft_dtype": torch.float64, "device": "cpu"}
        wanted = plain(seed)[0][:6]
        others = {
            "fewer": (gpt2(seed, vocab=24), letters(24)),
            "padded fewer": (gpt2(seed, vocab=31), letters(24)),
            "turned": (with_turned_ids(model(seed)), reversed_ids),
            "padded": (gpt2(seed, vocab=40), letters()),
        }
        for what, (other, tokenizer) in others.items():
            try:
                decoder = sybil.load(target, save(other, folder / what, tokenizer), **exact)
            except VocabularyMismatch as error:
                raise AssertionError(f"{what}: {error}") from error
            assert (way_of(decoder.draft) is None) == (what == "padded"), f"{what}: {way_of(decoder.draft)}"
            out = decoder.generate(texts(seed)[:1], max_new_tokens=6, gamma=4, eos_token_id=[])
            assert [row.tolist() for row in out.tokens] == [wanted], what
            assert what != "turned" or out.stats.acceptance_rate == 1, f"{out.stats.acceptance_rate} accepted"


@check
def intersection(seed: int) -> None:
    """What the loop samples with a draft of another tokenizer, counted, follows the target's exact distribution."""
    for counted, p_value in p_values(Case(drafter="intersection"), seed, SEQUENCES).items():
        assert p_value > ALPHA, f"{counted}: p = {p_value:.1g}"


@check
def reencoding(seed: int) -> None:
    """A text that grows by a byte at a time is, in the draft's tokens, what its tokenizer makes of the whole text; the
    first bytes of a character are tokens of their own."""
    own = byte_level()
    begin = own.token_to_id("<s>")
    own.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    theirs, draft = Vocabulary(bytes_alone()), Vocabulary(own)
    text = ["日本 stop 😀", "é<s>stopped", "User: 日日\n\n"][seed % 3]
    row, data = ReencodedRow(theirs, draft), text.encode()
    for place in range(len(data)):
        row.write(place, [theirs.ids[data[place : place + 1]]])
        characters = data[: place + 1].decode(errors="ignore")
        rest = data[len(characters.encode()) : place + 1]
        wanted = own.encode(characters, add_special_tokens=False).ids + [draft.ids[bytes([byte])] for byte in rest]
        assert row.own == wanted, f"after {place + 1} bytes of {text!r}"


@check
def verify(seed: int) -> None:
    """Sybil's judge of any decoder, which sees nothing but sequences and the target, passes this one."""
    target, tokenizer = gpt2(2, vocab=8, layers=1), letters(8)
    decoder = Decoder(in_sybil(target), DraftModel(in_sybil(perturbed(target, 0.1))), tokenizer)
    request = Request(max_new_tokens=24, temperature=0.9)
    plan = Plan(
        request=request, repeats=16, greedy=8, stopping=4, alpha=ALPHA, seed=seed, resolution=0.4, uniformity=0.5
    )
    asked = [prompt.tolist() for prompt in prompts([3, 4, 5, 6] * 2, vocab=8, seed=seed)]
    report = judge(SybilSubject(decoder, gamma=3), Reference(target, tokenizer), asked, plan)
    assert report.verdict == "PASS", f"{report.verdict}: {report.reasons}"
