"""The C forward's library: whoever may have written it, whatever CC is, decoding goes on and nothing is left behind."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import signal
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import SHAPES, compiled, random_weights

import sybil
from sybil.errors import InvalidSetting, UnsupportedModel
from sybil.models.native import NativeTransformer, compiler, library, structs
from sybil.models.operators.transformer import Transformer

pytestmark = compiled


class Machine:
    """Another machine as library.load() sees it: a home, a folder for temporary files, a compiler whose every build is
    written down."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.cache, self.temporary = patch, folder / "home" / "cache", folder / "temporary"
        self.folder, self.kept, self.log = folder, self.cache / "sybil", folder / "builds"
        built = library_here(folder)
        self.temporary.mkdir()
        patch.setenv("XDG_CACHE_HOME", str(self.cache))
        patch.setattr(tempfile, "tempdir", str(self.temporary))
        (folder / "built").write_bytes(built)
        self.compile_by(f"cp {shlex.quote(str(folder / 'built'))} $made")

    def compile_by(self, script: str, version: str = "echo a compiler") -> None:
        """CC is a shell script that answers --version by the one and is to make $made by the other."""
        file = self.folder / "cc"
        lines = (
            "#!/bin/sh",
            f'if [ "$1" = --version ]; then {version}; exit; fi',
            f"echo built >> {shlex.quote(str(self.log))}",
            'while [ "$1" != -o ]; do shift; done',
            "made=$2",
            script,
        )
        file.write_bytes(b"\n".join(line.encode("latin-1") for line in lines) + b"\n")
        file.chmod(0o755)
        self.patch.setenv("CC", shlex.quote(str(file)))

    def load(self) -> ctypes.CDLL | None:
        library.load.cache_clear()
        return library.load()

    def keep(self) -> Path:
        """A library as an earlier process has kept it; this one has not opened it."""
        content = (self.folder / "built").read_bytes()
        folder = library.keeping_folder()
        assert folder == self.kept
        library._put(content + hashlib.sha256(content).digest(), self.file)
        return self.file

    @property
    def builds(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    @property
    def file(self) -> Path:
        return self.kept / f"native-{compiler.recipe(None).key}.so"

    def assert_clean(self) -> None:
        assert list(self.temporary.iterdir()) == []
        assert [each.name for each in self.kept.glob(".native-*")] == []


def library_here(folder: Path) -> bytes:
    """What this machine's own compiler makes."""
    recipe, kept = compiler.recipe(None), library.keeping_folder()
    file = kept / f"native-{recipe.key}.so" if kept else folder
    return file.read_bytes()[: -library.DIGEST] if file.is_file() else recipe.build(folder).read_bytes()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    monkeypatch.delenv("SYBIL_LANES", raising=False)
    library.load.cache_clear()
    yield Machine(tmp_path, monkeypatch)
    monkeypatch.undo()
    library.load.cache_clear()


def warned(machine: Machine) -> str:
    """What load() warns of where nothing can be built; operators decode then."""
    with pytest.warns(RuntimeWarning, match="C forward") as caught:
        assert machine.load() is None
    machine.assert_clean()
    text = str(caught[0].message)
    assert "\n" not in text
    return text


# ---- where it is kept ----


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


# ---- what builds it ----


def test_a_compiler_is_a_command_with_words(rebuilt: pytest.MonkeyPatch) -> None:
    rebuilt.setenv("CC", "cc -pipe")
    assert compiler.command() == ("cc", "-pipe")
    assert compiler.recipe(None).command == ("cc", "-pipe")
    for nothing in ("", "   ", "\t\n"):
        rebuilt.setenv("CC", nothing)
        assert Path(compiler.command()[0]).name in ("cc", "gcc", "clang")


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """library.load() forgets what it has found, before and after."""
    library.load.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    library.load.cache_clear()


@pytest.mark.parametrize(
    "given",
    ["no-such-compiler", "ccache no-such-compiler", "no-such-ccache gcc", "'gcc", 'gcc "', "/", "/dev/null", "false"],
)
def test_an_odd_cc_is_a_warning(machine: Machine, given: str) -> None:
    machine.patch.setenv("CC", given)
    assert given in warned(machine)


@pytest.mark.parametrize(
    ("script", "version", "told"),
    [
        ("printf 'caf\351: \377\376 error\n' >&2; exit 1", "echo it", "error"),
        ("printf '\033[31mred\033[0m\007' >&2; exit 1", "echo it", "?[31mred"),
        ("printf ' \n \n' >&2; exit 1", "echo it", "exit status 1"),
        ("exit 1", "echo it", "exit status 1"),
        ("kill -9 $$", "echo it", "SIGKILL"),
        ("exit 0", "echo it", "makes no file"),
        ("mkdir $made", "echo it", "makes no file"),
        ("yes nonsense | head -500 > $made", "echo it", "invalid ELF header"),
        (": > $made", "echo it", "file too short"),
        (f"cp {shlex.quote(torch._C.__file__)} $made", "echo it", "isn't the C forward"),
        ("exit 0", "exit 3", "exit status 3"),
        ("exit 0", "kill -9 $$", "SIGKILL"),
    ],
)
def test_a_compiler_that_fails_is_a_warning(machine: Machine, script: str, version: str, told: str) -> None:
    machine.compile_by(script, version)
    assert told in warned(machine)


def test_a_compiler_that_prints_odd_bytes_and_does_its_work_is_used(machine: Machine) -> None:
    made = f"cp {shlex.quote(str(machine.folder / 'built'))} $made"
    machine.compile_by(f"printf '\377\376' >&2; {made}", "printf 'caf\351 \377\n'")
    assert machine.load() is not None


def test_a_compiler_that_does_not_end_is_ended_with_its_children(machine: Machine) -> None:
    machine.patch.setattr(compiler, "SECONDS", 0.5)
    child = machine.folder / "child"
    machine.compile_by(f"sleep 60 & echo $! > {shlex.quote(str(child))}; wait")
    began = time.monotonic()
    assert "timed out" in warned(machine)
    assert time.monotonic() - began < 30
    process = int(child.read_text())
    for _ in range(100):
        try:
            os.kill(process, 0)
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)
    pytest.fail("the compiler's child went on")


