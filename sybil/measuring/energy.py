"""Measures the energy of a stretch of work in joules, where the machine counts it: by NVML's counter of a GPU, or by
RAPL's counters of processors, which count everything that runs on them."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:?"
"""The pattern of the folders of whole processors, of any maker. A processor's parts have a second number, as in
intel-rapl:0:0."""


class Energy:
    """Measures the work in its block: with Energy(device) as energy: ... Afterwards energy.joules is the work's energy;
    None where no counter is available."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.joules: float | None = None

    def __enter__(self) -> Energy:
        self._before = self._counters()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._counters()
        if self._before and after.keys() == self._before.keys():
            spent = [_spent(self._before[name], after[name]) for name in after]
            self.joules = None if None in spent else sum(each for each in spent if each is not None)

    def _counters(self) -> dict[str, tuple[float, float]]:
        """For each counter, (its joules, the number at which it restarts from 0); {} where there is no counter."""
        return _of_gpu(self._device) if self._device.type == "cuda" else _of_processors()


def _spent(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    """The joules between two readings of a counter, which may have restarted once; None where that can't be told."""
    joules = after[0] - before[0]
    if joules < 0:
        joules += after[1]
    return joules if joules >= 0 else None


def _of_processors() -> dict[str, tuple[float, float]]:
    found = {}
    for folder in sorted(POWERCAP.glob(PACKAGES)):
        try:
            now, end = (int((folder / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
        except (OSError, ValueError):  # on most systems only root may read it
            return {}
        found[folder.name] = now, end
    return found


def _of_gpu(device: torch.device) -> dict[str, tuple[float, float]]:
    """The counter of a GPU, read by the package nvidia-ml-py where it is installed."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return {str(device): (nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0)}
    except Exception:  # no package, no driver, or a GPU that doesn't count
        return {}
