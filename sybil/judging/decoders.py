"""Makes a decoder under judgement of what a caller gives: a name, a server, a function or an object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from sybil.arguments import described
from sybil.decoding import Decoder
from sybil.devices import dtype_named
from sybil.drafting.window import fixed
from sybil.drafts import LOOKUP, is_model
from sybil.errors import InvalidSetting
from sybil.fit import check_assisted, check_universal
from sybil.judging.original import Original, Source
from sybil.loading import IN_BLOCKS, load
from sybil.losslessness.child import FORMS
from sybil.losslessness.ending import end_tokens
from sybil.losslessness.endpoint import EndpointSubject
from sybil.losslessness.foreign import ForeignSubject
from sybil.losslessness.openvino import OpenVINOSubject
from sybil.losslessness.samples import Subject
from sybil.losslessness.subjects import CallableSubject, SybilSubject, TransformersSubject
from sybil.models.folders import locate
from sybil.models.objects import inside
from sybil.servers.deadline import TIMEOUT, checked
from sybil.servers.transport import Server
from sybil.settings import Settings

BUILT_IN = SYBIL, TRANSFORMERS, ASSISTED, USD, PROMPT_LOOKUP, OPENVINO = (
    "sybil", "transformers", "assisted", "usd", "prompt-lookup", "openvino",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server under judgement.

    `url`: the server's address. `model`: the server's name for the model, where it serves several. `concurrency`: how
    many requests run at once. `headers`: lines such as "Name: value". Raises InvalidSetting."""

    url: str
    model: str | None = None
    concurrency: int = 1
    headers: Sequence[str] = ()

    def __post_init__(self) -> None:
        Server(self.url, headers=self.headers)  # raises for what is no address or no header


Judged = str | Endpoint | Decoder | nn.Module | Subject | Callable[..., Any]
"""A name of BUILT_IN, the name of a function, or a server's URL; a sybil.Decoder; a transformers model, for its
generate(); a function of this process (subjects.Function has its form); or a samples.Subject."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The target that a decoder claims to follow, and the decoder's draft, where it is known. The fields are as
    sybil.load takes them."""

    target: Source
    draft: Source | None = None
    dtype: str | torch.dtype | None = None
    draft_dtype: str | torch.dtype | None = None
    device: str | torch.device | None = None
    tokenizer: Any = None
    datastore: Sequence[str | Path] = ()
    revision: str | None = None
    adapter: str | Path | None = None


