"""Memory that the C forward's workers may still read when a call has ended.

A call doesn't wait for a worker that the system has put aside. When that worker is back it reads on from the model, the
cache and the working memory of its call, finds that others have done its work, and leaves. That memory must stay until
then.
"""

from __future__ import annotations

import atexit
import ctypes
import time

_kept: dict[object, tuple[ctypes.CDLL, tuple[object, ...]]] = {}
"""What calls have left, by a key of each."""
SECONDS = 5.0
"""How long a program's end waits for workers."""


def keep(library: ctypes.CDLL, *memory: object) -> None:
    """After a call of the library that has used this memory: it is kept while a worker may read it."""
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
