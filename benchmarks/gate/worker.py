"""One process of the gate. It decodes a round when it is told to, and answers how long that took. A side's own Python
runs it.

Requests and answers are lines of JSON. The first request is a plan; its answer comes when all models are loaded and
warm. Each further request names a case and a prompt; its answer is the next round of decoding that prompt, as [seconds,
new tokens], or null after the last round."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from benchmarks.workloads import Case, Lacking, Workload


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer each request, until there are no more."""

    def answer(what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    plan = json.loads(requests.readline())
    cases = {case.name: case for case in (Case(**each) for each in plan["cases"])}
    workloads, lacking = _load(cases, plan)
    about = {"sybil": _where(), "about": _about(plan["device"]), "prompts": _digest(workloads)}
    answer({**about, "lacking": lacking})
    rounds: Iterator[tuple[float, int]] | None = None
    for line in requests:
        name, prompt = json.loads(line)
        rounds = rounds or workloads[cases[name].workload].rounds(cases[name], prompt)
        following = next(rounds, None)
        if following is None:
            rounds = None
        answer(following)


def _load(cases: Mapping[str, Case], plan: Mapping[str, Any]) -> tuple[dict[str, Workload], dict[str, str]]:
    """The workloads of the cases, warm, and by case what this version of Sybil or this environment lacks for it."""
    from sybil import SybilError

    workloads: dict[str, Workload] = {}
    lacking: dict[str, str] = {}
    for name, case in cases.items():
        try:
            if case.workload not in workloads:
                loaded = Workload(case.workload, plan["prompts"], plan["new_tokens"], plan["device"], plan["dtype"])
                workloads[case.workload] = loaded
            for prompt in range(plan["prompts"]):
                workloads[case.workload].run(case, prompt)
        except (Lacking, SybilError) as error:
            lacking[name] = str(error)
    return workloads, lacking


def _digest(workloads: Mapping[str, Workload]) -> str:
    """The digest of all prompts' tokens. Each side encodes the prompts itself."""
    tokens = {name: [prompt.tolist() for prompt in workload.prompts] for name, workload in sorted(workloads.items())}
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _where() -> str:
    import sybil

    return str(sybil.__file__)


def _about(device: str | None) -> dict[str, Any]:
    from sybil.measuring.machine import describe
    from sybil.pairs import choose_device

    return dict(describe(choose_device(device)))


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints isn't mistaken for an answer
    serve(sys.stdin, replies)
