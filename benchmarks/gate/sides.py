"""The two sides of the gate. Each is a commit that is built from its own worktree into its own environment."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.workloads import REAL_PACKAGE

MAIN = ("origin/main", "main")


class GateError(Exception):
    """The gate could not measure everything. The message is one line that names the remedy."""


@dataclass(frozen=True, slots=True)
class Side:
    """A built commit. folder: the folder of its environment, which holds nothing else."""

    name: str
    revision: str
    commit: str
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def __str__(self) -> str:
        return f"{self.name} ({self.revision}, {self.commit[:9]})"


def git(root: Path, *arguments: str, **environment: str) -> str:
    """The output of a git command; raises GateError with the last line that git printed."""
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise GateError(f"git {' '.join(arguments[:2])} failed ({lines[-1]}): name a commit of this repository")
    return done.stdout.strip()


def resolve(root: Path, revision: str) -> str:
    """The full hash of a commit; raises GateError."""
    try:
        return git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    except GateError:
        raise GateError(
            f"{revision!r} is no commit of this repository: name one, as in `nox -s gate -- HEAD~1`"
        ) from None


def working(root: Path) -> tuple[str, str]:
    """The commit that is to be gated, as (its name, its hash). That is HEAD, or a commit made of the working tree if it
    has changes. Making that commit touches neither the index nor a branch; files that git ignores are left out."""
    head = resolve(root, "HEAD")
    if not git(root, "status", "--porcelain"):
        return "HEAD", head
    with tempfile.TemporaryDirectory() as folder:
        index = str(Path(folder) / "index")
        git(root, "read-tree", "HEAD", GIT_INDEX_FILE=index)
        git(root, "add", "--all", GIT_INDEX_FILE=index)
        tree = git(root, "write-tree", GIT_INDEX_FILE=index)
    who = {f"GIT_{role}_{what}": "gate" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return "the working tree", git(root, "commit-tree", tree, "-p", head, "-m", "What is gated", **who)


def default_base(root: Path, new: str) -> tuple[str, str]:
    """The commit at which `new` branched off main, as (its name, its hash); raises GateError if that is `new`
    itself."""
    for main in MAIN:
        try:
            commit = git(root, "merge-base", main, new)
        except GateError:
            continue
        if commit == new:
            raise GateError(f"HEAD is on {main} already: name a base, as in `nox -s gate -- HEAD~1`")
        return f"merge base with {main}", commit
    raise GateError(
        f"there is neither {' nor '.join(MAIN)} to compare with: name a base, as in `nox -s gate -- HEAD~1`"
    )


def build(root: Path, name: str, revision: str, commit: str, into: Path) -> Side:
    """Build a commit from a worktree into its own environment; raises GateError.

    Sybil's dependencies are installed once for all commits that pin the same ones. The environment holds its own Sybil,
    and finds the dependencies in the gate's environment, or in one that was made for other pins."""
    folder = into / name
    with _worktree(root, commit) as tree:
        packages = _dependencies(root, tree)
        venv.create(folder, with_pip=False, symlinks=True)
        own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (own / "dependencies.pth").write_text(f"{packages}\n")
        _share(REAL_PACKAGE, own)
        side = Side(name, revision, commit, folder)
        pip = ("--python", str(side.python), "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
        _pip(*pip, str(tree), why=f"{side} can't be built")
    return side


def _share(package: str, own: Path) -> None:
    """Link a package into a side's environment if the gate's environment has it, whatever the side itself depends
    on."""
    found = find_spec(package)
    for folder in (found and found.submodule_search_locations) or ():
        (own / package).symlink_to(folder)


@contextmanager
def _worktree(root: Path, commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git(root, "worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git(root, "worktree", "remove", "--force", str(tree))


def _dependencies(root: Path, tree: Path) -> Path:
    """The folder of packages that holds all dependencies of the tree's project, at its pins."""
    if _wanted(tree) == _wanted(root):
        return Path(sysconfig.get_path("purelib"))  # `nox -s gate` has installed the dependencies here
    digest = hashlib.sha256("\n".join([sys.version, *_wanted(tree)]).encode()).hexdigest()[:12]
    folder = root / ".nox" / f"gate-{digest}"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=False, symlinks=True)
        pins, *names = _wanted(tree)
        constraints = folder / "constraints.txt"
        constraints.write_text(pins)
        pip = ("--python", str(folder / "bin" / "python"), "install", "--quiet", "--constraint", str(constraints))
        for what in (["torch"], names):  # torch first: if pip met torch later, it might prefer another build
            _pip(*pip, *what, why="what the base depends on can't be installed")
        (folder / "complete").touch()
    return packages


def _wanted(tree: Path) -> list[str]:
    """The text of the pins, followed by each requirement of the project and of its build."""
    pins = tree / "constraints.txt"
    try:
        project = tomllib.loads((tree / "pyproject.toml").read_text())
        requirements = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    except (OSError, ValueError, KeyError) as error:
        raise GateError(f"a commit's pyproject.toml can't be read ({error!r}): mend it, then gate it") from None
    return [pins.read_text() if pins.exists() else "", *sorted(requirements)]


def _pip(*arguments: str, why: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise GateError(f"{why} ({lines[-1].strip()}): mend it, then gate it")
