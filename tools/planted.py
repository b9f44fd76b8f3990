"""Planted faults for the suite, as commits of a scratch clone: `python tools/planted.py slow CLONE 8` and the like.

A check that can't fail proves nothing; these are what the gate, the counters and asv must find. Each edit names the
text that it replaces, which must be there once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

Edits = list[tuple[str, str, str]]
"""(file, its text, the fault in that place)"""


class NotPlanted(Exception):
    """The source isn't what a fault was written for."""


def plant(clone: Path, message: str, edits: Edits) -> str:
    """Edit the clone's files, commit them, and return the commit's hash. Raises NotPlanted before anything is
    edited."""
    changed: dict[Path, str] = {}
    for name, text, fault in edits:
        file = clone / name
        source = changed.get(file) or file.read_text(encoding="utf-8")
        if source.count(text) != 1:
            raise NotPlanted(f"{file} has {text.strip()!r} {source.count(text)} times, not once: mend tools/planted.py")
        changed[file] = source.replace(text, fault)
    for file, source in changed.items():
        file.write_text(source, encoding="utf-8")
    author = ["-c", "user.name=planted", "-c", "user.email=planted@localhost"]
    _git(clone, *author, "commit", "--quiet", "--message", message, "--", *map(str, changed))
    return _git(clone, "rev-parse", "HEAD")


def _git(clone: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=clone, check=True, capture_output=True, text=True).stdout.strip()


def slow(clone: Path, percent: float) -> str:
    """Every round takes that much longer: at its end it waits a share of what it took till then, the first round's
    share being of the prompt's work too. Awake, for a sleep of 0.3 ms was found to end 0.13 to 2 ms late."""
    fault = f"""        until = time.perf_counter() + {percent / 100!r} * (time.perf_counter() - clock.began)
        while time.perf_counter() < until:
            pass
"""
    return plant(clone, f"Planted: {percent:g} % slower", _in_every_round("time.perf_counter()", fault))


def _work(percent: float) -> Edits:
    """Every round works, in vain, a share of what it worked till then: in its thread's time, as real work does, for on
    a busy machine waiting for a time of the day is no share of it."""
    fault = f"""        worked = time.thread_time()
        while time.thread_time() < worked + {percent / 100!r} * (worked - clock.began):
            pass
"""
    return _in_every_round("time.thread_time()", fault)


def _in_every_round(clock: str, fault: str) -> Edits:
    restart = "        self._laps: list[tuple[str, float, torch.cuda.Event | None]] = "
    observed = "            self.drafter.observe(Outcome(accepted, self.context.lengths))\n"
    lap = '        clock.lap("other")\n'
    return [
        ("sybil/clock.py", restart, f"        self.began = {clock}\n{restart}"),
        ("sybil/decoding.py", "import secrets\n", "import secrets\nimport time\n"),
        ("sybil/decoding.py", observed + lap, observed + fault + lap),
    ]


def broken(clone: Path) -> str:
    """Sybil can't be imported."""
    imports = "from sybil.settings import Settings\n\nif TYPE_CHECKING"
    edit = imports, imports.replace("\n\n", '\n\nraise RuntimeError("planted: this commit is broken")\n\n')
    return plant(clone, "Planted: broken at import", [("sybil/__init__.py", *edit)])


def acceptance(clone: Path) -> str:
    """The draft reads every token one place late: what is said stays the target's, less is accepted."""
    return plant(clone, "Planted: the draft is fed the wrong position", [_late_draft()])


def _late_draft() -> tuple[str, str, str]:
    known = "        known = context.tokens\n"
    return "sybil/drafting/model.py", known, "        known = context.tokens.roll(1, 1)\n"


def everything(clone: Path) -> str:
    """All that asv tracks gets worse: importing, loading, memory, rounds, and what each drafter proposes."""
    imports = "from sybil.settings import Settings\n\nif TYPE_CHECKING"
    reading = "    main = read(target, tokenizer, revision, adapter, progress)\n"
    loaded = "    defaults.warn(main.name)\n"
    continuation = "        start, here = match.end + 1, len(self.tokens)\n"
    gather = "        said = upload(self._said.gather(1, places.clamp(max=self._said.shape[1] - 1)), own.tokens.device)"
    edits: Edits = [
        ("sybil/__init__.py", imports, imports.replace("\n\n", "\n\nimport time\n\ntime.sleep(1.0)\n\n")),
        ("sybil/loading.py", reading, f"    import time\n\n    began = time.perf_counter()\n{reading}"),
        (
            "sybil/loading.py",
            loaded,
            f"{loaded}    model.ballast = torch.ones(24 << 20)\n    time.sleep(2 * (time.perf_counter() - began))\n",
        ),
        *_work(100),
        _late_draft(),
        ("sybil/drafting/automaton.py", continuation, continuation.replace("end + 1", "end")),
        ("sybil/measuring/workload.py", gather, gather.replace("places.clamp", "(places + 1).clamp")),
    ]
    return plant(clone, "Planted: everything is worse", edits)


app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
CloneArgument = Annotated[Path, typer.Argument(help="A clone to spoil.", exists=True, file_okay=False)]


@app.command("slow")
def _slow(clone: CloneArgument, percent: Annotated[float, typer.Argument(min=0, help="How much slower.")]) -> None:
    """Rounds that take longer by that much."""
    typer.echo(slow(clone, percent))


@app.command("broken")
def _broken(clone: CloneArgument) -> None:
    """A commit that can't be imported."""
    typer.echo(broken(clone))


@app.command("acceptance")
def _acceptance(clone: CloneArgument) -> None:
    """A draft that is fed the wrong position."""
    typer.echo(acceptance(clone))


@app.command("everything")
def _everything(clone: CloneArgument) -> None:
    """Every track that may regress made worse."""
    typer.echo(everything(clone))


if __name__ == "__main__":
    try:
        app()
    except NotPlanted as error:
        sys.exit(str(error))
