"""The evidence that a sequence gives about its decoder, measured against the target's own distributions."""

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
    """The target, by transformers' own forward, which shares nothing with the decoder under judgement. Give it in
    float32 or float64, because a Tolerance has to cover its distance from the decoder's.

    draft: the decoder's, where it is known. Most faults of a speculative decoder make its tokens lean towards the
    draft's or away from them. no_draft: why none is given, for the report."""

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
        """work(thing) for each thing, in order. On the CPU several are computed at once, each by one thread, because
        threads that share a forward wait for each other at every operator. done: called after each with how many there
        are."""
        return made_of_each(work, things, done, most=None if entrance(self.model).type == "cpu" else 1)

    def logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """The logits before each of tokens, if prompt and the tokens before it had been the text: (tokens, vocab), on
        the CPU."""
        most = self.vocab_size - 1
        told, said = ([min(token, most) for token in part] for part in (prompt, tokens))  # a draft may know fewer
        logits = self._forward.logits(told, said)[:, : self.vocab_size].cpu()
        if not bool(logits.amax(-1).isfinite().all()):
            raise NumericalFailure("the model's logits are not finite: load it in float32, or repair its weights")
        return logits


@dataclass(frozen=True, slots=True)
class Impossible:
    """A token that the target gives no probability at all."""

    sequence: int
    index: int
    token: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """An entry a sampled token, sequences one after the other: arrays of one length.

    tail: 1 - u, where u is the token's randomised probability integral transform: F(before) + v * p(token), tokens
    in order of falling probability, v uniform. Given everything before the token, u is uniform if and only if the
    token is drawn from the target, so under a lossless decoder all the u are independent and uniform. log_prob: of
    the token; entropy, variance, third: minus the mean, and the central moments, of log_prob under the target, all
    in nats. place: in the decoder's block, -1 where it does not say. lean: min(1, draft / target) of the token, less
    its mean under the target; lean_variance, lean_third: its central moments; NaN where no draft is known. Impossible
    tokens have no entry, nor have the `near` ones, which a filter leaves out by less than the near-tie bound."""

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
        """In [0, 1); near 0 the tokens that the target likes best."""
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
    """The evidence of a sequence, the sequence-th, whose tokens are in the target's vocabulary."""
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
    """Of each token, what Evidence says of lean, lean_variance and lean_third; probs: the target's (tokens, vocab)."""
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
    """The log probabilities (tokens, vocab), and of each token's their entropy, variance and third central moment."""
    log_probs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
    entropy = -(probs * log_probs).sum(-1)
    spread = log_probs + entropy[:, None]
    return log_probs, entropy.numpy(), _moment(probs, spread, 2), _moment(probs, spread, 3)


def _moment(probs: Tensor, spread: Tensor, power: int) -> Floats:
    """A moment of the target's distribution. Rounding would leave a certain token with a moment of 1e-32, by which
    later code would divide; so such a moment is 0."""
    moment: Floats = (probs * spread**power).sum(-1).numpy()
    return np.where(np.abs(moment) < 1e-24, 0.0, moment)


def _is_near(logits: Tensor, token: int, sampling: Sampling, near_tie: Tolerance) -> bool:
    """Whether a filter leaves token out by no more than rounding can.

    Logits that are off by tolerance move the mass of a set of tokens, F, by up to F * (1 - F) * tolerance /
    temperature. The edge that top_p draws moves with it."""
    tolerance = float(near_tie.of(float(_size(logits))))
    raised = logits.clone()
    raised[token] += tolerance
    slack = sampling.top_p * (1 - sampling.top_p) * tolerance / sampling.temperature
    wider = Sampling(sampling.temperature, sampling.top_k, min(1.0, sampling.top_p + slack), sampling.min_p)
    return bool(probabilities(raised, wider)[token] > 0)


@dataclass(frozen=True, slots=True)
class GreedyEvidence:
    """An entry a token of a greedy sequence, in logits, given the decoder's own tokens before it.

    deficit: how far the token stands below the likeliest one; gap: how far the second stands below the first; size:
    of the row's largest logit."""

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
