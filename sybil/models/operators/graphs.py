"""CUDA graphs: work that was recorded on a GPU once and is launched again by one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ClassVar

import torch

from sybil.errors import one_line


class Graphs:
    """Records a GPU's work as graphs. All graphs of one object share memory, and each overwrites what others have left
    there. So results that must stay have to be written elsewhere.

    recorded: how many graphs this process has recorded. A measurement during which this number grows includes the time
    of recording."""

    recorded: ClassVar[int] = 0

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_given_up = device, False
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def nbytes(self) -> int:
        """The bytes of GPU memory that the graphs hold and torch.cuda.memory_allocated() doesn't count."""
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        ours = [each for each in segments if each.get("segment_pool_id") == self._pool]
        return int(sum(each["total_size"] - each["allocated_size"] for each in ours))

    def record(self, run: Callable[[], object]) -> Callable[[], None] | None:
        """Record run(). Returns a function that launches the same work again on the same memory, with the numbers that
        are there then. Recording itself computes nothing.

        None where run() can't be recorded: for lack of memory, or because of an operator that graphs don't support. In
        the latter case a UserWarning says so, and nothing is recorded any more."""
        if self._is_given_up:
            return None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            try:
                self._stream.wait_stream(before)
                with torch.cuda.stream(self._stream):
                    run()  # so that libraries allocate their workspaces
                before.wait_stream(self._stream)
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    run()
            except torch.cuda.OutOfMemoryError:
                return None
            except RuntimeError as error:  # if the fault is run()'s own, its next call raises it
                self._is_given_up = True
                reason = one_line(str(error))
                warnings.warn(
                    f"no CUDA graph can be made of this model ({reason}): its operators are launched one by one, which "
                    "takes longer",
                    UserWarning,
                    stacklevel=2,
                )
                return None
            finally:
                torch.cuda.set_stream(before)  # torch.cuda.graph leaves its own stream current after a failed recording
        Graphs.recorded += 1
        return graph.replay


def graphs_on(device: torch.device) -> Graphs | None:
    """The recorder of graphs on the device; None where the device has no graphs."""
    return Graphs(device) if device.type == "cuda" else None
