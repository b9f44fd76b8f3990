"""One process of the gate: decodes when it is told to, and says how long that took. Run by a side's own Python.

Lines of JSON: a plan comes first, and is answered once all is loaded and warm; then the names of cases, each answered
with its milliseconds a token. The end of the input ends it.
"""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from benchmarks.workloads import Case, Workload


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer every line until there is none."""

    def answer(what: dict[str, Any]) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    plan = json.loads(requests.readline())
    cases = {case.name: case for case in (Case(**each) for each in plan["cases"])}
    workloads = {
        name: Workload(name, plan["prompts"], plan["new_tokens"], plan["device"], plan["dtype"])
        for name in {case.workload for case in cases.values()}
    }
    for case in cases.values():
        turn(workloads[case.workload], case)
    answer({"sybil": _where(), "about": _about(plan["device"])})
    for line in requests:
        case = cases[json.loads(line)]
        answer({"ms_per_token": turn(workloads[case.workload], case)})


def turn(workload: Workload, case: Case) -> float:
    """Milliseconds a token over all prompts."""
    runs = [workload.run(case, prompt) for prompt in range(len(workload.prompts))]
    return 1e3 * sum(run.seconds for run in runs) / sum(run.emitted for run in runs)


def _where() -> str:
    import sybil

    return str(sybil.__file__)


def _about(device: str | None) -> dict[str, Any]:
    from sybil.measuring.machine import describe
    from sybil.pairs import choose_device

    return dict(describe(choose_device(device)))


if __name__ == "__main__":
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    serve(sys.stdin, replies)
