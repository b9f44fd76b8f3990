"""A sweep's cells as Ray tasks, on one machine or many. This process alone writes the file."""

from __future__ import annotations

import importlib
import socket
from pathlib import Path
from typing import Any

import torch

from sybil.errors import InvalidSetting, PackageMissing, told
from sybil.sweeping.cells import TargetBench
from sybil.sweeping.plan import SweepPlan
from sybil.sweeping.rows import SweepFile
from sybil.sweeping.run import RunConfig, RunResult
from sybil.sweeping.sweep import Swept, Tell, begin, failed, measured, told_of

RETRIES = 3
"""How often a cell is given to another worker when its worker dies."""
PATIENCE = 10.0
"""Seconds after which a cluster that doesn't answer counts as unreachable."""
LOCAL = "local"
"""The address that stands for a cluster started on this machine for this sweep."""


def ray_sweep(
    plan: SweepPlan,
    path: Path,
    address: str,
    tell: Tell = lambda *_: None,
    *,
    again: bool = False,
    processors: int | None = None,
) -> Swept:
    """sweep() on the Ray cluster of that address, or on LOCAL, which has so many processors, all where none are said. A
    task is a cell with all its repeats, which one worker measures; it takes as many processors as torch has threads
    here, and a GPU where its device is one. A worker keeps the models of the last target that it measured.

    Raises PackageMissing and InvalidSetting, and the errors of sweep()."""
    ray = _ray()
    with SweepFile(path) as rows:
        known = begin(plan, rows, again)
        left = {cell.hash: cell for group in plan.groups for cell in group if cell.hash not in rows.rows}
        total = len(plan.cells)
        tell(plan.name, total - len(left), total)
        if left:
            _connect(ray, address, processors)
            try:
                _gather(ray, left, plan.warm_ups, rows, lambda what: tell(what, total - len(left), total))
            finally:
                ray.shutdown()
        rows.tidy()
        return Swept(tuple(rows.rows[cell.hash] for cell in plan.cells), known, rows.dropped)


def _gather(ray: Any, left: dict[str, RunConfig], warm_ups: int, rows: SweepFile, tell: Any) -> None:
    """Write a row for each cell as its result arrives, and remove the cell from `left`."""
    threads = torch.get_num_threads()
    tasks = {
        ray.remote(measured_by_worker)
        .options(num_cpus=threads, num_gpus=int(cell.device.startswith("cuda")), max_retries=RETRIES)
        .remote(cell.model_dump(mode="json"), warm_ups, threads): cell
        for cell in left.values()
    }
    waiting = list(tasks)
    while waiting:
        (done, *_), waiting = ray.wait(waiting, num_returns=1)
        cell = tasks[done]
        try:
            row = RunResult.model_validate(ray.get(done))
        except Exception as error:  # a worker that died RETRIES times, or can't import Sybil
            row = failed(cell, error, {})
        rows.add(row)
        del left[cell.hash]
        tell(told_of(cell))


_kept: dict[tuple[str, str | None, str], TargetBench] = {}
"""The models that a worker keeps: those of one target."""


def measured_by_worker(asked: dict[str, Any], warm_ups: int, threads: int) -> dict[str, Any]:
    """Measure a cell in a worker's process, and return its row as a dict for JSON."""
    torch.set_num_threads(threads)
    config = RunConfig.model_validate(asked)
    key = config.pair, config.dtype, config.device
    try:
        if key not in _kept:
            _kept.clear()
            _kept[key] = TargetBench(config)
        return measured(config, _kept[key], warm_ups).model_dump(mode="json")
    except Exception as error:  # loading a model's files may raise anything
        return failed(config, error, {}).model_dump(mode="json")


def _connect(ray: Any, address: str, processors: int | None) -> None:
    local = {"num_cpus": processors, "include_dashboard": False}
    where = local if address == LOCAL else {"address": address}
    _check_answers(address)
    try:
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise InvalidSetting(
            f"ray is {address}, and no cluster is to be had there ({told(error)}): start one"
        ) from None


def _check_answers(address: str) -> None:
    """Raises InvalidSetting where nothing listens at HOST:PORT or ray://HOST:PORT. Ray itself would wait long for
    it."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise InvalidSetting(f"ray is {address}, and nobody answers there ({told(error)}): start a cluster") from None


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise PackageMissing("--ray needs the package ray: pip install 'project-sybil[ray]'") from None
