"""The C forward as a library. It is built once, kept in a folder where only its user can write, and checked when it is
opened."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from sybil.errors import InvalidSetting
from sybil.models.native import compiler, structs

WIDTHS = (4, 8, 16)
"""The numbers of floats in a vector for which the C forward can be built."""
DIGEST = 32
"""The last bytes of a kept library, which are the SHA-256 of all bytes before them."""


@functools.cache
def load(lanes: int | None = None) -> ctypes.CDLL | None:
    """The compiled forward.c. None where SYBIL_NATIVE=0, and where it can't be built; a warning says why.

    lanes: floats in a vector, 4, 8 or 16; where the processor's vectors are narrower, the compiler uses several. None
    is SYBIL_LANES, or the processor's own width where that isn't set. Raises InvalidSetting for another number."""
    if os.environ.get("SYBIL_NATIVE") == "0":
        return None
    lanes = lanes or _forced_lanes()
    if lanes not in (None, *WIDTHS):
        raise InvalidSetting(f"lanes is {lanes}: use one of {', '.join(map(str, WIDTHS))}")
    try:
        return _opened(compiler.recipe(lanes), lanes)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        warnings.warn(
            f"{os.environ.get('CC') or 'the C compiler'} doesn't build sybil's C forward ({_reason(error)}): decoding "
            "goes on at half the speed; install a C compiler, or set SYBIL_NATIVE=0 to be told no more",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _forced_lanes() -> int | None:
    said = os.environ.get("SYBIL_LANES") or None
    if said is not None and said not in map(str, WIDTHS):
        raise InvalidSetting(
            f"SYBIL_LANES is {said!r}: use {', '.join(map(str, WIDTHS))}, the floats of a vector, or leave it out"
        )
    return None if said is None else int(said)


def _reason(error: Exception) -> str:
    """The reason of a failed build: the last line that the compiler printed, or the error's own message."""
    printed = (getattr(error, "stderr", None) or b"").decode("utf-8", "replace").strip()
    lines = (printed or str(error) or type(error).__name__).splitlines()
    return "".join(letter if letter.isprintable() else "?" for letter in lines[-1])[:300]


def _opened(recipe: compiler.BuildRecipe, lanes: int | None) -> ctypes.CDLL:
    """The recipe's library. A kept library is opened; otherwise the library is built and kept. Where it can't be kept,
    or can't be run from where it is kept, it is opened from a temporary folder that is deleted before this returns.
    Raises OSError or SubprocessError."""
    kept = keeping_folder()
    path = kept and kept / f"native-{recipe.key}.so"
    if path:
        with contextlib.suppress(OSError):
            return _open(path, lanes)
    with tempfile.TemporaryDirectory(prefix="sybil-") as scratch:
        made = recipe.build(Path(scratch))
        content = made.read_bytes()
        made.write_bytes(content + hashlib.sha256(content).digest())
        if path:
            with contextlib.suppress(OSError):
                _put(made.read_bytes(), path)
                return _open(path, lanes)
        made.chmod(0o600)
        return _open(made, lanes)


def _open(path: Path, lanes: int | None) -> ctypes.CDLL:
    """Open the library in a file, which must be complete and written by this user or root. Raises OSError."""
    if not _is_trusted(path.lstat(), stat.S_ISREG):
        raise OSError(f"{path} may have been written by others")
    content = path.read_bytes()
    if hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
        raise OSError(f"{path} isn't what was written there")
    built = ctypes.CDLL(str(path))
    try:
        _declare(built)
        sizes = [built.sybil_sizes()[index] for index in range(len(structs.ALL))]
        if sizes != [*map(ctypes.sizeof, structs.ALL)] or lanes not in (None, built.sybil_lanes()):
            raise OSError(f"{path} was built of other structs or lanes")
    except AttributeError as error:
        raise OSError(f"{path} isn't the C forward ({error})") from None
    return built


def _declare(built: ctypes.CDLL) -> None:
    """Declare the arguments and results of forward.c's functions. A result of char * is the reason of a refusal, or
    None."""
    address, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    single, double = ctypes.c_float, ctypes.c_double
    built.sybil_sizes.restype = ctypes.POINTER(long)
    built.sybil_refusal.restype = ctypes.c_char_p
    built.sybil_refusal.argtypes = [address]
    built.sybil_scratch.restype = long
    built.sybil_scratch.argtypes = [address, long, long]
    built.sybil_late.restype = number
    built.sybil_fill.restype = built.sybil_unpack.restype = None
    built.sybil_fill.argtypes = [address, address, long, long, number, number, number, address, number]
    built.sybil_unpack.argtypes = [address, number, long, long, address]
    built.sybil_round.restype = None
    built.sybil_round.argtypes = [address, long, long, number, address, address]
    built.sybil_distribute.restype = built.sybil_rest.restype = built.sybil_draw.restype = None
    built.sybil_distribute.argtypes = [address, long, long, single, long, double, single, address, address]
    built.sybil_rest.argtypes = [long, long, *[address] * 7]
    built.sybil_draw.argtypes = [long, long, *[address] * 8]
    built.sybil_race.restype = None
    built.sybil_race.argtypes = [long, long, address, ctypes.c_uint64, *[address] * 4]
    built.sybil_forward.restype = ctypes.c_char_p
    built.sybil_forward.argtypes = [*[address] * 4, number, address, address, long, number]


def _put(content: bytes, path: Path) -> None:
    """Write a file atomically, readable for this user only, even if others write it at the same time. Raises
    OSError."""
    descriptor, name = tempfile.mkstemp(prefix=".native-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def keeping_folder() -> Path | None:
    """The folder in which libraries are kept; it is made if it doesn't exist. None where users other than this one and
    root could write to it, or could replace it."""
    try:
        said = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (said if said.is_absolute() else Path.home() / ".cache") / "sybil"
        if not folder.is_absolute():
            return None
        for each in (*reversed(folder.parents), folder):
            if not each.is_dir():
                each.mkdir(mode=0o700, exist_ok=True)
        folder = folder.resolve()
        if folder.stat().st_uid == os.getuid() and stat.S_IMODE(folder.stat().st_mode) != 0o700:
            with contextlib.suppress(OSError):
                folder.chmod(0o700)
        if _is_trusted(folder.stat(), stat.S_ISDIR) and all(map(_is_a_way, folder.parents)):
            return folder
    except (OSError, RuntimeError, ValueError):  # there is no home folder, or it can't be written to
        pass
    return None


def _owners() -> set[int]:
    return {0, os.getuid()}


def _is_trusted(status: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    """Whether a file or folder is of that kind and can have been written by this user and root only."""
    return is_kind(status.st_mode) and status.st_uid in _owners() and not status.st_mode & 0o022


def _is_a_way(folder: Path) -> bool:
    """Whether other users can't replace the files in the folder."""
    status = folder.stat()
    return status.st_uid in _owners() and (not status.st_mode & 0o002 or bool(status.st_mode & stat.S_ISVTX))
