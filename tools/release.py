"""Tries a wheel as a newcomer would: a fresh environment, no repository, each command with its time.

    python tools/release.py dist

The wheel of that folder is checked first: it holds the files of `sybil/` that git has, pytest's plugin and its own
metadata, and nothing else. Then it is installed at the versions of constraints.txt, and README.md's first lines of
Python and four commands are run from an empty folder. The first thing that fails ends it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 30 << 20
"""The most bytes that a wheel may have. Nearly all of them are the embedded pair."""
COMMANDS = (
    ("sybil", "--version"),
    ("sybil", "generate", "def main(", "--pair", "stdlib", "--max-new-tokens", "32"),
    ("sybil", "compare", "--quick"),
    ("sybil", "verify", "--quick"),
)


def lacking_and_foreign(wheel: Path, tracked: set[str]) -> tuple[set[str], set[str]]:
    """The tracked files that the wheel lacks, and the wheel's files that are neither tracked nor its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    return tracked - names, names - tracked


def packaged() -> set[str]:
    """The files of the library and of pytest's plugin that git tracks."""
    command = ["git", "ls-files", "-z", "sybil", "pytest_sybil.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(filter(None, listed.split("\0")))


def first_python(text: str) -> str:
    """A page's first block of Python."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]


def tried(name: str, command: list[str], folder: Path) -> None:
    """Run a command in a folder and print its time; raises SystemExit if it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment | {"COLUMNS": "120"})
    sys.stdout.write(f"--- {name}: exit {done.returncode} in {time.perf_counter() - began:.0f} s\n")
    sys.stdout.flush()
    if done.returncode:
        raise SystemExit(f"{name} failed with {done.returncode}")


def main(folder: str) -> None:
    (wheel,) = Path(folder).resolve().glob("*.whl")
    lacking, foreign = lacking_and_foreign(wheel, packaged())
    if lacking or foreign:
        raise SystemExit(f"{wheel.name} lacks {sorted(lacking)} and holds {sorted(foreign)}, which git doesn't have")
    if wheel.stat().st_size > LARGEST:
        raise SystemExit(f"{wheel.name} has {wheel.stat().st_size} bytes: {LARGEST} is the most")
    sys.stdout.write(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(packaged())} files\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as scratch:
        fresh, empty = Path(scratch) / "environment", Path(scratch) / "empty"
        empty.mkdir()
        venv.create(fresh, with_pip=True)
        programs = fresh / ("Scripts" if os.name == "nt" else "bin")
        pip = [
            str(programs / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--constraint",
            str(ROOT / "constraints.txt"),
        ]
        tried("installing", [*pip, "torch", str(wheel)], empty)
        lines = first_python((ROOT / "README.md").read_text(encoding="utf-8"))
        tried("README.md's Python", [str(programs / "python"), "-c", lines], empty)
        for program, *arguments in COMMANDS:
            tried(" ".join([program, *arguments]), [str(programs / program), *arguments], empty)


if __name__ == "__main__":
    main(*sys.argv[1:])
