"""The decoders that are compared, transformers' and Sybil's, with one interface."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sybil.allocation import as_out_of_memory
from sybil.decoding import Decoder
from sybil.drafts import LOOKUP, is_model
from sybil.measuring.memory import weight_bytes
from sybil.results import Stats
from sybil.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRANSFORMERS, ASSISTED = "transformers generate", "transformers assisted"
PROMPT_LOOKUP = "transformers prompt lookup"
AUTOREGRESSIVE, SPECULATIVE = "sybil autoregressive", "sybil speculative"
LLAMA_CPP = "llama.cpp"
OURS, PEERS = (AUTOREGRESSIVE, SPECULATIVE), (LLAMA_CPP,)


def contenders(draft: str | None) -> tuple[str, ...]:
    """The names of the contenders for such a draft, in the order of the table."""
    return (*theirs(draft), AUTOREGRESSIVE, *([] if draft is None else [SPECULATIVE]))


def theirs(draft: str | None, drafters: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of transformers' contenders: autoregressive decoding; with an assistant, where the draft is a model; by
    prompt lookup, where lookup is the draft or one of the drafters."""
    assisted, looks_up = draft is not None and is_model(draft), LOOKUP in (draft, *drafters)
    return TRANSFORMERS, *[ASSISTED] * assisted, *[PROMPT_LOOKUP] * looks_up


@dataclass(frozen=True, slots=True)
class PromptResult:
    """One contender's run of one prompt. proposed and accepted are None where the contender doesn't tell them.

    ms_after_first: milliseconds for each token after the prompt by the contender's own clock; None where it has no
    clock."""

    tokens: list[int]
    seconds: float
    time_to_first_token: float
    rounds: int
    proposed: int | None = None
    accepted: int | None = None
    memory_growth: int | None = None
    ms_after_first: float | None = None


PROPOSING = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")


class Contender(Protocol):
    """A way to decode. weight_bytes: the bytes of all its models' weights."""

    weight_bytes: int

    def run(self, prompt: Tensor, max_new_tokens: int, seed: int = 0) -> PromptResult:
        """Decode a prompt (n,). When sampling, the same seed draws the same tokens."""


class SybilContender:
    """Sybil's decoder, with its draft or without one, at its defaults except for the given settings."""

    def __init__(self, decoder: Decoder, **settings: Any) -> None:
        self.decoder, self.settings = decoder.without_defaults(), settings
        self.weight_bytes = weight_bytes(decoder)

    def run(self, prompt: Tensor, max_new_tokens: int, seed: int = 0) -> PromptResult:
        began = time.perf_counter()
        steps, first = [], 0.0
        for step in self.decoder.stream([prompt], max_new_tokens=max_new_tokens, seed=seed, **self.settings):
            first = first or time.perf_counter() - began
            steps.append(step)
        seconds = time.perf_counter() - began
        stats, drafts = Stats.of(steps), self.decoder.draft is not None
        return PromptResult(
            [token for step in steps for token in step.tokens[0]],
            seconds,
            first,
            stats.rounds,
            stats.proposed if drafts else None,
            stats.accepted if drafts else None,
        )


class TransformersContender:
    """transformers' own generate. With an assistant it is assisted generation at its defaults. With prompt_lookup, the
    number of tokens to propose, it is prompt lookup.

    The generation settings of the checkpoints are removed from the models, except how assisted generation proposes.
    Otherwise they would apply wherever a request leaves a setting out."""

    def __init__(
        self,
        model: PreTrainedModel,
        eos_token_ids: frozenset[int],
        assistant: PreTrainedModel | None = None,
        prompt_lookup: int | None = None,
        sampling: Sampling = GREEDY,
    ) -> None:
        self.model, self.assistant, self.sampling = model, assistant, sampling
        from transformers import GenerationConfig

        models = [model] if assistant is None else [model, assistant]
        for each in models:
            asked = each.generation_config
            each.generation_config = GenerationConfig(**{name: getattr(asked, name, None) for name in PROPOSING})
        self._request = GenerationConfig(eos_token_id=sorted(eos_token_ids) or None, pad_token_id=0)
        self._request.prompt_lookup_num_tokens = prompt_lookup
        if not sampling.greedy:
            self._request.update(**sampling.keywords | {"min_p": sampling.min_p or None})  # 0 would take time
        self.weight_bytes = sum(tensor.nbytes for each in models for tensor in each.parameters())

    def run(self, prompt: Tensor, max_new_tokens: int, seed: int = 0) -> PromptResult:
        ids = prompt[None].to(self.model.device)
        if not self.sampling.greedy:
            torch.manual_seed(seed)
        clock = _FirstTokenStreamer()
        request = copy.copy(self._request)
        request.max_new_tokens = max_new_tokens
        more = as_out_of_memory("transformers' generate takes more memory than there is", "lower max_new_tokens")
        with _counted_forwards(self.model) as forwards, more:
            began = time.perf_counter()
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=request,
                assistant_model=self.assistant,
                streamer=clock,
            )
            tokens = out[0, len(prompt) :].tolist()
            seconds = time.perf_counter() - began
        return PromptResult(tokens, seconds, (clock.at or began) - began, len(forwards))


@contextlib.contextmanager
def _counted_forwards(model: PreTrainedModel) -> Iterator[list[None]]:
    """A context manager that gives a list, which grows by one with each forward of the model. The hook is removed from
    the model at the end."""
    forwards: list[None] = []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(None))
    try:
        yield forwards
    finally:
        hook.remove()


class _FirstTokenStreamer:
    """A streamer that records the time of the first new token. (transformers puts the prompt first.)"""

    def __init__(self) -> None:
        self._puts = 0
        self.at: float | None = None

    def put(self, _: Tensor) -> None:
        self._puts += 1
        if self._puts == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        pass
