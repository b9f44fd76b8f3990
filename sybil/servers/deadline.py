"""Time limits for one answer of a foreign decoder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sybil.errors import InvalidSetting

TIMEOUT = 300.0  # seconds, by default
LONGEST = 86_400.0

T = TypeVar("T")


def checked(timeout: float) -> float:
    """The timeout in seconds itself. Raises InvalidSetting unless it is above 0 and at most a day."""
    if not 0 < timeout <= LONGEST:
        raise InvalidSetting(f"timeout is {timeout:g}: use seconds above 0, up to {LONGEST:.0f}")
    return timeout


def started(work: Callable[[], T]) -> Future[T]:
    """Runs work in a daemon thread. A caller whose work reads a pipe or a socket must close it at the deadline, so that
    the thread ends."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # the future raises it again where its result is read
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def within(timeout: float, work: Callable[[], T]) -> T:
    """Returns or raises what work does. Raises TimeoutError after `timeout` seconds, whatever work is waiting for."""
    return started(work).result(timeout)
