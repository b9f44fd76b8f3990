"""Measures a generation's seconds by phase."""

from __future__ import annotations

import itertools
import time

import torch

from sybil.results import Timings


def event(device: torch.device) -> torch.cuda.Event:
    """A CUDA event that the GPU `device` records once it has done all the work queued so far. The device needn't be
    the current one."""
    made = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    made.record(torch.cuda.current_stream(device))
    return made


class Clock:
    """Seconds by phase. On a GPU the phases are read from CUDA events, so that the work doesn't wait for the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begin a round: forget all laps."""
        self._laps: list[tuple[str, float, torch.cuda.Event | None]] = [("", *self._now())]

    def lap(self, phase: str) -> None:
        """End the phase of that name here. A phase may have several laps in a round; they add up."""
        self._laps.append((phase, *self._now()))

    def _now(self) -> tuple[float, torch.cuda.Event | None]:
        passed = event(self._device) if self._cuda else None
        return time.perf_counter(), passed

    def timings(self) -> Timings:
        """The seconds of each phase since restart(). On a GPU the phase "other" is measured by the host's clock,
        because it is work of the host that the GPU doesn't see. Every other phase is measured by the GPU's events."""
        phases: dict[str, float] = {}
        if self._cuda:
            torch.cuda.synchronize(self._device)
        for (_, before, started), (phase, after, ended) in itertools.pairwise(self._laps):
            seconds = after - before
            if started is not None and ended is not None and phase != "other":
                seconds = started.elapsed_time(ended) / 1000
            phases[phase] = phases.get(phase, 0.0) + seconds
        return Timings(**phases)
