"""What a terminal is told before anything runs: --help and its examples, --version, and a shell's completions."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import typer
from tiny import sybil

import sybil as library
from sybil.cli.examples import EXAMPLES
from sybil.cli.main import app
from sybil.cli.version import versions
from sybil.models.native import library as native
from sybil.pairs import REGISTERED

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SHELLS = ("bash", "zsh", "fish")


def test_every_command_has_two_examples() -> None:
    assert EXAMPLES.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_its_examples_and_fits_80_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert sybil(name, "--help") == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.rstrip().splitlines()]
    assert max(map(len, lines)) <= 80
    ending = [line.strip() for line in lines[lines.index(" Examples:") :] if line.strip()]
    assert ending == ["Examples:", *EXAMPLES[name]]  # whole lines, as they are typed


@pytest.mark.parametrize("example", [each for two in EXAMPLES.values() for each in two])
def test_an_example_is_a_command_line_of_its_command(example: str) -> None:
    program, name, *arguments = shlex.split(example, comments=True)
    assert program == "sybil"
    assert example in EXAMPLES[name]
    COMMANDS[name].make_context(name, arguments)  # raises where an option or a value is wrong


def test_an_example_of_an_option_that_is_not_there_would_be_seen() -> None:
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["pairs"].make_context("pairs", ["--nonesuch"])


def test_version_is_what_is_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert sybil("--version") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"sybil {library.__version__}",
        f"torch {torch.__version__}",
        f"transformers {transformers.__version__}",
    ]
    assert lines[3].startswith("C forward: builds, with vectors of ")
    assert len(lines) == 4
    monkeypatch.setenv("SYBIL_NATIVE", "0")
    assert list(versions())[3] == "C forward: off, since SYBIL_NATIVE is 0"


def test_version_says_why_the_c_forward_does_not_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYBIL_NATIVE", raising=False)
    monkeypatch.setenv("CC", "/no/such/compiler")
    native.load.cache_clear()
    try:
        line = list(versions())[3]
    finally:
        native.load.cache_clear()
    assert line.startswith("C forward: doesn't build: /no/such/compiler")
    assert "No such file" in line


def completed(shell: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a shell is offered for the last word of a line."""
    words = line.split(" ")
    monkeypatch.setenv("_SYBIL_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert sybil() == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sybil gen", ["generate"]),
        ("sybil generate --rule ", ["token", "block", "coupled"]),
        ("sybil compare --window h", ["heuristic"]),
        ("sybil chat --pair opt:1", ["opt:1.3b"]),
        ("sybil pairs stdl", ["stdlib"]),
        ("sybil profile --metrics-f", ["--metrics-file"]),
    ],
)
def test_a_shell_is_offered_what_fits(
    shell: str, line: str, offered: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = completed(shell, line, capsys, monkeypatch)
    told = "\n".join(found)
    for name in offered:
        assert (name.replace(":", r"\\:") if shell == "zsh" else name) in told
    assert shell != "bash" or found == offered


def test_all_pairs_are_offered_though_a_users_own_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "sybil" / "pairs.toml"
    file.parent.mkdir()
    file.write_text('[mine]\ntarget = "here"\n')
    assert completed("bash", "sybil generate --pair ", capsys, monkeypatch) == [*REGISTERED, "mine"]
    file.write_text("[mine")
    assert completed("bash", "sybil generate --pair ", capsys, monkeypatch) == [*REGISTERED]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_gets_its_script(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SYBIL_COMPLETE", f"source_{shell}")
    assert sybil() == 0
    script = capsys.readouterr().out
    assert f"complete_{shell}" in script
    monkeypatch.setenv("_SYBIL_COMPLETE", "source_nonesuch")
    assert sybil() == 2
    monkeypatch.delenv("_SYBIL_COMPLETE")
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    capsys.readouterr()
    assert sybil("--show-completion", shell) == 0
    assert capsys.readouterr().out.strip() == script.strip()


def test_completion_is_installed_for_the_user_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert sybil("--install-completion", "bash") == 0
    assert "bash completion installed" in capsys.readouterr().out
    installed = tmp_path / ".bash_completions" / "sybil.sh"
    assert "_SYBIL_COMPLETE" in installed.read_text()
    assert str(installed) in (tmp_path / ".bashrc").read_text()


def test_bash_itself_completes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script as bash runs it when TAB is pressed."""
    bash = shutil.which("bash")
    assert bash, "the tests need bash"
    program = tmp_path / "sybil"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sybil "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    monkeypatch.setenv("_SYBIL_COMPLETE", "source_bash")
    assert sybil() == 0
    script = capsys.readouterr().out
    pressed = script + (
        "COMP_WORDS=(sybil generate --rule c); COMP_CWORD=3\n"
        "_sybil_completion sybil c --rule\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
        "complete -p sybil\n"
    )
    found = subprocess.run([bash, "--norc", "-c", pressed], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[0] == "coupled"
    assert found.stdout.splitlines()[1].endswith("_sybil_completion sybil")
    assert found.stderr == ""
