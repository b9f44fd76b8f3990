"""How long somebody else's decoder may take for one answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sybil.errors import InvalidSetting

TIMEOUT = 300.0  # seconds, where nothing is said
LONGEST = 86_400.0

T = TypeVar("T")


def checked(timeout: float) -> float:
    """The seconds, above 0 and a day at most; raises InvalidSetting."""
    if not 0 < timeout <= LONGEST:
        raise InvalidSetting(f"timeout is {timeout:g}: use seconds above 0, up to {LONGEST:.0f}")
    return timeout


def started(work: Callable[[], T]) -> Future[T]:
    """Work in a thread that nothing waits for. Who gives it a pipe or a socket closes that at the deadline, so that the
    thread ends."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # it is raised again where the outcome is asked for
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def within(timeout: float, work: Callable[[], T]) -> T:
    """What work returns or raises; TimeoutError after as many seconds, whatever it is waiting for."""
    return started(work).result(timeout)
