"""The evidence that sequences give about their decoder: each token compared with the target's distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from sybil.agreement import Tolerance, lead
from sybil.errors import NumericalFailure
from sybil.losslessness.prefixes import PrefixForward
from sybil.losslessness.samples import Sample
from sybil.models.huggingface import context_of, entrance
from sybil.models.native.threads import Made, Thing, made_of_each
from sybil.sampling import Sampling, probabilities
from sybil.transfer import count_to, integers

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Reference:
    """The target, run by transformers' own forward, which shares no code with the decoder under judgement. Give the
    model in float32 or float64, because a Tolerance has to cover the difference between its logits and the decoder's.

    draft: the decoder's draft model, where it is known. Most faults of a speculative decoder make its tokens lean
    towards the draft's tokens or away from them. no_draft: why no draft is given, for the report."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer | None = None,
        draft: PreTrainedModel | None = None,
        no_draft: str = "no draft is named",
    ) -> None:
        self.draft, self.no_draft = None if draft is None else Reference(draft), no_draft
        config = model.config.get_text_config()
        self.model, self.tokenizer = model.eval(), tokenizer
        self.vocab_size = int(config.vocab_size)
        self.context = context_of(config)
        self._forward = PrefixForward(self.model)

    def of_each(
        self, work: Callable[[Thing], Made], things: Sequence[Thing], done: Callable[[int], None] = lambda count: None
    ) -> list[Made]:
        """work(thing) for each thing, in order. done: called after each with the number done so far.

        On the CPU several things are computed at once, each by one thread, because threads that share a forward wait
        for each other at every operator."""
        return made_of_each(work, things, done, most=None if entrance(self.model).type == "cpu" else 1)

    def logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """The logits from which each of tokens follows, given prompt and the tokens before it: (tokens, vocab), on the
        CPU."""
        most = self.vocab_size - 1
        told, said = ([min(token, most) for token in part] for part in (prompt, tokens))  # a draft may know fewer
        logits = self._forward.logits(told, said)[:, : self.vocab_size].cpu()
        if not bool(logits.amax(-1).isfinite().all()):
            raise NumericalFailure("the model's logits are not finite: load it in float32, or repair its weights")
        return logits


@dataclass(frozen=True, slots=True)
class Impossible:
    """A token to which the target gives probability 0. sequence: its number. index: the token's place in it."""

    sequence: int
    index: int
    token: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Arrays of one length, with one entry for each sampled token; sequences follow one another.

    tail: 1 - u, where u is the token's randomised probability integral transform: u = F(before) + v * p(token), with
    the tokens in order of falling probability and v uniform. Given everything before the token, u is uniform if and
    only if the token is drawn from the target. So under a lossless decoder all the u are independent and uniform.

    log_prob: of the token, in nats. entropy: minus the mean of log_prob under the target. variance, third: its second
    and third central moments. place: the token's place in the decoder's block, -1 where the decoder doesn't say.
    sequence, index: the sequence's number, and the token's place in it. lean: min(1, draft / target) of the token minus
    its mean under the target. lean_variance, lean_third: its central moments. The three are NaN without a known draft.

    impossible: tokens with probability 0, which have no entry. near: the number of tokens that a filter leaves out by
    less than the near-tie bound, which have no entry either."""

    tail: Floats
    log_prob: Floats
    entropy: Floats
    variance: Floats
    third: Floats
    place: Integers
    sequence: Integers
    index: Integers
    lean: Floats
    lean_variance: Floats
    lean_third: Floats
    impossible: tuple[Impossible, ...] = ()
    near: int = 0

    @property
    def u(self) -> Floats:
        """u of each token, in [0, 1). Tokens that the target finds likeliest are near 0."""
        return np.clip(1.0 - self.tail, 0.0, np.nextafter(1.0, 0.0))

    def __len__(self) -> int:
        return len(self.tail)

    @classmethod
    def join(cls, parts: Sequence[Evidence]) -> Evidence:
        """The evidence of several sequences, in order."""
        every = [NOTHING, *parts]
        return cls(
            tail=np.concatenate([part.tail for part in every]),
            log_prob=np.concatenate([part.log_prob for part in every]),
            entropy=np.concatenate([part.entropy for part in every]),
            variance=np.concatenate([part.variance for part in every]),
            third=np.concatenate([part.third for part in every]),
            place=np.concatenate([part.place for part in every]),
            sequence=np.concatenate([part.sequence for part in every]),
            index=np.concatenate([part.index for part in every]),
            lean=np.concatenate([part.lean for part in every]),
            lean_variance=np.concatenate([part.lean_variance for part in every]),
            lean_third=np.concatenate([part.lean_third for part in every]),
            impossible=tuple(each for part in every for each in part.impossible),
            near=sum(part.near for part in every),
        )


_NO_REAL, _NO_INTEGER = np.empty(0), np.empty(0, dtype=np.int64)
NOTHING = Evidence(
    _NO_REAL, _NO_REAL, _NO_REAL, _NO_REAL, _NO_REAL, _NO_INTEGER, _NO_INTEGER, _NO_INTEGER,
    _NO_REAL, _NO_REAL, _NO_REAL,
)  # fmt: skip


def sampled(
    reference: Reference,
    sample: Sample,
    sequence: int,
    sampling: Sampling,
    noise: np.random.Generator,
    near_tie: Tolerance,
) -> Evidence:
    """The evidence of a sample, whose tokens are in the target's vocabulary. sequence: its number."""
    count = len(sample.tokens)
    if not count:
        return NOTHING
    logits = reference.logits(sample.prompt, sample.tokens).double()
    tokens = integers(sample.tokens)[:, None]
    probs = probabilities(logits, sampling)
    prob = probs.gather(-1, tokens)
    tied_after = (probs == prob) & (count_to(probs.shape[-1]) > tokens)
    after = probs.masked_fill(~((probs < prob) | tied_after), 0.0).sum(-1)
    tail = after.numpy() + (1.0 - noise.random(count)) * prob[:, 0].numpy()  # summed from the rare end: exact near 0

    log_probs, entropy, variance, third = moments(probs)
    held = prob[:, 0].numpy() > 0
    left_out = np.flatnonzero(~held)
    near = [index for index in left_out if _is_near(logits[index], sample.tokens[index], sampling, near_tie)]
    places = [-1] * count if sample.places is None else sample.places
    lean = _lean(reference, sample, sampling, probs)
    return Evidence(
        tail=tail[held],
        log_prob=log_probs.gather(-1, tokens)[:, 0].numpy()[held],
        entropy=entropy[held],
        variance=variance[held],
        third=third[held],
        place=np.array(places, dtype=np.int64)[held],
        sequence=np.full(count, sequence, dtype=np.int64)[held],
        index=np.flatnonzero(held),
        lean=lean[0][held],
        lean_variance=lean[1][held],
        lean_third=lean[2][held],
        impossible=tuple(Impossible(sequence, int(i), sample.tokens[i]) for i in left_out if i not in near),
        near=len(near),
    )


