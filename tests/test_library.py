"""Where the C forward's library is kept: nothing is loaded that others may have written, and nothing is left behind."""

from __future__ import annotations

import ctypes
import os
import shlex
import stat
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import Machine, machine, warned
from shapes import compiled

from sybil.models.native import compiler, library

__all__ = ["machine"]
pytestmark = compiled


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_built_once_into_folders_of_this_user_alone(machine: Machine) -> None:
    before = os.umask(0)
    try:
        assert machine.load() is not None
    finally:
        os.umask(before)
    assert [mode(each) for each in (machine.kept, machine.cache, machine.cache.parent)] == [0o700] * 3
    assert mode(machine.file) == 0o600
    assert machine.load() is not None
    assert machine.builds == 1
    machine.assert_clean()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def truncate(file: Path) -> None:
    """As long as its tables say, it would be read beyond its end: a signal, and no error."""
    file.write_bytes(file.read_bytes()[:3000])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def make_foreign(file: Path) -> None:
    file.write_bytes(Path(torch._C.__file__).read_bytes())


def forbid(file: Path) -> None:
    file.chmod(0)


def open_to_others(file: Path) -> None:
    file.chmod(0o666)


def link(file: Path) -> None:
    elsewhere = file.with_name("elsewhere")
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


@pytest.mark.parametrize("damage", [empty, truncate, flip, make_foreign, forbid, open_to_others, link, pipe])
def test_what_is_not_what_was_kept_is_built_once_again(machine: Machine, damage: Callable[[Path], None]) -> None:
    damage(machine.keep())
    readable = damage is forbid and os.access(machine.file, os.R_OK)  # root reads what it may not
    assert machine.load() is not None
    assert machine.load() is not None
    assert machine.builds == (0 if readable else 1)
    machine.assert_clean()


def test_what_was_kept_is_used(machine: Machine) -> None:
    machine.keep()
    assert machine.load() is not None
    assert machine.builds == 0


def test_a_folder_in_its_place_stays(machine: Machine) -> None:
    (machine.file / "full").mkdir(parents=True)
    assert machine.load() is not None
    assert (machine.file / "full").is_dir()
    machine.assert_clean()


def disown(machine: Machine, path: Path) -> None:
    """Another user's, for all that this process is told."""
    real = Path.stat

    def told(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        status = real(self, follow_symlinks=follow_symlinks)
        return os.stat_result((*status[:4], 12345, *status[5:])) if self == path else status

    machine.patch.setattr(Path, "stat", told)


@pytest.mark.parametrize("whose", ["folder", "file", "around", "open around", "open"])
def test_nothing_is_loaded_that_others_may_have_written(machine: Machine, whose: str) -> None:
    planted = machine.keep()
    if whose == "open around":
        machine.cache.chmod(0o777)
    elif whose == "open":
        machine.kept.chmod(0o777)
    else:
        disown(machine, {"folder": machine.kept, "file": planted, "around": machine.cache}[whose])
    opened: list[str] = []
    real = ctypes.CDLL

    def opening(path: str) -> ctypes.CDLL:
        opened.append(path)
        return real(path)

    machine.patch.setattr(library.ctypes, "CDLL", opening)
    assert machine.load() is not None
    if whose == "open":  # the folder is ours to close, and the file in it too
        assert mode(machine.kept) == 0o700
        assert opened == [str(planted)]
    else:
        assert str(planted) not in opened
        assert machine.builds == 1
    machine.assert_clean()


def test_a_folder_under_a_sticky_one_is_as_good_as_any(machine: Machine) -> None:
    machine.cache.mkdir(parents=True)
    machine.cache.chmod(0o1777)
    assert machine.load() is not None
    assert machine.file.exists()


def test_a_link_to_a_folder_is_followed_to_its_end(machine: Machine) -> None:
    real = machine.folder / "scratch"
    real.mkdir(mode=0o700)
    machine.cache.parent.mkdir()
    machine.cache.symlink_to(real)
    assert machine.load() is not None
    assert (real / "sybil" / machine.file.name).exists()
    real.chmod(0o777)
    assert library.keeping_folder() is None


def no_home(machine: Machine) -> None:
    machine.patch.delenv("XDG_CACHE_HOME")
    machine.patch.setattr(Path, "home", lambda: Path("/proc/nowhere"))


def unknown_home(machine: Machine) -> None:
    def home() -> Path:
        raise RuntimeError("no home")

    machine.patch.delenv("XDG_CACHE_HOME")
    machine.patch.setattr(Path, "home", home)


def relative_home(machine: Machine) -> None:
    machine.patch.chdir(machine.folder)
    machine.patch.setenv("XDG_CACHE_HOME", "relative")
    machine.patch.setattr(Path, "home", lambda: Path("too"))


def file_for_home(machine: Machine) -> None:
    machine.cache.parent.mkdir()
    machine.cache.write_text("")


def read_only_home(machine: Machine) -> None:
    machine.kept.mkdir(parents=True, mode=0o700)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    machine.patch.setattr(library, "_put", refuse)


def noexec_home(machine: Machine) -> None:
    real = ctypes.CDLL

    def opening(path: str) -> ctypes.CDLL:
        if path.startswith(str(machine.cache)):
            raise OSError(f"{path}: failed to map segment from shared object")
        return real(path)

    machine.patch.setattr(library.ctypes, "CDLL", opening)


@pytest.mark.parametrize("home", [no_home, unknown_home, relative_home, file_for_home, read_only_home, noexec_home])
def test_without_a_place_to_keep_it_a_process_has_its_own(machine: Machine, home: Callable[[Machine], None]) -> None:
    home(machine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = machine.load()
    assert built is not None
    assert machine.builds == 1
    assert not (machine.folder / "relative").exists()
    assert built.sybil_panel() > 0  # its file is gone, it isn't
    machine.assert_clean()


def test_where_nothing_can_be_run_the_operators_decode(machine: Machine) -> None:
    def opening(path: str) -> ctypes.CDLL:
        raise OSError(f"{path}: failed to map segment from shared object")

    machine.patch.setattr(library.ctypes, "CDLL", opening)
    assert "failed to map segment" in warned(machine)
    machine.patch.setattr(tempfile, "tempdir", str(machine.folder / "missing"))
    assert "No such file" in warned(machine)


def test_two_that_build_at_once_do_not_meet(machine: Machine) -> None:
    machine.compile_by(f"sleep 0.3; cp {shlex.quote(str(machine.folder / 'built'))} $made")
    found: list[Any] = []
    recipe = compiler.recipe(None)

    def work() -> None:
        found.append(library._opened(recipe, None))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.sybil_panel() > 0 for each in found] == [True] * 4
    assert machine.builds == 4
    machine.assert_clean()