def test_a_compiler_keeps_its_own_temporary_files_in_what_is_removed(machine: Machine) -> None:
    machine.compile_by('echo left > "$TMPDIR/ccXXXX.s"; kill -9 $$')
    warned(machine)


def test_a_compiler_reads_nothing_that_a_prompt_is_read_from(machine: Machine) -> None:
    """`sybil generate < prompts` must not lose its prompts to a compiler."""
    seen = machine.folder / "seen"
    machine.compile_by(f"cat > {shlex.quote(str(seen))}; exit 1")
    read, write = os.pipe()
    os.write(write, b"a prompt")
    os.close(write)
    before = os.dup(0)
    os.dup2(read, 0)
    try:
        warned(machine)
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(read)
    assert seen.read_bytes() == b""


def test_structs_of_another_size_are_never_used(machine: Machine) -> None:
    class Longer(structs.Struct):
        _fields_ = (*structs.Cache._fields_, ("more", ctypes.c_int64))

    machine.patch.setattr(structs, "ALL", (*structs.ALL[:-1], Longer))
    assert "other structs" in warned(machine)


@pytest.mark.filterwarnings("ignore:.*C forward:RuntimeWarning")
@pytest.mark.parametrize(("variable", "value"), [("SYBIL_NATIVE", "0"), ("CC", "false")])
def test_without_a_compiler_the_operators_decode(variable: str, value: str, rebuilt: pytest.MonkeyPatch) -> None:
    wanted = sybil.load("stdlib").generate("def main(", max_new_tokens=12).tokens[0]
    rebuilt.setenv(variable, value)
    library.load.cache_clear()
    decoder = sybil.load("stdlib")
    assert isinstance(decoder.target, Transformer)
    found = decoder.generate("def main(", max_new_tokens=12)
    assert found.tokens[0].equal(wanted)
    assert found.stats.accepted > 0  # by a draft in int8
    with pytest.raises(UnsupportedModel, match="compiler"):
        NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]))


# ---- SYBIL_LANES and SYBIL_CFLAGS ----


@pytest.mark.parametrize("lanes", library.WIDTHS)
def test_lanes_are_forced_by_a_variable(lanes: int, rebuilt: pytest.MonkeyPatch) -> None:
    rebuilt.setenv("SYBIL_LANES", str(lanes))
    model = NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]))
    assert model._lanes == lanes
    assert NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]), lanes=8)._lanes == 8


@pytest.mark.parametrize("said", ["0", "-4", "3", "32", "8.0", "wide", " 8"])
def test_another_number_of_lanes_is_one_line(said: str, rebuilt: pytest.MonkeyPatch) -> None:
    rebuilt.setenv("SYBIL_LANES", said)
    with pytest.raises(InvalidSetting, match=f"SYBIL_LANES is '{said}': use 4, 8, 16"):
        sybil.load("stdlib")
    with pytest.raises(InvalidSetting, match="lanes is 5"):
        library.load(5)


def test_each_way_to_build_has_a_key_of_its_own(rebuilt: pytest.MonkeyPatch) -> None:
    keys = [compiler.recipe(lanes).key for lanes in (None, *library.WIDTHS)]
    rebuilt.setenv("SYBIL_CFLAGS", "-O1 -DSOMETHING='a b'")
    recipe = compiler.recipe(None)
    assert recipe.flags[-3:-1] == ("-O1", "-DSOMETHING=a b")
    rebuilt.setattr(compiler, "_processor", lambda: "another")
    keys += [recipe.key, compiler.recipe(None).key]
    rebuilt.setattr(compiler, "_run", lambda *_: b"another version")
    keys.append(compiler.recipe(None).key)
    assert len(set(keys)) == 7


def test_odd_flags_are_a_warning(machine: Machine) -> None:
    machine.patch.setenv("SYBIL_CFLAGS", "'")
    assert "quotation" in warned(machine)


def test_the_runtime_of_threads_may_lie_anywhere(machine: Machine) -> None:
    """A path in /proc/self/maps may hold any bytes."""
    real = Path.read_text

    def read(self: Path, *arguments: Any) -> str:
        text = real(self, *arguments)
        if str(self) == "/proc/self/maps":
            text = (
                "7f-8f r-xp 0 0:0 1    /odd\udcff/libgomp-0.so.1 (deleted)\n7f-8f r-xp 0 0:0 1  /odd\udcff/x\n" + text
            )
        return text

    machine.patch.setattr(Path, "read_text", read)
    assert machine.load() is not None
    assert "deleted" not in " ".join(compiler.recipe(None).libraries)
