"""The one measured run that asv's tracks read: every case over the same prompts, in one process, interleaved.

Nothing here knows asv. A pass takes each prompt through all cases, in an order of its own, before the next prompt's
turn; what is kept of it is, for each cell (a case, a kind of prompt, a device), the sums over the prompts. All passes
have the same prompts and seeds, so that samples differ by the machine's noise alone.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import (
    ACCEPTANCES,
    AUTO,
    EMBEDDED,
    NAMED,
    REAL,
    REPLAY,
    SYNTHETIC,
    Case,
    Lacking,
    Run,
    Workload,
    accepted,
)

GAMMAS = (4, 2, 8)  # the default first: asv shows the first of a parameter
RULES = ("token", "block", "coupled")
DOMAINS = ("code", "prose", "structured")
TRANSFORMERS = Case(drafter="transformers")
PLAIN = Case(drafter="none")
PLAIN_SAMPLING = Case(drafter="none", rule="coupled")

Sums = dict[str, float]
"""The fields of Run, summed over a cell's prompts in one pass, and the number of prompts."""
Cells = dict[str, list[Sums] | str]
"""By key(): a Sums a pass; or, in words, what the measured Sybil or the machine lacks for it."""


@dataclass(frozen=True, slots=True)
class TrackPlan:
    """What is measured on a workload, and how often. domains: of its prompts."""

    workload: str
    domains: tuple[str, ...]
    cases: tuple[Case, ...]
    prompts: int
    new_tokens: int
    passes: int

    def kinds(self, case: Case) -> tuple[str, ...]:
        """The kinds of text that the case has a cell for each of."""
        return tuple(map(accepted, ACCEPTANCES)) if case.drafter == SYNTHETIC else self.domains


PLANS = (
    TrackPlan(
        EMBEDDED,
        DOMAINS,
        (
            TRANSFORMERS,
            PLAIN,
            PLAIN_SAMPLING,
            *(Case(drafter=drafter, gamma=gamma) for drafter in ("model", "lookup") for gamma in GAMMAS),
            *(Case(rule=rule) for rule in RULES),
            *(Case(drafter=drafter, gamma=AUTO) for drafter in ("model", *NAMED)),
            Case(drafter=SYNTHETIC),
        ),
        prompts=9,
        new_tokens=24,
        passes=9,
    ),
    TrackPlan(
        REPLAY,
        ("random",),
        (Case(REPLAY, "none"), *(Case(REPLAY, gamma=gamma) for gamma in GAMMAS)),
        prompts=1,
        new_tokens=16,
        passes=9,
    ),
    TrackPlan(
        REAL,
        ("english",),
        (Case(REAL, "none"), *(Case(REAL, drafter, gamma=AUTO) for drafter in NAMED)),
        prompts=4,
        new_tokens=16,
        passes=9,
    ),
)


FAST = (
    TrackPlan(
        EMBEDDED,
        DOMAINS,
        (TRANSFORMERS, PLAIN, Case(), Case(rule=RULES[0]), Case(drafter=SYNTHETIC)),
        prompts=3,
        new_tokens=24,
        passes=9,
    ),
)
IS_FAST = os.environ.get("SYBIL_ASV_PLAN") == "fast"
"""Whether little is measured, in a minute: `nox -s asv -- --fast`, which asks for these cells alone."""


def key(case: Case, kind: str, device: str) -> str:
    """A cell's name."""
    return f"{case.workload}, {kind}, {device}, {case.drafter}, {case.rule}, gamma {case.gamma}"


def measure(devices: Sequence[str]) -> Cells:
    """Follow every plan on every device. Raises what goes wrong, but for what is merely lacking."""
    import sybil

    check_installed(sybil.__file__)
    plans = FAST if IS_FAST else PLANS
    return {name: sums for device in devices for plan in plans for name, sums in follow(plan, device).items()}


def check_installed(file: str) -> None:
    """Raise RuntimeError where sybil.__file__ isn't in this environment: nothing else is the commit to be measured."""
    place, home = Path(file).resolve(), Path(sys.prefix).resolve()
    if not place.is_relative_to(home):
        raise RuntimeError(f"sybil was imported from {place}, not from {home}: what is measured must be installed")


def follow(plan: TrackPlan, device: str) -> Cells:
    """The cells of one plan on one device."""
    import sybil

    def cells(case: Case) -> list[str]:
        return [key(case, kind, device) for kind in plan.kinds(case)]

    try:
        subject = _LoadedPlan(plan, device)
    except (ImportError, AttributeError, TypeError, Lacking, sybil.SybilError) as error:
        if plan.workload == EMBEDDED:  # an older Sybil has no replay and no SmolLM2, and every one an embedded pair
            raise
        return {cell: repr(error) for case in plan.cases for cell in cells(case)}
    found: Cells = {}
    able: list[Case] = []
    for case in plan.cases:
        try:
            subject.run(case, 0)  # which warms up, too
            able.append(case)
        except (Lacking, sybil.SybilError) as error:
            found |= {cell: repr(error) for cell in cells(case)}
    samples: dict[str, list[Sums]] = {cell: [] for case in able for cell in cells(case)}
    generator = random.Random(0)
    for _ in range(plan.passes):
        for (case, kind), sums in _pass(subject, able, generator).items():
            samples[key(case, kind, device)].append(sums)
    return {**found, **samples}


def _pass(subject: _LoadedPlan, cases: list[Case], generator: random.Random) -> dict[tuple[Case, str], Sums]:
    """Every prompt through every case."""
    totals: dict[tuple[Case, str], Sums] = defaultdict(lambda: defaultdict(float))
    for prompt in range(len(subject.workload.prompts)):
        for case in generator.sample(cases, len(cases)):
            total = totals[case, subject.workload.kind(case, prompt)]
            for field, value in asdict(subject.run(case, prompt)).items():
                total[field] += value
            total["prompts"] += 1
    return {cell: dict(total) for cell, total in totals.items()}


class _LoadedPlan:
    """A plan's workload, and transformers' own generate beside it where the plan asks for that."""

    def __init__(self, plan: TrackPlan, device: str) -> None:
        self.workload = Workload(plan.workload, plan.prompts, plan.new_tokens, device)
        self.model = _transformers(device) if TRANSFORMERS in plan.cases else None

    def run(self, case: Case, prompt: int) -> Run:
        if case != TRANSFORMERS:
            return self.workload.run(case, prompt)
        import torch

        ids = self.workload.prompts[prompt][None].to(self.model.device)
        clock = _FirstTokenClock()
        began = time.perf_counter()
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.workload.new_tokens,
            do_sample=False,
            streamer=clock,
        )
        emitted = len(out[0].tolist()) - ids.shape[1]  # which waits for the device
        seconds = time.perf_counter() - began
        return Run(seconds, clock.at - began, 0.0, emitted, 0, 0, emitted)


def _transformers(device: str) -> Any:
    """transformers' model of the embedded target, as Sybil loads it: float32 on a CPU, float16 on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    import sybil

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = Path(sybil.__file__).parent / "embedded" / EMBEDDED / "target"
    dtype = torch.float32 if device == "cpu" else torch.float16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    model.generation_config.eos_token_id = None  # every prompt gives as many tokens, as in Workload
    model.generation_config.pad_token_id = 0
    return model


class _FirstTokenClock:
    """A streamer that notes when the first new token came; the prompt is put first."""

    def __init__(self) -> None:
        self._puts, self.at = 0, 0.0

    def put(self, _: object) -> None:
        self._puts += 1
        if self._puts == 2:
            self.at = time.perf_counter()

    def end(self) -> None: ...
