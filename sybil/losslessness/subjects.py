"""Decoders under judgement, with one interface: Sybil's, transformers', and a Python function of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sybil.decoding import Decoder
from sybil.drafting.window import GAMMA
from sybil.errors import InvalidSetting, NotJudgeable, one_line
from sybil.losslessness.child import Answer, Unfit, answer_of, error_line, taken
from sybil.losslessness.samples import Request, Sample, Subject
from sybil.losslessness.speculation import Speculation
from sybil.losslessness.taking import Taking
from sybil.stopping import Stops
from sybil.transfer import integers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sybil.losslessness.report import Plan

WIDTHS = (1, 8)  # gammas at which greedy texts are compared
BATCH = 8  # prompts that are answered together
COUNTED = "its own counts"
Function = Callable[..., Any]
"""(prompt, *, max_new_tokens, temperature, top_k, top_p, min_p, eos_token_ids, stop_strings, seed) -> new tokens, or
(new tokens, places), or (new tokens, places or None, (tokens drafted, of them accepted)). It is called with those of
the keywords that it names, or with all if it takes any (**). If it names `gamma` too, the judge checks whether its
greedy tokens depend on gamma."""


def sample_of(prompt: Sequence[int], answer: Answer) -> Sample:
    """A function's answer as a Sample."""
    tokens, places, counts = answer
    told = None if counts is None else Speculation(*counts, source=COUNTED)
    return Sample(tuple(prompt), tokens, places, speculation=told)


def derived(seed: int, index: int) -> int:
    """The seed of a call's index-th draw. It has 31 bits, which every decoder takes."""
    return int(np.random.SeedSequence([seed % 2**64, index]).generate_state(1)[0] >> 1)


class SybilSubject:
    """Sybil's decoder under one of its rules, several prompts side by side."""

    def __init__(
        self,
        decoder: Decoder,
        gamma: int | str = GAMMA,
        rule: str = "token",
        window: str = "constant",
        batch: int = BATCH,
    ) -> None:
        alone = any(getattr(model, "counts_slots", False) for model in decoder.models)
        self.decoder, self.batch = decoder.without_defaults(), 1 if alone else batch  # a request sets everything
        self._settings: dict[str, Any] = dict(gamma=gamma, rule=rule, window=window)
        windowed = "" if window == "constant" else f", window {window}"
        self.name = f"sybil, rule {rule}, gamma {gamma}{windowed}" if decoder.draft else "sybil, no draft"

    def widths(self) -> dict[str, Subject]:
        """The same decoder without its draft, with other gammas, and with one row at a time."""
        others: dict[str, Subject] = {}
        if self.decoder.draft is not None:
            others["plain"] = SybilSubject(self.decoder.without_draft(), batch=self.batch)
            for gamma in WIDTHS:
                settings = {**self._settings, "gamma": gamma}
                others[f"gamma {gamma}"] = SybilSubject(self.decoder, **settings, batch=self.batch)
        if self.batch > 1:
            others["one row at a time"] = SybilSubject(self.decoder, **self._settings, batch=1)
        return others

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int = 0) -> Iterator[Sample]:
        wanted = dict(
            max_new_tokens=request.max_new_tokens,
            **request.sampling.keywords,
            eos_token_id=list(request.eos_token_ids),  # if it is empty, the model's own end token doesn't count either
            stop_strings=request.stop_strings,
        )
        for start in range(0, len(prompts), self.batch):
            chosen = prompts[start : start + self.batch]
            tokens: list[list[int]] = [[] for _ in chosen]
            places: list[list[int]] = [[] for _ in chosen]
            counts = [Speculation(0, 0, COUNTED)] * len(chosen)
            inputs = [integers(prompt) for prompt in chosen]
            for step in self.decoder.stream(inputs, **wanted, **self._settings, seed=derived(seed, first + start)):
                for row, block in enumerate(step.tokens):
                    tokens[row] += block
                    places[row] += range(len(block))
                    counts[row] += Speculation(step.proposed[row], step.accepted[row])
            for row, prompt in enumerate(chosen):
                doubt = _begins_in_prompt(prompt, tokens[row], request, self.decoder.tokenizer)
                yield Sample(tuple(prompt), tuple(tokens[row]), tuple(places[row]), doubt, counts[row])


