"""docs/commands/: a page for each command, made of what its --help says.

python -m tools.docs.commands       write the pages anew; tests/test_commands.py holds them to the commands
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from sybil.cli.main import app

PAGES = Path(__file__).resolve().parents[2] / "docs" / "commands"
MARKS = re.compile(r"[*_<]")
NOTE = "<!-- python -m tools.docs.commands writes this page: change the command's help in sybil/cli instead -->"


def commands() -> dict[str, Any]:
    """The commands by name, in the order of `sybil --help`."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def pages() -> dict[str, str]:
    """The text of each page, by the name of its file under docs/commands."""
    made = {f"{name}.md": page(name, command) for name, command in commands().items()}
    return {"index.md": index(), **made}


def index() -> str:
    """The page about all commands: what each does, and the options that they share."""
    rows = [f"| [`sybil {name}`]({name}.md) | {first_sentence(command)} |" for name, command in commands().items()]
    return "\n".join([
        NOTE, "", "# Commands", "",
        "Each page says what the command's `--help` says. `python -m sybil` is the same as `sybil`.", "",
        "| command | what it does |", "|---|---|", *rows, "",
        "**Exit statuses.** 0: done, or PASS. 1: a verdict against what was judged. 2: bad input or a failure, told in "
        "one line on standard error. 3: a verdict can't be given. 130: interrupted by Ctrl-C. `SYBIL_TRACEBACK=1` "
        "shows where an error was raised.", "",
    ])  # fmt: skip


def page(name: str, command: Any) -> str:
    """The page of one command: what it does, how it is called, and its options by the panels of --help."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    context = typer.Context(command, info_name=f"sybil {name}")
    usage = f"sybil {name} {' '.join(command.collect_usage_pieces(context))}"
    lines = [NOTE, "", f"# sybil {name}", "", cleaned(command.help), "", "```", usage, "```", ""]
    if command.epilog:
        lines += [cleaned(command.epilog), ""]
    if arguments:
        lines += ["## Arguments", "", *table("argument", [row(each, context) for each in arguments])]
    for panel, options in panels(command).items():
        lines += [f"## {panel}", "", *table("option", [row(each, context) for each in options])]
    return "\n".join(lines)


def panels(command: Any) -> dict[str, list[Any]]:
    """The options by the panel that --help shows them in; those without one come first."""
    found: dict[str, list[Any]] = {}
    for option in command.params:
        if option.param_type_name == "option":
            found.setdefault(option.rich_help_panel or "Options", []).append(option)
    return found


def table(first: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    yield from (f"| {first} | meaning |", "|---|---|")
    yield from (f"| {name} | {meaning} |" for name, meaning in rows)
    yield ""


def row(parameter: Any, context: Any) -> tuple[str, str]:
    """An option as it is typed, and its meaning, as --help shows them."""
    typed, meaning = parameter.get_help_record(context)
    names, _, kind = re.match(r"((?:-\S+,? ?)+|\S+)( ?)(.*)", typed).groups()  # type: ignore[union-attr]
    shown = f"`{names.strip()}`" + (f" `{kind}`" if kind else "")
    return shown.replace("|", "\\|"), cleaned(meaning).replace("\n", " ").replace("|", "\\|")


def cleaned(text: str | None) -> str:
    """Help as Markdown. Outside code its asterisks and underscores are escaped."""
    parts = inspect.cleandoc(text or "").split("`")
    for place in range(0, len(parts), 2):
        parts[place] = MARKS.sub(r"\\\g<0>", parts[place]).replace("  ", " ")
    return "`".join(parts)


def first_sentence(command: Any) -> str:
    text = cleaned(command.help).replace("\n", " ").replace("|", "\\|")
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
