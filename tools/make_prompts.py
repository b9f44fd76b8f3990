"""Cut the embedded pair's prompts from the held-out modules: code, prose and structured text.

python tools/make_prompts.py sybil/embedded/stdlib/prompts.jsonl
"""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import typer

import corpus as corpora

WANTED = {"code": 24, "prose": 20, "structured": 20}
SHORTEST, LONGEST = 60, 700  # the least and most characters of a prompt
LINES_OF_A_TABLE = 6

Prompt = dict[str, str | int]


def code(tree: ast.Module, source: str) -> Iterator[tuple[int, str]]:
    """Signatures and docstrings of functions, at the left margin. No prompt ends in white space, because the next token
    often begins with it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
            yield node.lineno, lines(source, node.lineno, node.body[0].end_lineno)


def prose(tree: ast.Module, source: str) -> Iterator[tuple[int, str]]:
    """The first half of a long docstring, cut between words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 240:
                half = text[: min(len(text) // 2, LONGEST)]
                yield node.body[0].lineno, '"""' + half[: half.rfind(" ")]


def structured(tree: ast.Module, source: str) -> Iterator[tuple[int, str]]:
    """The first lines of a table, or of a run of assignments of constants."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Dict | ast.List | ast.Tuple | ast.Set | ast.Call)
            and (node.end_lineno or 0) - node.lineno >= LINES_OF_A_TABLE + 2
        ):
            yield node.lineno, lines(source, node.lineno, node.lineno + LINES_OF_A_TABLE - 1)
        for _, body in ast.iter_fields(node):
            if isinstance(body, list):
                yield from runs(body, source)


def runs(body: list[ast.stmt], source: str) -> Iterator[tuple[int, str]]:
    run: list[ast.stmt] = []
    for statement in [*body, None]:
        simple = isinstance(statement, ast.Assign | ast.Expr) and statement.lineno == statement.end_lineno
        if (
            simple
            and statement is not None
            and isinstance(statement.value, ast.Constant | ast.Call | ast.Name | ast.Tuple)
        ):
            run.append(statement)
            continue
        if len(run) >= LINES_OF_A_TABLE + 2:
            yield run[0].lineno, lines(source, run[0].lineno, run[LINES_OF_A_TABLE - 1].lineno)
        run = []


def lines(source: str, first: int, last: int | None) -> str:
    return textwrap.dedent("\n".join(source.splitlines()[first - 1 : last]))


def choose(domain: str, found: list[list[Prompt]], count: int) -> list[Prompt]:
    """Take one prompt from each module in turn, until there are enough."""
    chosen: list[Prompt] = []
    while len(chosen) < count and any(found):
        for module in found:
            if module and len(chosen) < count:
                chosen.append({"id": f"{domain}-{len(chosen) + 1:02}", "domain": domain, **module.pop(0)})
    return chosen


def main(path: Path) -> None:
    prompts: list[Prompt] = []
    for domain, cut in (("code", code), ("prose", prose), ("structured", structured)):
        found: list[list[Prompt]] = []
        for module, source in corpora.read().held_out:
            texts = {text: line for line, text in cut(ast.parse(source), source) if SHORTEST <= len(text) <= LONGEST}
            found.append([{"module": module, "line": line, "text": text} for text, line in texts.items()])
        prompts += choose(domain, found, WANTED[domain])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