class TransformersSubject:
    """transformers' generate(), several prompts side by side. With an assistant it is assisted generation. With an
    assistant_tokenizer besides it is universal assisted generation, whose assistant has other tokens. With
    prompt_lookup (tokens a round) it is prompt lookup. These three run one prompt at a time.

    Requests with stop strings run one prompt at a time too, because in a batch transformers doesn't pad a row that a
    stop string ended. Assisted generation refuses stop_strings (5.23: the assistant gets them without a tokenizer), so
    there they are passed as a StoppingCriteria of the same class. Sampling with two tokenizers changes the assistant's
    embeddings permanently, once for each pair of tokenizers, so the subject has its own assistant and tokenizers."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer | None,
        assistant: PreTrainedModel | None = None,
        prompt_lookup: int | None = None,
        assistant_tokens: int | None = None,
        batch: int = BATCH,
        assistant_tokenizer: Tokenizer | None = None,
    ) -> None:
        self.model, self.assistant, self.prompt_lookup = model, assistant, prompt_lookup
        self.assistant_tokens = assistant_tokens
        alone = assistant is not None or prompt_lookup or getattr(model, "_is_stateful", False)
        self.batch = 1 if alone else batch  # a model whose state isn't a KV cache reads the padding too
        self.text = tokenizer
        self.tokenizer, self.assistant_tokenizer = _fast(tokenizer), _fast(assistant_tokenizer)
        kind = "assisted generation" if assistant is not None else "prompt lookup" if prompt_lookup else "generate"
        self.name = (
            f"transformers {kind}" if assistant_tokenizer is None else "transformers universal assisted generation"
        )

    def widths(self) -> dict[str, Subject]:
        """Plain decoding and other numbers of tokens a round; for a plain decoder, one row at a time."""
        if self.assistant is None and not self.prompt_lookup:
            alone = TransformersSubject(self.model, self.text, batch=1)
            return {"one row at a time": alone} if self.batch > 1 else {}
        others: dict[str, Subject] = {"plain": TransformersSubject(self.model, self.text, batch=1)}
        for gamma in WIDTHS:
            other = copy(self)  # with the same tokenizers
            if self.assistant is not None:
                other.assistant_tokens = gamma
            else:
                other.prompt_lookup = gamma
            others[f"gamma {gamma}"] = other
        return others

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int = 0) -> Iterator[Sample]:
        if request.stop_strings and self.tokenizer is None:
            raise InvalidSetting("stop strings are asked for without a tokenizer: give the model's")
        for start in range(0, len(prompts), self.batch):
            chosen = prompts[start : start + self.batch]
            if self.batch > 1 and not request.stop_strings:
                torch.manual_seed(derived(seed, first + start))
                yield from self._together(chosen, request)
                continue
            for index, prompt in enumerate(chosen, start=first + start):
                torch.manual_seed(derived(seed, index))
                yield self._alone(prompt, request)

    def _alone(self, prompt: Sequence[int], request: Request) -> Sample:
        blocks = _BlockStreamer()
        ids = integers([list(prompt)])
        self._generate(
            ids,
            torch.ones_like(ids),
            request,
            tokenizer=self.tokenizer if request.stop_strings or self.assistant_tokenizer else None,
            stopping_criteria=self._criteria(request),
            streamer=blocks,
            **({"assistant_tokenizer": self.assistant_tokenizer} if self.assistant_tokenizer else {}),
        )
        doubt = _begins_in_prompt(prompt, blocks.tokens, request, self.text)
        return Sample(tuple(prompt), tuple(blocks.tokens), tuple(blocks.places), doubt)

    def _together(self, prompts: Sequence[Sequence[int]], request: Request) -> Iterator[Sample]:
        """Answers prompts in one batch, padded on the left. A row that ends early is padded after its end token."""
        length, padding = max(map(len, prompts)), _padding(request)
        ids = integers([[padding] * (length - len(prompt)) + list(prompt) for prompt in prompts])
        mask = integers([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        rows = self._generate(ids, mask, request)[:, length:].tolist()
        for prompt, row in zip(prompts, rows, strict=True):
            tokens = row[: _end(row, request)]
            yield Sample(tuple(prompt), tuple(tokens), (0,) * len(tokens))

    def _generate(self, ids: Tensor, mask: Tensor, request: Request, **more: Any) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(_without_defaults(self.model))
            if self.assistant is not None:
                stack.enter_context(_without_defaults(self.assistant, num_assistant_tokens=self.assistant_tokens))
            whole: Tensor = self.model.generate(
                ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=self._config(request),
                assistant_model=self.assistant,
                **more,
            )
        return whole

    def _config(self, request: Request) -> Any:
        from transformers import GenerationConfig

        drawn = {**request.sampling.keywords, "min_p": request.min_p or None}  # 0 would take time
        return GenerationConfig(
            **(drawn if request.temperature else dict(do_sample=False)),
            max_new_tokens=request.max_new_tokens,
            eos_token_id=list(request.eos_token_ids) or None,
            pad_token_id=_padding(request),
            stop_strings=None if self.assistant is not None else list(request.stop_strings) or None,
            prompt_lookup_num_tokens=self.prompt_lookup,
        )

    def _criteria(self, request: Request) -> list[Any]:
        from transformers import StopStringCriteria

        if self.assistant is None or not request.stop_strings:
            return []
        return [StopStringCriteria(self.tokenizer, list(request.stop_strings))]


def _padding(request: Request) -> int:
    """A token for padding. It is none of the end tokens, so that padding after an end token can be recognised."""
    return next(token for token in range(len(request.eos_token_ids) + 1) if token not in request.eos_token_ids)


def _end(row: Sequence[int], request: Request) -> int:
    """How many tokens transformers drew for a row: up to the end token after which there is only padding."""
    padding = _padding(request)
    ends = (index + 1 for index, token in enumerate(row) if token in request.eos_token_ids)
    return next((end for end in ends if all(token == padding for token in row[end:])), len(row))


def _fast(tokenizer: Tokenizer | None) -> Any:
    """A tokenizer in transformers' form."""
    from transformers import PreTrainedTokenizerFast

    return None if tokenizer is None else PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _begins_in_prompt(
    prompt: Sequence[int], tokens: Sequence[int], request: Request, tokenizer: Tokenizer | None
) -> str:
    """A doubt, "" for none: transformers also ends at a stop string that begins in the prompt, as its rule allows."""
    if tokenizer is None or not request.stop_strings or len(tokens) >= request.max_new_tokens:
        return ""
    stops = Stops(strings=request.stop_strings, tokenizer=tokenizer)
    ended, alone = stops.keep(prompt, (), tokens), stops.keep((), (), tokens)
    if ended == (len(tokens), "stop_string") and alone[1] is None:
        return "a stop string that begins in the prompt ended it, as transformers has it"
    return ""