class Bench:
    """Makes decoders under judgement over one target. What decoders and the judge can share is loaded once."""

    def __init__(
        self,
        models: Models,
        settings: Settings,
        eos: Sequence[str | int] = (),
        timeout: float = TIMEOUT,
        traceback: bool = False,
    ) -> None:
        """settings: of Sybil's own decoder. eos: end tokens, by id or text, in place of the target's own. timeout:
        seconds for an answer of a named function or a server. traceback: whether what a named function raises is shown
        whole. Raises the errors of sybil.errors."""
        self.models, self.settings = models, settings
        self._eos, self._timeout, self._traceback = [str(each) for each in eos], checked(timeout), traceback
        self._draft_dtype = dtype_named(models.draft_dtype, draft=True)
        self.target = Original(
            models.target, models.dtype, models.device, models.tokenizer, models.revision, models.adapter
        )
        self._ours: Decoder | None = None

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        if not self._eos:
            return self.target.end_tokens
        return end_tokens(self._eos, self._tokenizer("eos is given"))

    @cached_property
    def draft(self) -> Original | None:
        """The draft, run by transformers; None where there is no draft, or it is no model of its own."""
        draft = self.models.draft
        if draft is None or (isinstance(draft, str) and not is_model(draft)):
            return None
        return Original(draft, self.target.dtype, self.target.device, self.models.tokenizer)

    def subject(self, judged: Judged, *, plain: bool = False) -> Subject:
        """The decoder under judgement. plain: leave out the draft of Sybil's own decoder. Raises InvalidSetting."""
        if isinstance(judged, str):
            return self._named(judged, plain)
        if isinstance(judged, Endpoint):
            return self._served(judged)
        if isinstance(judged, Decoder):
            return self._sybil(judged, plain)
        if isinstance(judged, nn.Module):
            return TransformersSubject(inside(judged), self.target.tokenizer)
        if hasattr(judged, "sample") and hasattr(judged, "name"):
            return judged
        if callable(judged):
            return CallableSubject(judged, name_of(judged))
        raise InvalidSetting(
            f"decoder is {described(judged)}: give {', '.join(BUILT_IN)}, {FORMS}, a server's URL, a sybil.Decoder, a "
            "transformers model or a function"
        )

    def _named(self, name: str, plain: bool) -> Subject:
        if name.startswith(("http://", "https://")):
            return self._served(Endpoint(url=name))
        if name == SYBIL:
            return self._sybil(self._loaded(plain), plain)
        if name == OPENVINO:
            return self._openvino()
        if name in BUILT_IN:
            return self._transformers(name)
        if ":" in name:
            return ForeignSubject(name, self._timeout, self._traceback)
        raise InvalidSetting(f"decoder is {name!r}: use {', '.join(BUILT_IN)}, or {FORMS}")

    def _sybil(self, decoder: Decoder, plain: bool) -> SybilSubject:
        asked = self.settings
        return SybilSubject(decoder.without_draft() if plain else decoder, asked.gamma, asked.rule, asked.window)

    def _loaded(self, plain: bool) -> Decoder:
        """Sybil's own decoder, which a decoder and its control share."""
        if self._ours is None:
            models, target = self.models, self.target
            self._ours = load(
                models.target, None if plain else models.draft,
                dtype=None if target.kept == IN_BLOCKS else target.kept, draft_dtype=self._draft_dtype,
                device=target.device, revision=models.revision, adapter=models.adapter, tokenizer=models.tokenizer,
                datastore=models.datastore, progress=False,
            )  # fmt: skip
        return self._ours

    def _transformers(self, name: str) -> TransformersSubject:
        """One of transformers' decoders. Raises InvalidSetting where the models given don't allow it."""
        if name in (ASSISTED, USD) and self.draft is None:
            has = "the target has no draft" if self.models.draft is None else f"draft {self.models.draft}"
            raise InvalidSetting(f"decoder is {name} and {has}: add --draft, a model of its own")
        model, tokenizer = self.target.model, self.target.tokenizer
        if name == TRANSFORMERS:
            return TransformersSubject(model, tokenizer)
        if getattr(model, "_is_stateful", False):
            raise InvalidSetting(
                f"decoder is {name} and target {self.target.name} keeps a state that can't be rolled back, which "
                "transformers refuses: judge transformers, or a decoder of your own"
            )
        if name == PROMPT_LOOKUP or self.draft is None:
            return TransformersSubject(model, tokenizer, prompt_lookup=fixed(self.settings.gamma))
        if name == USD:
            check_universal(model, self.draft.model, self.draft.name)
            theirs = self.draft.tokenizer
            if tokenizer is None or theirs is None:
                raise InvalidSetting("decoder is usd, which needs two tokenizers: give target and draft with theirs")
            return TransformersSubject(model, tokenizer, self.draft.loaded(), assistant_tokenizer=theirs)
        check_assisted(model, self.draft.model, self.draft.name)
        return TransformersSubject(model, tokenizer, self.draft.model)

    def _openvino(self) -> OpenVINOSubject:
        """OpenVINO GenAI's decoder, which reads the files or folders itself."""
        target, draft = self.models.target, self.models.draft
        if isinstance(target, nn.Module) or isinstance(draft, nn.Module):
            raise InvalidSetting("decoder is openvino, which reads files itself: give target and draft by name or path")
        if self.models.adapter is not None:
            raise InvalidSetting("decoder is openvino, which reads files itself, and adapter is given: leave one out")
        its = None if draft is None or draft == LOOKUP else locate(draft)
        found, gamma = locate(target, self.models.revision), fixed(self.settings.gamma)
        return OpenVINOSubject(found, its, gamma=gamma, lookup=draft == LOOKUP)

    def _served(self, endpoint: Endpoint) -> EndpointSubject:
        server = Server(endpoint.url, self._timeout, endpoint.headers)
        tokenizer = self._tokenizer("a server is judged")
        return EndpointSubject(server, endpoint.model, tokenizer, frozenset(self.end_tokens), endpoint.concurrency)

    def _tokenizer(self, why: str) -> Tokenizer:
        if self.target.tokenizer is None:
            raise InvalidSetting(f"{why} and the target has no tokenizer: give it with the target (tokenizer)")
        return self.target.tokenizer


def rounds_as_the_target(judged: Judged) -> bool:
    """Whether the decoder keeps its weights in the target's dtype, so that the dtype tells how it rounds."""
    return (
        judged in BUILT_IN and judged != OPENVINO
        if isinstance(judged, str)
        else isinstance(judged, Decoder | nn.Module)
    )


def name_of(function: Callable[..., Any]) -> str:
    """A function's name, as a command line would give it."""
    named = getattr(function, "func", function)  # a functools.partial has no name of its own
    name = getattr(named, "__qualname__", type(named).__name__)
    return f"{getattr(named, '__module__', None) or 'a module'}:{name}"
