"""docs/verdicts.jsonl, a line a row, and docs/verdicts.md, which is made of it and of nothing else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.verdicts.rows import ROWS, Row

DOCS = Path(__file__).parents[2] / "docs"
RECORDS, PAGE = DOCS / "verdicts.jsonl", DOCS / "verdicts.md"
Record = dict[str, Any]
KEPT = ("verdict", "verdicts", "reasons", "drift", "tokens", "sequences", "speculation", "date", "processor", "torch",
        "transformers", "commit")  # fmt: skip
"""Of a report."""


def load() -> dict[str, Record]:
    """Records by their row."""
    if not RECORDS.exists():
        return {}
    read = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    return {each["row"]: each for each in read}


def lines(kept: Mapping[str, Record]) -> str:
    """The file: in the order of ROWS, and none that is no row any more."""
    return "".join(json.dumps(kept[row.key]) + "\n" for row in ROWS if row.key in kept)


def command(row: Row) -> str:
    return shlex.join(["sybil", "verify", *row.arguments])


def record(row: Row, version: str, report: Record, seconds: float) -> Record:
    """What is kept of a report."""
    failed = [check["name"] for check in report["checks"] if check["failed"] and not check["echo"]]
    return {"row": row.key, "version": version, "command": command(row), "seconds": round(seconds), "failed": failed,
            **{name: report.get(name) for name in KEPT}}  # fmt: skip


def last_line(text: str) -> str:
    """Of what a command said on standard error."""
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def rendered(kept: Mapping[str, Record]) -> str:
    """The page."""
    return ""
