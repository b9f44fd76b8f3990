"""What a wheel carries: the library, pytest's plugin, and no more."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

import release
import sybil


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(release.ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(built)


def test_it_holds_what_git_has_of_the_library_and_is_small(wheel: Path) -> None:
    assert release.lacking_and_foreign(wheel, release.packaged()) == (set(), set())
    assert wheel.stat().st_size <= release.LARGEST
    assert wheel.name == f"project_sybil-{sybil.__version__}-py3-none-any.whl"  # of pyproject.toml, and of the library


def test_a_file_too_few_and_one_too_many_are_named(wheel: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(spoilt, "w") as archive:
        for name in source.namelist():
            if name != "sybil/models/native/forward.c":
                archive.writestr(name, source.read(name))
        archive.writestr("sybil/notes.txt", "")
    assert release.lacking_and_foreign(spoilt, release.packaged()) == (
        {"sybil/models/native/forward.c"},
        {"sybil/notes.txt"},
    )


def test_what_fails_ends_the_trial(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="listing failed with"):
        release.tried("listing", ["ls", "--no-such-option"], tmp_path)


def test_the_readme_begins_with_python_that_compiles() -> None:
    compile(release.first_python((release.ROOT / "README.md").read_text(encoding="utf-8")), "README.md", "exec")


def test_git_is_asked_for_the_library_alone() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=release.ROOT, capture_output=True, text=True, check=True).stdout
    assert release.packaged() <= set(tracked.splitlines())
    assert all(name.startswith("sybil/") or name == "pytest_sybil.py" for name in release.packaged())
