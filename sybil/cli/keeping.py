"""Where `sybil verify` keeps answers, and what it prints about them where it ends early."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from sybil.cli import options
from sybil.errors import InvalidSetting, ResultsMismatch
from sybil.losslessness.kept import Kept
from sybil.measuring import files

SUFFIX = ".jsonl"


def kept_in(out: Path | None, resume: Path | None, settings: dict[str, Any]) -> Kept:
    """The kept answers: of a new run, in the folder of its report; or, with resume, of an earlier run. An earlier run
    is named by its folder (the last run in it), its report or its file of answers. Raises InvalidSetting, and
    ResultsMismatch where nothing is there."""
    if resume is None:
        folder = options.out_folder(out, "verify")
        files.check_folder(folder)
        return Kept(folder / f"{time.strftime('%Y%m%d-%H%M%S')}{SUFFIX}", settings=settings)
    path = _last(resume) if resume.is_dir() else resume.with_suffix(SUFFIX) if resume.suffix == ".json" else resume
    if out is not None and out.resolve() != path.parent.resolve():
        raise InvalidSetting(f"out is {out} and resume {resume}: a report lies beside its answers, so give one of them")
    files.check_folder(path.parent)
    return Kept(path, resumes=True, settings=settings)


def _last(folder: Path) -> Path:
    """The file of answers that was written to last."""
    found = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: (path.stat().st_mtime, path.name))
    if not found:
        raise ResultsMismatch(f"{folder} holds no answers (*{SUFFIX}) of sybil verify: name another folder, or a file")
    return found[-1]


@contextmanager
def going_on(console: Console, kept: Kept) -> Iterator[None]:
    """A context manager that prints, where a run ends before its verdict, what is kept and how to resume. Ctrl-C exits
    with 130."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"interrupted: there is no verdict; {told(kept)}", soft_wrap=True)
        raise typer.Exit(130) from None
    except BaseException:
        if kept.count:
            console.print(told(kept), soft_wrap=True)
        raise


def report_path(kept: Kept) -> Path:
    """The report's path: beside the run's answers, and under their name where that is free."""
    assert kept.path is not None
    files.folder(kept.path.parent)
    return files.unused(kept.path.with_suffix(".json"))


def told(kept: Kept) -> str:
    """What is kept, in one line."""
    if not kept.count:
        return "nothing was written"
    return f"{kept.count} answers are kept: go on with --resume {kept.path}"
