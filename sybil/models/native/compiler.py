"""Builds forward.c as a library with the machine's own C compiler, for the machine's own processor."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("forward.c")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread")
FOR_THIS_PROCESSOR = ("-march=native", "-mcpu=native")
"""Compilers for x86 know the first flag. Compilers for other processors know one of the two, or neither."""
SECONDS = 120
"""The time that a compiler may take."""


@dataclass(frozen=True, slots=True)
class BuildRecipe:
    """One way to build the library. key: the hash of everything that the library depends on."""

    command: tuple[str, ...]
    flags: tuple[str, ...]
    libraries: tuple[str, ...]
    key: str

    def build(self, folder: Path) -> Path:
        """Build the library in the folder, and return its path. Raises OSError or SubprocessError."""
        made = folder / "native.so"
        _run([*self.command, *self.flags, "-o", str(made), str(SOURCE), *self.libraries], folder)
        if not made.is_file():
            raise OSError(f"it makes no file of {SOURCE.name}")
        return made


def command() -> tuple[str, ...]:
    """The C compiler's command: the variable CC, or a compiler that is installed. Raises ValueError where CC is no
    command line."""
    given = tuple(shlex.split(os.environ.get("CC", "")))
    return given or (shutil.which("cc") or shutil.which("gcc") or "clang",)


def recipe(lanes: int | None) -> BuildRecipe:
    """How the library is built on this machine. lanes: floats in a vector; None for as many as the processor has. The
    variable SYBIL_CFLAGS adds flags.

    Raises OSError or SubprocessError, and ValueError where a variable is no command line."""
    compiler = command()
    width = () if lanes is None else (f"-DLANES={lanes}",)
    flags = (*FLAGS, *_native(compiler), *width, *shlex.split(os.environ.get("SYBIL_CFLAGS", "")))
    libraries = ("-lm",)
    version = _run([*compiler, "--version"])
    sources = [path.read_bytes() for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
    words = [*compiler, *flags, *libraries, _processor()]
    key = hashlib.sha256(b"\0".join([*sources, version, *(word.encode("utf-8", "surrogateescape") for word in words)]))
    return BuildRecipe(compiler, flags, libraries, key.hexdigest()[:16])


def _run(arguments: list[str], folder: Path | None = None) -> bytes:
    """Run a command and return what it prints. No process of it survives this call, and its temporary files go into the
    folder.

    Raises OSError or SubprocessError."""
    environment = {**os.environ, "LC_ALL": "C"} | ({"TMPDIR": str(folder)} if folder else {})
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            printed, errors = process.communicate(timeout=SECONDS)
        except BaseException as error:  # a compiler's child processes would outlive it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise subprocess.TimeoutExpired(arguments[0], SECONDS) from None
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments[0], printed, errors)
    return printed


def _native(compiler: tuple[str, ...]) -> tuple[str, ...]:
    """The flag by which the compiler uses all instructions of this processor; () where it knows none."""
    if platform.machine() in ("x86_64", "i686", "AMD64"):
        return FOR_THIS_PROCESSOR[:1]
    for flag in FOR_THIS_PROCESSOR:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _run([*compiler, flag, "-fsyntax-only", "-x", "c", os.devnull])
            return (flag,)
    return ()


def _processor() -> str:
    """A description of this processor, on which the result of that flag depends."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return platform.machine() + platform.processor()
    return "\n".join(sorted(set(re.findall(r"^(?:model name|flags|Features)\s*:.*$", text, re.MULTILINE))))
