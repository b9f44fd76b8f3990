"""What builds the C forward: whatever CC is, decoding goes on; SYBIL_LANES and SYBIL_CFLAGS say how it is built."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from elsewhere import Machine, machine, warned
from shapes import SHAPES, compiled, random_weights

import sybil
from sybil.errors import InvalidSetting, UnsupportedModel
from sybil.models.native import NativeTransformer, compiler, library, structs
from sybil.models.operators.transformer import Transformer

__all__ = ["machine"]
pytestmark = compiled


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
        _fields_ = (*structs.CacheStruct._fields_, ("more", ctypes.c_int64))

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
    assert recipe.flags[-2:] == ("-O1", "-DSOMETHING=a b")
    rebuilt.setattr(compiler, "_processor", lambda: "another")
    keys += [recipe.key, compiler.recipe(None).key]
    rebuilt.setattr(compiler, "_run", lambda *_: b"another version")
    keys.append(compiler.recipe(None).key)
    assert len(set(keys)) == 7


def test_odd_flags_are_a_warning(machine: Machine) -> None:
    machine.patch.setenv("SYBIL_CFLAGS", "'")
    assert "quotation" in warned(machine)


@pytest.mark.parametrize(
    ("machine_name", "known", "flags"),
    [
        ("x86_64", "", ("-march=native",)),
        ("aarch64", "-march=native -mcpu=native", ("-march=native",)),
        ("arm64", "-mcpu=native", ("-mcpu=native",)),
        ("riscv64", "", ()),
    ],
)
def test_the_flag_for_this_processor_is_one_that_the_compiler_knows(
    machine_name: str, known: str, flags: tuple[str, ...], machine: Machine
) -> None:
    tries = f'case " {known} " in *" $1 "*) exit 0;; *) exit 1;; esac'
    machine.compile_by("exit 1")
    script = machine.folder / "cc"
    script.write_text(
        script.read_text().replace("echo built", f'[ "$2" = -fsyntax-only ] && {{ {tries}; }}; echo built', 1)
    )
    machine.patch.setattr(platform, "machine", lambda: machine_name)
    assert compiler._native(compiler.command()) == flags
    assert set(flags) <= set(compiler.recipe(None).flags)
