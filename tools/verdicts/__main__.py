"""Judge each row that docs/verdicts.jsonl doesn't hold yet, and write docs/verdicts.md about all rows that it holds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from sybil.measuring import files
from tools.verdicts import decoders, page
from tools.verdicts.rows import MODELS, ROWS, JudgedSystem

ROOT = Path(__file__).parents[2]
TIMEOUT = 3600.0  # the most seconds that a row may take
OUT = "sybil-verify"


def main(
    only: Annotated[str, typer.Option(help="Rows whose name holds this text.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Judge rows anew that are there.")] = False,
) -> None:
    """A row that is interrupted is judged the next time; one that can't be is told, and left out of the table."""
    kept = page.load()
    chosen = [row for row in ROWS if only in row.key]
    for number, row in enumerate(chosen, start=1):
        said = f"{number} of {len(chosen)}: {row.key}"
        if not again and _is_kept(row, kept.get(row.key)):
            typer.echo(f"{said}: kept")
            continue
        try:
            found = version(row.system)
        except PackageNotFoundError:
            typer.echo(f"{said}: not judged, for {row.system} isn't installed")
            kept.setdefault(row.key, {"row": row.key, "missing": f"pip install {row.system} brought no package"})
            continue
        typer.echo(f"{said} ...")
        kept[row.key] = _judged(row, found)
        typer.echo(f"    {kept[row.key].get('verdict') or kept[row.key]['missing']}")
        files.replace(page.RECORDS, page.lines(kept).encode())
    files.replace(page.RECORDS, page.lines(kept).encode())
    files.replace(page.PAGE, page.rendered(kept).encode())


def _is_kept(row: JudgedSystem, record: dict[str, Any] | None) -> bool:
    """Whether the file holds the row, judged by the same command as now. If the system is installed, the version must
    be the same, too."""
    if record is None or "missing" in record:
        return False
    with contextlib.suppress(PackageNotFoundError):
        return bool(record["version"] == version(row.system) and record["command"] == page.command(row))
    return True


def _judged(row: JudgedSystem, found: str) -> dict[str, Any]:
    """The report of `sybil verify` on a row, which runs in its own process."""
    began = time.monotonic()
    try:
        with _url(row) as url:
            arguments = [url if each == "URL" else MODELS[each]() if each in MODELS else each for each in row.arguments]
            environment = {**os.environ, decoders.TARGET: MODELS[row.target]()}
            if row.draft in MODELS:
                environment[decoders.DRAFT] = MODELS[row.draft]()
            command = [sys.executable, "-m", "sybil", "verify", *arguments, "--json", "--out", OUT]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        report = json.loads(done.stdout) if done.returncode in (0, 1, 3) else None
    except subprocess.TimeoutExpired:
        return {"row": row.key, "missing": f"no verdict within {TIMEOUT:g} seconds"}
    if report is None:
        return {"row": row.key, "missing": page.last_line(done.stderr)}
    if not _is_changed():
        report["commit"] = report["commit"].removesuffix("-dirty")
    return page.record(row, found, report, time.monotonic() - began)


def _is_changed() -> bool:
    """Whether the checkout differs from its commit by more than the files that this program writes."""
    written = (f":(exclude){path.relative_to(ROOT)}" for path in (page.RECORDS, page.PAGE))
    command = ["git", "diff", "--quiet", "HEAD", "--", ".", *written]
    return subprocess.run(command, cwd=ROOT, check=False).returncode != 0


@contextlib.contextmanager
def _url(row: JudgedSystem) -> Iterator[str]:
    """The address of llama.cpp's server for a row, which runs meanwhile; "" for a row that needs none."""
    if row.decoder:
        yield ""
        return
    named = [MODELS[each]() for each in (row.target, row.draft) if each is not None]
    command = [sys.executable, "-m", "tools.verdicts.server", *named]
    pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            yield f"{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


if __name__ == "__main__":
    typer.run(main)
