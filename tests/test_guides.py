"""Every block of code on the site's pages runs: docs/index.md, docs/start.md and docs/guides.

A page's blocks run one after the other in a folder of their own, Python in one namespace, as a reader would type them.
The models that the pages name lie there, each a tiny model of the kind that it stands for: see `lay`. A line that takes
minutes, a network or a server isn't run: `NOT_RUN` names it, and the command line's own parser checks its command
and options. Other programs than sybil are known by `OTHERS`, each with its check. A block in an unknown language, a
line of an unknown program and an entry of `NOT_RUN` that no page has any more are errors.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ggufs
import makes
import pytest
import typer
import yaml
from test_docs import nox_sessions
from tiny import sybil

from sybil.cli.main import app
from sybil.judging import asked
from sybil.models.checkpoints import ollama

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / "index.md", ROOT / "docs" / "start.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

NOT_RUN = {
    "sybil compare": "minutes: many prompts, by transformers too",
    "sybil verify": "minutes, and a process of its own for a function",
    "sybil distill": "an hour",
}
"""Lines that are checked and not run, by how they begin, and why."""

TEMPLATE = "{% for each in messages %}{{ each.role }}: {{ each.content }}\n{% endfor %}assistant:"


def lay(folder: Path, root: Path) -> None:
    """What the pages name, in a reader's folder: each a tiny model with random weights. root: where they are made."""
    stand_ins = {
        "my-model": "openai-community/gpt2-medium",
        "my-draft": "openai-community/gpt2",  # whose tokens are the target's
        "my-own-draft": "openai-community/gpt2",  # what `sybil distill` would have made
        "other-draft": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",  # whose tokens are others
    }
    for name, model in stand_ins.items():
        (folder / name).symlink_to(makes.folder(model, root / "models"))
    for name, model in {"model.gguf": "HuggingFaceTB/SmolLM2-1.7B", "draft.gguf": "HuggingFaceTB/SmolLM2-135M"}.items():
        (folder / name).symlink_to(chatting(model, root))
    blob = chatting("HuggingFaceTB/SmolLM2-135M", root)
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    (folder / "ollama" / "blobs").mkdir(parents=True)
    (folder / "ollama" / "blobs" / f"sha256-{digest}").symlink_to(blob)
    manifest = folder / "ollama" / "manifests" / "registry.example" / "library" / "smollm2" / "135m"
    manifest.parent.mkdir(parents=True)
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    for page in PAGES:  # a file that one page has its reader save is there for the other pages, too
        for block in blocks(page.read_text()):
            if block.file:
                (folder / block.file).write_text(block.text)
    (folder / "notes").mkdir()
    (folder / "notes" / "monday.txt").write_text("The first thing to do is to read the letter.\n")


def chatting(model: str, root: Path) -> Path:
    """The tiny model of a hub id as a GGUF file with a chat template."""
    path = root / f"{model.replace('/', '-')}.gguf"
    if not path.exists():
        tiny = makes.model_of(model)
        keys = makes.kind_of(model).gguf(tiny.config.vocab_size)
        ggufs.write(tiny, path, {**keys, "tokenizer.chat_template": TEMPLATE})
    return path


# What becomes of a block ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One of a page's. line: where it begins."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that a reader saves it as, which its first line names."""
        named = re.match(r"# ([\w-]+\.py)\n", self.text)
        return named[1] if named else None


def blocks(text: str, page: str = "page.md") -> list[Block]:
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1].strip(), found[2])
        for found in BLOCK.finditer(text)
    ]


def lines(text: str) -> Iterator[str]:
    """A shell block's commands, without comments, each on one line."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield shlex.join(words)


def not_run(line: str) -> str | None:
    """The entry of NOT_RUN that the line falls under."""
    return next((each for each in NOT_RUN if f"{line} ".startswith(f"{each} ")), None)


def run(block: Block, names: dict[str, Any]) -> None:
    """Run or check the block; whatever is wrong with it is raised, with the block's place. names: the page's."""
    try:
        if block.language == "python":
            if block.file:
                Path(block.file).write_text(block.text)
            else:
                exec(compile(block.text, f"{block.page}:{block.line}", "exec"), names)
        elif block.language == "sh":
            for line in lines(block.text):
                run_line(line)
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)
        else:
            raise AssertionError(f"a block in {block.language or 'no language'}: use python, sh or yaml")
    except BaseException as error:
        error.add_note(f"the block at {block.page}:{block.line}")
        raise


def run_line(line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "sybil":
        if not_run(line):
            parsed(arguments)
        else:
            assert sybil(*arguments) == 0, line
    else:
        assert program in OTHERS, f"{program} is no program that tests/test_guides.py knows"
        OTHERS[program](arguments)


def parsed(arguments: list[str]) -> None:
    """Raises the command line's own error for a command or an option that it doesn't have."""
    group: Any = typer.main.get_command(app)
    with group.make_context("sybil", list(arguments)) as context:
        name, command, rest = group.resolve_command(context, list(arguments))
        command.make_context(name, rest, parent=context).close()


def installed(arguments: list[str]) -> None:
    """pip's: constraints, extras and packages exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert arguments[0] == "install"
    words = iter(arguments[1:])
    for word in words:
        if word in ("-c", "-e"):
            assert (ROOT / next(words)).exists()
        elif not word.startswith("-"):
            name, extra = re.fullmatch(r"([\w.-]+)(?:\[(\w+)\])?", word).groups()  # type: ignore[union-attr]
            assert name == project["name"] or name.lower() in pinned, f"{name} is in no file of this repository"
            assert extra is None or extra in project["optional-dependencies"], f"{project['name']} has no {extra}"


