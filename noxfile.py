"""`nox -s tests`, `lint`, `types`, `compare`: what CI runs; `proofs`: what takes longer. Each has an environment."""

from __future__ import annotations

import os

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"  # pip, as constraints.txt asks for

CONSTRAINTS = ("--constraint", "constraints.txt")


def install(session: nox.Session, *groups: str) -> None:
    """Sybil, editable, and the dependency groups, at the pinned versions."""
    session.install(*CONSTRAINTS, "torch")  # first: a resolver that meets it later might prefer another build
    session.install(*CONSTRAINTS, "--editable", ".", *nox.project.dependency_groups(nox.project.load_toml(), *groups))


@nox.session
def tests(session: nox.Session) -> None:
    """Every test but the slow proofs: under 10 minutes on two cores, no network. A test runs on one thread."""
    install(session, "test")
    session.run("pytest", "--numprocesses=2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def proofs(session: nox.Session) -> None:
    """What proves losslessness at length: every choice against every other, 100,000 coupled tokens; half an hour."""
    install(session, "test")
    session.run(
        "pytest", "-m", "slow", "--numprocesses=2", "--timeout=1800", *session.posargs, env={"OMP_NUM_THREADS": "1"}
    )


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, formatting included."""
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(nox.project.load_toml(), "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, on the library."""
    install(session, "types")
    session.run("mypy")


@nox.session
def compare(session: nox.Session) -> None:
    """The main job: `nox -s compare -- --quick` for a short one."""
    install(session)
    session.run("sybil", "compare", *session.posargs, env={"COLUMNS": os.environ.get("COLUMNS", "120")})
