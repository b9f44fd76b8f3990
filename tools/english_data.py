"""What a draft for a chat model in English can be distilled from on any machine with Python, nothing being downloaded.

    python tools/english_data.py build/english

Writes two JSONL files. training.jsonl: messages like those of the shipped English prompts, made of the standard library
(functions to be completed and edited, docstrings to be summarised) and of the names of Unicode's pictures (questions
about everyday things), its docstrings as texts, and every second shipped prompt. measuring.jsonl: the other shipped
prompts, which no training sees. The target's answers aren't in them: `sybil distill` lets it give them.
"""

from __future__ import annotations

import ast
import json
import random
import sys
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import corpus as corpora
from sybil.measuring import files, prompts

PICTURES = (*range(0x1F300, 0x1F650), *range(0x1F680, 0x1F700), *range(0x1F900, 0x1FB00), *range(0x2600, 0x2700))
QUESTIONS = (
    "What is a {}?",
    "Tell me something about a {}.",
    "Write a short poem about a {}.",
    "Explain a {} to a child of six.",
    "What should I know before I buy a {}?",
    "Give me five tips about a {}.",
    "Write a short story that begins with a {}.",
    "What is the difference between a {} and a {}?",
    "Write a friendly email to my neighbour about a {}.",
    "List three things that a {} and a {} have in common.",
    "How does a {} work?",
    "Where does the {} come from?",
    "What are the advantages and disadvantages of a {}?",
    "Plan a weekend around a {}. Keep it short.",
    "My daughter asked me about a {}. What can I tell her?",
    "How would you describe a {} to somebody from the past?",
    "Give me a list of steps to draw a {}.",
    "Can you suggest five names for a shop that sells a {}?",
)
SUMMARIES = (
    "Summarize the following text in two sentences:\n\n{}", "{}\n\nSummarize this in your own words.",
    "What are the main points of this text?\n\n{}", "{}\n\nPlease write a short summary of the text above.",
)  # fmt: skip
SHORTEST, LONGEST = 200, 1500  # characters of a text that is to be summarised or edited
EVERY, EDITS, OTHERS = 5000, 1500, 1500  # the most messages of each kind


def functions(source: str) -> Iterator[tuple[str, str, str]]:
    """For each function with a docstring: its name, its first lines and docstring, and its whole text."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
            head = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].end_lineno]))
            yield node.name, head, textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text


def pictures() -> list[str]:
    """Everyday things by their Unicode names, of two words at most."""
    names = (unicodedata.name(chr(code), "").lower() for code in PICTURES)
    return [name for name in names if name and len(name.split()) <= 2 and name.replace(" ", "").isalpha()]


def questions(chosen: random.Random, count: int) -> Iterator[tuple[str, str]]:
    things = pictures()
    for number in range(count):
        asked = QUESTIONS[number % len(QUESTIONS)]
        yield "conversation", asked.format(*chosen.sample(things, asked.count("{}")))


def edits(whole: list[tuple[str, str]], chosen: random.Random, count: int) -> Iterator[tuple[str, str]]:
    fitting = [(name, text) for name, text in whole if SHORTEST <= len(text) <= LONGEST]
    for name, text in chosen.sample(fitting, min(count, len(fitting))):
        new = "_".join([*name.strip("_").split("_"), chosen.choice(("new", "value", "all", "item", "once"))])
        asked = f"Repeat this python file exactly, but rename the function `{name}` to `{new}`:"
        yield "editing", f"{asked}\n\n```python\n{text}\n```"


def summaries(texts: list[str], chosen: random.Random, count: int) -> Iterator[tuple[str, str]]:
    fitting = [text for text in texts if SHORTEST <= len(text) <= LONGEST]
    for number, text in enumerate(chosen.sample(fitting, min(count, len(fitting)))):
        yield "summarization", SUMMARIES[number % len(SUMMARIES)].format(text)


def shipped() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """The shipped prompts: those at odd places of their kind, and those at even places."""
    kinds: dict[str, list[dict[str, object]]] = defaultdict(list)
    for each in prompts.load(shipped="prompts/english.jsonl"):
        said = [{"role": role, "content": content} for role, content in each.messages]
        kinds[each.domain].append({"id": each.id, "domain": each.domain, "messages": said})
    return tuple([row for rows in kinds.values() for row in rows[first::2]] for first in (0, 1))  # type: ignore[return-value]


def main(out: Path) -> None:
    chosen = random.Random(0)
    sources = [text for name, text in corpora.read().training]
    found = [each for source in sources for each in functions(source)]
    texts = [each for source in sources for each in docstrings(source)]
    heads = [head for _, head, _ in found if len(head) <= LONGEST]
    rows = [
        *(("code", head) for head in chosen.sample(heads, min(EVERY, len(heads)))),
        *questions(chosen, EVERY),
        *edits([(name, text) for name, _, text in found], chosen, EDITS),
        *summaries(texts, chosen, OTHERS),
    ]
    training, measuring = shipped()
    asked = [{"domain": kind, "messages": [{"role": "user", "content": text}]} for kind, text in rows]
    read = [{"domain": "text", "text": text} for text in texts if len(text) >= SHORTEST]
    files.folder(out)
    for name, lines in (("training", [*training, *asked, *read]), ("measuring", measuring)):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
        files.replace(out / f"{name}.jsonl", content.encode())
        sys.stdout.write(f"{out / name}.jsonl: {len(lines)} lines, {len(content) / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