@contextmanager
def _without_defaults(model: PreTrainedModel, **settings: Any) -> Iterator[None]:
    """The model without its checkpoint's end tokens, penalties and filters, which transformers would use wherever a
    request has None. settings: those that stay."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig(**settings)
    try:
        yield
    finally:
        model.generation_config = own


class _BlockStreamer:
    """A streamer that records which tokens came together. The first tokens that it gets are the prompt."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.places: list[int] = []
        self._is_prompt = True

    def put(self, block: Tensor) -> None:
        if not self._is_prompt:
            self.tokens += block.flatten().tolist()
            self.places += range(block.numel())
        self._is_prompt = False

    def end(self) -> None:
        pass


class CallableSubject:
    """A Python function of this process, called once for each prompt, without a time limit. foreign.ForeignSubject is
    for a function that can't be trusted to return."""

    def __init__(self, function: Function, name: str) -> None:
        self.function, self.name = function, name
        try:
            takes = frozenset(taken(function))
        except Unfit as error:
            raise InvalidSetting(f"decoder is {name}, and {one_line(str(error), 400)}") from None
        self._takes_gamma, self._taking = "gamma" in takes, Taking(takes - {"gamma"})
        self.notes, self.takes = self._taking.notes, self._taking.takes

    def check(self, plan: Plan) -> None:
        """See samples.Subject."""
        self._taking.check(self.name, plan)

    def widths(self) -> dict[str, Subject]:
        """The same function with other gammas, if it takes one."""
        if not self._takes_gamma:
            return {}
        return {
            f"gamma {gamma}": CallableSubject(partial(self.function, gamma=gamma), f"{self.name}, gamma {gamma}")
            for gamma in WIDTHS
        }

    def sample(self, prompts: Sequence[Sequence[int]], request: Request, seed: int, first: int = 0) -> Iterator[Sample]:
        for index, prompt in enumerate(prompts):
            try:
                settings = self._taking.settings(request, derived(seed, first + index))
                answer = answer_of(self.function(list(prompt), **settings))
            except KeyboardInterrupt:  # Ctrl-C is meant for us
                raise
            except Unfit as error:
                raise NotJudgeable(f"decoder {self.name} {one_line(str(error), 400)}") from None
            except BaseException as error:  # foreign code may raise anything, SystemExit too
                raise NotJudgeable(
                    f"decoder {self.name} raised {one_line(error_line(error), 400)} (prompt {index} of "
                    f"{len(prompts)}, {len(prompt)} tokens): mend it, or run it alone for the traceback"
                ) from error
            yield sample_of(prompt, answer)