def _lean(reference: Reference, sample: Sample, sampling: Sampling, probs: Tensor) -> tuple[Floats, Floats, Floats]:
    """Each token's lean, lean_variance and lean_third: see Evidence. probs: the target's, (tokens, vocab)."""
    count, draft = len(sample.tokens), reference.draft
    if draft is None or len(sample.prompt) + count > draft.context:
        unknown = np.full(count, np.nan)
        return unknown, unknown, unknown
    logits = draft.logits(sample.prompt, sample.tokens).double()[:, : probs.shape[-1]]
    logits = torch.nn.functional.pad(logits, (0, probs.shape[-1] - logits.shape[-1]), value=-torch.inf)
    overlap = (probabilities(logits, sampling) / probs.clamp(min=torch.finfo(probs.dtype).tiny)).clamp(max=1)
    centred = overlap - (probs * overlap).sum(-1, keepdim=True)
    own = centred.gather(-1, integers(sample.tokens)[:, None])[:, 0]
    return own.numpy(), _moment(probs, centred, 2), _moment(probs, centred, 3)


def moments(probs: Tensor) -> tuple[Tensor, Floats, Floats, Floats]:
    """The log probabilities (tokens, vocab), and for each row their entropy, variance and third central moment."""
    log_probs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
    entropy = -(probs * log_probs).sum(-1)
    spread = log_probs + entropy[:, None]
    return log_probs, entropy.numpy(), _moment(probs, spread, 2), _moment(probs, spread, 3)


def _moment(probs: Tensor, spread: Tensor, power: int) -> Floats:
    """A central moment of each row under the target. Where the target is certain, rounding leaves a moment of about
    1e-32. Such a moment becomes 0, because later code would divide by it."""
    moment: Floats = (probs * spread**power).sum(-1).numpy()
    return np.where(np.abs(moment) < 1e-24, 0.0, moment)


def _is_near(logits: Tensor, token: int, sampling: Sampling, near_tie: Tolerance) -> bool:
    """Whether rounding can explain that a filter leaves token out.

    Logits that are off by tolerance move the probability F of a set of tokens by up to F * (1 - F) * tolerance /
    temperature. The set that top_p keeps changes with it."""
    tolerance = float(near_tie.of(float(_size(logits))))
    raised = logits.clone()
    raised[token] += tolerance
    slack = sampling.top_p * (1 - sampling.top_p) * tolerance / sampling.temperature
    wider = Sampling(sampling.temperature, sampling.top_k, min(1.0, sampling.top_p + slack), sampling.min_p)
    return bool(probabilities(raised, wider)[token] > 0)


@dataclass(frozen=True, slots=True)
class GreedyEvidence:
    """Arrays with one entry for each token of a greedy sequence, in logits, given the decoder's own tokens before it.

    deficit: how far the token's logit is below the largest. gap: how far the second largest is below the largest. size:
    the largest finite magnitude of the row."""

    deficit: Floats
    gap: Floats
    size: Floats


def greedy(reference: Reference, sample: Sample) -> GreedyEvidence:
    """Compares a greedy sequence with the target's own choices."""
    if not sample.tokens:
        return GreedyEvidence(_NO_REAL, _NO_REAL, _NO_REAL)
    logits = reference.logits(sample.prompt, sample.tokens).double()
    chosen = logits.gather(-1, integers(sample.tokens)[:, None])[:, 0]
    return GreedyEvidence((logits.amax(-1) - chosen).numpy(), lead(logits).numpy(), _size(logits).numpy())


def _size(logits: Tensor) -> Tensor:
    """The largest finite magnitude of each row."""
    return logits.masked_fill(logits.isinf(), 0.0).abs().amax(-1)
