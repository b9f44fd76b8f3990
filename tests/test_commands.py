"""docs/commands: the pages are what tools/docs/commands.py makes of each command's --help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_docs import sybil_commands

from tools.docs import commands as making

REMEDY = "write them anew: python -m tools.docs.commands"


def differing(folder: Path, wanted: dict[str, str]) -> set[str]:
    """The files that are missing, too many, or say something else."""
    there = {file.name: file.read_text() for file in folder.glob("*.md")}
    return {name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name)}


def test_each_command_has_its_page() -> None:
    source = Path(making.__file__).parents[2] / "sybil" / "cli" / "main.py"
    assert set(making.commands()) == sybil_commands(source.read_text())
    assert differing(making.PAGES, making.pages()) == set(), REMEDY


def test_the_pages_say_what_help_says() -> None:
    page = making.pages()["generate.md"]
    assert "| `--gamma` `auto\\|N` | Tokens the draft proposes in a round" in page
    assert "[default: token]" in page
    assert "sybil generate [OPTIONS] [prompt]" in page
    assert all(f"--{name}" in page for name in ("temperature", "max-new-tokens", "json"))


@pytest.mark.parametrize("fault", ["changed", "missing", "too many"])
def test_a_page_that_is_not_true_is_seen(fault: str, tmp_path: Path) -> None:
    wanted = {"a.md": "one", "b.md": "two"}
    changes: dict[str, dict[str, Any]] = {"changed": {"b.md": "2"}, "missing": {"b.md": None}, "too many": {"c.md": ""}}
    there = {**wanted, **changes[fault]}
    for name, text in there.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    assert differing(tmp_path, wanted) == set(changes[fault])


def test_marks_in_help_are_text_but_in_code() -> None:
    assert making.cleaned("q8_0 or `q8_0`, a*b") == "q8\\_0 or `q8_0`, a\\*b"
