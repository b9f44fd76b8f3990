"""CUDA graphs: what a GPU was asked to compute once, launched again by one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ClassVar

import torch

from sybil.errors import one_line


class Graphs:
    """Records what a GPU computes. All graphs of one object share memory, and each writes over what others left there:
    whatever is to stay has to be written elsewhere.

    recorded: how many graphs this process has recorded. What is measured while that grows took longer for it."""

    recorded: ClassVar[int] = 0

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_given_up = device, False
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def nbytes(self) -> int:
        """What the graphs hold of the GPU's memory and torch.cuda.memory_allocated() leaves out."""
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        ours = [each for each in segments if each.get("segment_pool_id") == self._pool]
        return int(sum(each["total_size"] - each["allocated_size"] for each in ours))

    def record(self, run: Callable[[], object]) -> Callable[[], None] | None:
        """What launches run() again, over the numbers that then lie where they lie now. Recording computes nothing.

        None where it can't be recorded: for lack of memory, or for an operator that no graph takes. The latter is said
        by a UserWarning, and nothing more is recorded."""
        if self._is_given_up:
            return None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            try:
                self._stream.wait_stream(before)
                with torch.cuda.stream(self._stream):
                    run()  # libraries make their workspaces
                before.wait_stream(self._stream)
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    run()
            except torch.cuda.OutOfMemoryError:
                return None
            except RuntimeError as error:  # run() raises it again, where the reason is its own
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
                torch.cuda.set_stream(before)  # torch.cuda.graph leaves its own stream current where recording fails
        Graphs.recorded += 1
        return graph.replay


def graphs_on(device: torch.device) -> Graphs | None:
    """What records on the device; None where there are no graphs."""
    return Graphs(device) if device.type == "cuda" else None
