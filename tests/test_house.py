"""The house as docs/architecture.md has it: imports run one way, without circles, and no file outgrows its reader."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "sybil"
FLOORS = (
    ("sybil.cli",),
    ("sybil.reports",),
    ("sybil.judging", "sybil.distilling", "sybil.sweeping", "sybil.trading"),
    ("sybil.measuring", "sybil.losslessness", "sybil.interop", "sybil.checking"),
    ("sybil.loading",),
    ("sybil.fit", "sybil.pairs", "sybil.own_pairs", "sybil.facts", "sybil.drafts", "sybil.storages"),
    ("sybil.decoding", "sybil.conversation"),
    ("sybil.inputs", "sybil.shaping", "sybil.chat", "sybil.sandbox"),
    ("sybil.defaults", "sybil.drafting", "sybil.verification", "sybil.lossy", "sybil.settings", "sybil.stopping"),
    ("sybil.residual",),
    ("sybil.models", "sybil.sampling", "sybil.budget"),
    ("sybil.filters", "sybil.noise"),
    ("sybil.arguments", "sybil.pieces", "sybil.servers"),
    ("sybil.errors", "sybil.progress"),
)
"""From the top down: a file may import its own floor and those below."""
Imports = Mapping[str, set[str]]


def name_of(file: Path) -> str:
    parts = file.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(text: str, modules: set[str]) -> Iterator[str]:
    """Which of the modules a text imports, wherever in it, but for type checkers alone."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & modules or {node.module}
            if names - modules:
                yield node.module
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from (name for name in visit(ast.parse(text)) if name in modules)


def of_the_library() -> Imports:
    files = {name_of(file): file for file in LIBRARY.rglob("*.py")}
    return {name: set(imported(file.read_text(), set(files))) - {name} for name, file in files.items()}


def circle(imports: Imports) -> list[str]:
    """A circle of modules, or []."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def floor(module: str) -> int | None:
    """How far down the module stands; None for what every floor may use."""
    places = [number for number, wing in enumerate(FLOORS) for name in wing if f"{module}.".startswith(f"{name}.")]
    return places[0] if places else None


def climbing(imports: Imports) -> list[str]:
    """Imports from below of what stands above."""
    return [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if (here := floor(module)) is not None and (there := floor(other)) is not None and there < here
    ]


def test_imports_run_one_way() -> None:
    imports = {name: others for name, others in of_the_library().items() if name not in ("sybil", "sybil.__main__")}
    assert circle(imports) == []
    assert climbing(imports) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from sybil.models import Model", {"sybil.models"}),
        ("from sybil.models import folders, Model", {"sybil.models", "sybil.models.folders"}),
        ("def f():\n    import sybil.cli.main", {"sybil.cli.main"}),
        ("if TYPE_CHECKING:\n    import sybil.cli.main", set()),
    ],
)
def test_the_check_sees_an_import(text: str, found: set[str]) -> None:
    assert set(imported(text, {"sybil.models", "sybil.models.folders", "sybil.cli.main"})) == found


def test_the_check_sees_a_circle_and_a_climb() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert climbing({"sybil.models.folders": {"sybil.loading"}}) == ["sybil.models.folders imports sybil.loading"]


def test_no_file_outgrows_its_reader() -> None:
    long = {
        name_of(file): lines for file in LIBRARY.rglob("*.py") if (lines := len(file.read_text().split("\n"))) > 351
    }
    assert long == {}


FILED_BY_ASV = {"Auto", "Autoregressive", "Greedy", "RandomWeights", "Real", "Sampled"}
"""Class names that two files have: asv files results under them, and decoding.py and rates.py read the same cases."""


def named_twice(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Class names, a leading underscore left out, that two of the files' texts define: each with the files' names."""
    found: dict[str, list[str]] = {}
    for file, text in texts.items():
        for name in {node.name.lstrip("_") for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)}:
            found.setdefault(name, []).append(file)
    return {name: files for name, files in sorted(found.items()) if len(files) > 1}


def test_each_class_has_a_name_of_its_own() -> None:
    root = LIBRARY.parent
    files = [file for wing in ("sybil", "benchmarks", "tools") for file in sorted((root / wing).rglob("*.py"))]
    found = named_twice({str(file.relative_to(root)): file.read_text() for file in files})
    assert found == {name: ["benchmarks/decoding.py", "benchmarks/rates.py"] for name in FILED_BY_ASV}


def test_a_name_that_two_files_define_is_seen() -> None:
    texts = {"a.py": "class Row: ...\nclass Only: ...", "b.py": "def f():\n    class _Row: ...", "c.py": "Row = int"}
    assert named_twice(texts) == {"Row": ["a.py", "b.py"]}
