"""Keeps the memory that the C forward's workers may still read after a call has ended.

A call doesn't wait for a worker that the system has preempted. When such a worker runs again, it goes on reading the
model, the cache and the working memory of its call, finds that others have done its work, and leaves. The memory must
stay until then.
"""

from __future__ import annotations

import atexit
import ctypes
import time

_kept: dict[object, tuple[ctypes.CDLL, tuple[object, ...]]] = {}
"""(the library, the memory) of each call that a worker may still read, by a key for each call."""
SECONDS = 5.0
"""How long a program waits for workers at its end."""


def keep(library: ctypes.CDLL, *memory: object) -> None:
    """Keep the memory that a call of the library has used, as long as a worker may read it. It is called after the
    call."""
    before = tuple(_kept.items())
    if library.sybil_late():
        _kept[object()] = library, memory
        return
    for key, (other, _) in before:
        if other is library:
            _kept.pop(key, None)


@atexit.register
def _wait_for_workers() -> None:
    until = time.monotonic() + SECONDS
    while any(library.sybil_late() for library, _ in tuple(_kept.values())) and time.monotonic() < until:
        time.sleep(0.001)
