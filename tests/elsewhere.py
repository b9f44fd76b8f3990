"""Another machine, as the C forward's library finds it: its home, its temporary folder, its compiler."""

from __future__ import annotations

import ctypes
import hashlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sybil.models.native import compiler, library


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
        """Make CC a shell script. It answers --version by `version`, and builds the file $made by `script`."""
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
        """A library that an earlier process has kept, and that this process has not opened."""
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
    """The bytes of the library that this machine's own compiler makes."""
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
    """The warning of load() if nothing can be built; torch's operators decode then."""
    with pytest.warns(RuntimeWarning, match="C forward") as caught:
        assert machine.load() is None
    machine.assert_clean()
    text = str(caught[0].message)
    assert "\n" not in text
    return text
