"""One process of the gate: decodes a round when it is told to, and says how long that took. Run by a side's own Python.

Lines of JSON: a plan comes first, and is answered once all is loaded and warm. Then each line names a case and a
prompt, and is answered with the next round of decoding it, [seconds, new tokens], or null after its last.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from benchmarks.workloads import Case, Workload


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer every line until there is none."""

    def answer(what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    plan = json.loads(requests.readline())
    cases = {case.name: case for case in (Case(**each) for each in plan["cases"])}
    workloads = {
        name: Workload(name, plan["prompts"], plan["new_tokens"], plan["device"], plan["dtype"])
        for name in {case.workload for case in cases.values()}
    }
    for case in cases.values():
        for prompt in range(plan["prompts"]):
            workloads[case.workload].run(case, prompt)
    answer({"sybil": _where(), "about": _about(plan["device"]), "prompts": _digest(workloads)})
    rounds: Iterator[tuple[float, int]] | None = None
    for line in requests:
        name, prompt = json.loads(line)
        rounds = rounds or workloads[cases[name].workload].rounds(cases[name], prompt)
        following = next(rounds, None)
        if following is None:
            rounds = None
        answer(following)


def _digest(workloads: Mapping[str, Workload]) -> str:
    """Of all prompts' tokens, which are each side's own."""
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
    os.dup2(2, 1)  # whatever a library prints is no answer
    serve(sys.stdin, replies)