def collected(arguments: list[str]) -> None:
    """pytest's: the tests are found, and their fixtures and markers exist; they don't run."""
    options = "-p", "pytest_sybil", "-p", "no:cacheprovider", "--strict-markers", "--setup-plan", "-q"
    assert pytest.main([*options, *arguments]) == 0


def sessions_exist(arguments: list[str]) -> None:
    assert arguments[0] == "-s"
    assert arguments[1] in nox_sessions((ROOT / "noxfile.py").read_text())


def prepared(arguments: list[str]) -> None:
    assert arguments in (["-m", "venv", ".venv"], [".venv/bin/activate"])


OTHERS: Mapping[str, Callable[[list[str]], None]] = {
    "pip": installed, "pytest": collected, "nox": sessions_exist, "python3": prepared, ".": prepared,
}  # fmt: skip


# The pages -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def reader(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder, and this process in it. The registered pair smollm2 is a tiny model of its make, and the
    judge's quick plan is a few tokens."""
    lay(tmp_path, made)
    instruct = "HuggingFaceTB/SmolLM2-135M-Instruct"
    (makes.folder(instruct, made / "models") / "chat_template.jinja").write_text(TEMPLATE)
    makes.cached(instruct, made)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(made / "hub"))
    monkeypatch.setattr("sybil.pairs.packaged_file", lambda name: None)
    few = MappingProxyType({**asked.QUICK, "count": 3, "repeats": 1, "max_new_tokens": 6})
    monkeypatch.setattr("sybil.judging.asked.QUICK", few)
    monkeypatch.setattr("sybil.judging.QUICK", few)
    monkeypatch.setenv(ollama.MODELS, str(tmp_path / "ollama"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"/quit\n"), encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mine", "test_lossless"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page: Path, reader: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page.read_text(), page.name):
        run(block, names)


def test_what_is_not_run_is_on_a_page() -> None:
    shown = [line for page in PAGES for block in blocks(page.read_text()) if block.language == "sh"
             for line in lines(block.text)]  # fmt: skip
    assert {not_run(line) for line in shown} - {None} == set(NOT_RUN)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("```python\nimport sybil\nsybil.lod('stdlib')\n```", "no attribute 'lod'"),
        ("```python\nassert 'a' == 'b'\n```", "page.md:1"),
        ("```sh\nsybil check my-model --no-such-option\n```", "sybil check"),
        ("```sh\nsybil check nobodys-model --no-run\n```", "sybil check"),
        ("```sh\nsybil verify --targt my-model\n```", "--targt"),
        ("```sh\nsybil distil my-model\n```", "sybil distil"),
        ("```sh\npip install project-sybil[pytests]\n```", "pytests"),
        ("```sh\npip install smollm3\n```", "smollm3"),
        ("```sh\nnox -s gates\n```", "gates"),
        ("```sh\ncurl somewhere\n```", "curl"),
        ("```\nsybil generate\n```", "no language"),
        ("```yaml\na: [b\n```", "page.md:1"),
    ],
)
def test_a_wrong_block_is_seen(fault: str, complaint: str, reader: Path) -> None:
    (block,) = blocks(fault)
    with pytest.raises(BaseException) as caught:  # noqa: PT011  SystemExit of the command line among them
        run(block, {})
    assert complaint in "\n".join([str(caught.value), *caught.value.__notes__])


def test_a_test_without_its_fixture_is_seen(reader: Path) -> None:
    Path("test_lossless.py").write_text("def test_it(losless):\n    pass\n")
    with pytest.raises(AssertionError):
        run_line("pytest test_lossless.py")
