"""`sybil sweep --ray` on a local cluster of two workers, one of which is killed. `nox -s ray` runs it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from sweeping import counts, planned

from sybil.errors import InvalidSetting
from sybil.sweeping.rays import LOCAL, ray_sweep
from sybil.sweeping.rows import read
from sybil.sweeping.sweep import sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
CONFIG = (
    "pairs: [stdlib]\ndrafters: [pair, lookup]\ngammas: [2, 3, 4]\ntemperatures: [0, 0.8]\nprompts: 2\nnew_tokens: 12\n"
    "repeats: 2\nwarm_ups: 0\n"
)


def parent(pid: int) -> int:
    """0 for a process that has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return 0


def is_ours(pid: int) -> bool:
    """Whether this process started it, or one that did."""
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = parent(pid)
    return False


def workers() -> list[int]:
    """The processes of this test's own cluster that measure a cell just now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::measured_by_worker") and is_ours(int(path.parent.name)):
            found.append(int(path.parent.name))
    return found


def test_a_worker_s_death_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", str(Path(__file__).resolve().parents[1])
    )  # for workers, where nothing is installed
    asked, path = planned(tmp_path, CONFIG), tmp_path / "rays.jsonl"
    killed, seen = list[int](), set[int]()

    def kill() -> None:
        """Both workers are at work; then one of them isn't."""
        while not killed and not over.wait(0.02):
            now = workers()
            seen.update(now)
            if len(now) == 2:
                time.sleep(0.1)
                os.kill(now[0], signal.SIGKILL)
                killed.append(now[0])

    over = threading.Event()
    watching = threading.Thread(target=kill)
    watching.start()
    try:
        found = ray_sweep(asked, path, LOCAL, processors=2)
    finally:
        over.set()
        watching.join()
    assert len(killed) == 1
    assert len(seen) >= 2
    assert found.failed == ()
    rows = read(path)
    assert sorted(row.hash for row in rows) == sorted(cell.hash for cell in asked.cells)
    here = sweep(asked, tmp_path / "here.jsonl")
    assert [counts(row) for row in found.rows] == [counts(row) for row in here.rows]
    # what is there isn't measured again, with Ray or without
    assert ray_sweep(asked, path, LOCAL, processors=2).known == sweep(asked, path).known == len(rows)


def test_a_cluster_that_isn_t_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="ray is 127.0.0.1:9, and no cluster can be had there"):
        ray_sweep(planned(tmp_path, CONFIG), tmp_path / "rays.jsonl", "127.0.0.1:9")
