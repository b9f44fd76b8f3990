"""What the documents name exists: files, headings, sessions of nox, commands of sybil. `nox -s docs` needs no torch.

Each check is a function of a text that returns what is wrong with it, and is shown to complain of a planted fault.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "sybil" / "embedded" / "stdlib" / "README.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "tests/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    CARD,
]
SCRIPTS = [ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml")]

FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]+(?:\.(?:py|md|c|h|json|toml|yml)|/)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SESSIONS = re.compile(r"""\bnox["']? -s ([a-z]\w*(?: [a-z]\w*)*)""")
MATRIX = re.compile(r"^\s*session: \[(.*)\]", re.MULTILINE)
COMMAND = re.compile(r"(?:^|&&|\||;)\s*(?:\S*/)?sybil ([a-z]\w*)", re.MULTILINE)


def code(text: str) -> Iterator[str]:
    """A page's fenced blocks and code spans."""
    yield from FENCE.findall(text)
    yield from SPAN.findall(FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The headings as GitHub addresses them: lower case, spaces as hyphens, punctuation left out, repeats numbered."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\]\([^)]*\)|[^\w\- ]", "", heading.lower()).replace(" ", "-")
        repeats = (f"{plain}-{number}" if number else plain for number in range(len(found) + 1))
        found.add(next(name for name in repeats if name not in found))
    return found


def broken_links(text: str, page: Path) -> list[str]:
    """Relative links whose file or heading is not there; page: where the text stands, or would."""
    wrong = []
    for link in LINK.findall(SPAN.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        file = (page.parent / name).resolve() if name else page
        if file != page and (not file.exists() or ROOT not in file.parents):
            wrong.append(f"{link}: no such file in the repository")
        elif anchor and anchor not in anchors(text if file == page else file.read_text()):
            wrong.append(f"{link}: no such heading")
    return wrong


def unknown_sessions(text: str, known: Container[str]) -> list[str]:
    """Names after `nox -s`, and those of a workflow's matrix of sessions, that noxfile.py doesn't have."""
    named = [name for names in SESSIONS.findall(text) for name in names.split(" ")]
    named += [name.strip() for names in MATRIX.findall(text) for name in names.split(",")]
    return [name for name in named if name not in known]


def unknown_commands(text: str, known: Container[str]) -> list[str]:
    """Names after `sybil` at a command's place that the command line doesn't have."""
    return [name for name in COMMAND.findall(text) if name not in known]


def missing_files(text: str) -> list[str]:
    """Of docs/architecture.md's tables. Where the first column is `file`: relative to sybil/, the checkout, or what
    the row named before; elsewhere tests and, by their bare names, files of sybil/."""
    wrong = []
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        layout = table.startswith("| file |")
        for row in table.splitlines():
            folder = ROOT / "sybil"
            for name in SPAN.findall(row):
                if not re.fullmatch(r"[\w./]+(?:\.py|\.c|\.h|/)", name):
                    continue
                places = [ROOT / "sybil" / name, ROOT / name, folder / name] if layout else [ROOT / "tests" / name]
                places += [] if layout else (ROOT / "sybil").rglob(name)
                file = next((place for place in places if place.exists()), None)
                if file is None:
                    wrong.append(name)
                else:
                    folder = file if file.is_dir() else file.parent
    return wrong


def unknown_files(text: str) -> list[str]:
    """Code spans that look like files of the repository, by their path or, of sybil/ and tests/, by a part of it."""
    names = {
        name
        for name in SPAN.findall(FENCE.sub("", text))
        if re.fullmatch(r"[\w./-]+(?:\.(?:py|md|c|h|json|toml|yml)|/)", name)
    }
    places = ROOT, ROOT / "sybil", ROOT / "tests"
    files = [name for name in names if FILE.fullmatch(name)]
    return sorted(name for name in files if not any((place / name).exists() for place in places))


def nox_sessions(source: str) -> set[str]:
    """The functions under @nox.session, by the name that nox gives them."""
    found = set()
    for function in ast.parse(source).body:
        for mark in getattr(function, "decorator_list", []):
            called = mark.func if isinstance(mark, ast.Call) else mark
            if ast.unparse(called) == "nox.session":
                names = {each.arg: ast.literal_eval(each.value) for each in getattr(mark, "keywords", [])}
                found.add(names.get("name", function.name))
    return found


def sybil_commands(source: str) -> set[str]:
    """What `app.command()(function)` adds in sybil/cli/main.py."""
    found = set()
    for call in ast.walk(ast.parse(source)):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Call)
            and ast.unparse(call.func.func) == "app.command"
        ):
            given = [*call.func.args, *(each.value for each in call.func.keywords if each.arg == "name")]
            found.add(ast.literal_eval(given[0]) if given else ast.unparse(call.args[0]))
    return found


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    return nox_sessions((ROOT / "noxfile.py").read_text())


