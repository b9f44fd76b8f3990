"""Joules that a stretch of work took, where the machine counts them: NVML's counter of a GPU, or RAPL's of processors,
which counts all that runs on them."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:?"
"""A whole processor each, whatever its maker. Its parts have a second number, intel-rapl:0:0."""


class Energy:
    """with Energy(device) as energy: ...; energy.joules is then what it took, None where nothing tells."""

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
        """Joules by counter, and at how many it begins anew; {} where there is none."""
        return _of_gpu(self._device) if self._device.type == "cuda" else _of_processors()


def _spent(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    """From one reading to the next, across the counter's end."""
    joules = after[0] - before[0]
    if joules < 0:
        joules += after[1]
    return joules if joules >= 0 else None


def _of_processors() -> dict[str, tuple[float, float]]:
    found = {}
    for folder in sorted(POWERCAP.glob(PACKAGES)):
        try:
            now, end = (int((folder / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
        except (OSError, ValueError):  # root's alone on most systems
            return {}
        found[folder.name] = now, end
    return found


def _of_gpu(device: torch.device) -> dict[str, tuple[float, float]]:
    """By the package nvidia-ml-py, where it is installed."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return {str(device): (nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0)}
    except Exception:  # no package, no driver, or a GPU that doesn't count
        return {}
