"""Measures a generation's seconds by phase."""

from __future__ import annotations

import itertools
import time

import torch

from sybil.results import Timings


def event(device: torch.device) -> torch.cuda.Event:
    """One that the GPU passes when it has done what it was asked till now: that GPU, whichever is current."""
    made = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    made.record(torch.cuda.current_stream(device))
    return made


class Clock:
    """Seconds by phase. A GPU's phases are read from events it passes, so that nothing waits for the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """A round begins."""
        self._laps: list[tuple[str, float, torch.cuda.Event | None]] = [("", *self._now())]

    def lap(self, phase: str) -> None:
        """That phase ends here."""
        self._laps.append((phase, *self._now()))

    def _now(self) -> tuple[float, torch.cuda.Event | None]:
        passed = event(self._device) if self._cuda else None
        return time.perf_counter(), passed

    def timings(self) -> Timings:
        """The phases since restart(). On a GPU what the host does after the last phase but one is not seen by the
        device, so that one is the host's time."""
        phases: dict[str, float] = {}
        if self._cuda:
            torch.cuda.synchronize(self._device)
        for (_, before, started), (phase, after, ended) in itertools.pairwise(self._laps):
            seconds = after - before
            if started is not None and ended is not None and phase != "other":
                seconds = started.elapsed_time(ended) / 1000
            phases[phase] = phases.get(phase, 0.0) + seconds
        return Timings(**phases)