@pytest.fixture(scope="module")
def commands() -> set[str]:
    return sybil_commands((ROOT / "sybil" / "cli" / "main.py").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path, sessions: set[str], commands: set[str]) -> None:
    text = page.read_text()
    snippets = list(code(text))
    assert not broken_links(text, page)
    assert not [name for snippet in snippets for name in unknown_sessions(snippet, sessions)]
    assert not [name for snippet in snippets for name in unknown_commands(snippet, commands)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT)))
def test_what_a_script_calls_exists(script: Path, sessions: set[str], commands: set[str]) -> None:
    assert not unknown_sessions(script.read_text(), sessions)
    assert not unknown_commands(script.read_text(), commands)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "tests/README.md"])
def test_what_a_newcomer_is_led_to_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "`tests/counting.py`" in text or "`counting.py`" in text
    assert unknown_files(text) == []


def test_every_test_file_has_its_row() -> None:
    """Of tests/README.md, by its name or by one that ends with *."""
    rows = re.findall(r"`([\w*]+\.py|faults/)`", (ROOT / "tests" / "README.md").read_text())
    assert homeless([file.name for file in (ROOT / "tests").glob("*.py")], rows) == []


def homeless(files: list[str], rows: list[str]) -> list[str]:
    """Files that no row names."""
    return sorted(file for file in files if not any(fnmatch(file, row) for row in rows))


def test_a_test_file_without_a_row_is_seen() -> None:
    assert homeless(["test_gguf.py", "test_gguf_files.py", "test_new.py"], ["test_gguf*.py"]) == ["test_new.py"]


def test_a_file_that_a_newcomer_would_not_find_is_seen() -> None:
    text = "`sybil/drafts.py`, `drafts.py`, `test_docs.py`, `tests/`, `a.b`, `docs/judge.md`\n```\n`x.py`\n```\n"
    assert unknown_files(text) == []
    assert unknown_files(text + "`sybil/draft.py`, `docs/jugde.md`") == ["docs/jugde.md", "sybil/draft.py"]


def test_the_table_of_the_architecture_names_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert "`models/operators/`" in text
    assert not missing_files(text)


def test_the_names_are_found(sessions: set[str], commands: set[str]) -> None:
    """An empty set would fault everything, but one that is too large would fault nothing."""
    assert {"tests", "lint", "docs"} <= sessions
    assert "install" not in sessions
    assert {"generate", "verify"} <= commands
    assert "run" not in commands
    assert nox_sessions("@nox.session(name='a-b')\ndef other(session): ...") == {"a-b"}
    assert sybil_commands("app.command('load-test')(function)\napp.callback()(other)") == {"load-test"}


def test_a_broken_link_is_seen() -> None:
    page = ROOT / "docs" / "planted.md"
    good = "[a](quality.md) [b](../README.md#three-lines) [c](#names--places-a_b) [d](https://x.y/z)"
    assert broken_links(f"## Names & places: `a_b`\n{good}\n```\n[e](f.md)\n```\n`[g](h)`", page) == []
    planted = "[a](qualty.md) [b](../README.md#four-lines) ![c](#names) [d](../../shared/DESIGN.md)"
    assert [each.split(":")[0] for each in broken_links(planted, page)] == [
        "qualty.md",
        "../README.md#four-lines",
        "#names",
        "../../shared/DESIGN.md",
    ]


def test_repeated_headings_are_numbered() -> None:
    assert anchors("# One\n## One\n## One\n```\n# no heading\n```\n") == {"one", "one-1", "one-2"}


def test_a_session_that_is_not_there_is_seen() -> None:
    known = {"tests", "lint", "types"}
    text = "`nox -s lint types`, then `nox -s tests -- -k cache`; a/nox -s proof\n    session: [lint, tpyes]\n"
    assert unknown_sessions('bin/nox" -s gate -- "$base"', known) == ["gate"]
    assert unknown_sessions(text, known) == ["proof", "tpyes"]
    assert unknown_sessions('nox -s "$SESSION"', known) == []


def test_a_command_that_is_not_there_is_seen() -> None:
    known = {"generate", "verify"}
    page = (
        "```\nsybil generate x\ncd a && .venv/bin/sybil sweep --quick\n```\n`sybil verfiy`, `sybil --version`, sybil is"
    )
    assert [name for each in code(page) for name in unknown_commands(each, known)] == ["sweep", "verfiy"]


def test_a_file_that_is_not_there_is_seen() -> None:
    good = "| file | holds |\n| `models/native/`, `forward.c`, `library.py` | `Model` |\n"
    good += "| `losslessness/` | `samples.py` |\n"
    assert missing_files(good + "\n| claim | test |\n| `forward.c` is right | `test_native.py` |\n") == []
    assert missing_files(good.replace("library.py", "libraries.py").replace("samples", "sample")) == [
        "libraries.py",
        "sample.py",
    ]
    assert missing_files("| file | holds |\n| `forward.c` | in models/ |\n") == ["forward.c"]
    assert missing_files("| claim | test |\n| `nativ.c` is right | `test_nativ.py` |\n") == ["nativ.c", "test_nativ.py"]
