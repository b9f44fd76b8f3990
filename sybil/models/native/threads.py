"""Threads that don't wait for each other. torch's own threads wait for each other at the end of each operator. Where
other processes compute too, that wait takes longer than the work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TypeVar

import torch

AT_ONCE = 1 << 19
"""The number of weights that a thread takes at once."""

Thing = TypeVar("Thing")
Made = TypeVar("Made")
_threads: ContextVar[int | None] = ContextVar("threads", default=None)


@contextlib.contextmanager
def torch_alone() -> Iterator[None]:
    """A context manager in which torch's operators use one thread, and by_rows() as many as torch had before."""
    before = torch.get_num_threads()
    token = _threads.set(_threads.get() or before)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads.reset(token)


def by_rows(work: Callable[[int, int], object], rows: int, inputs: int, unit: int = 1) -> None:
    """Call work(first, last) for ranges that cover all rows, by as many threads as torch has. A range has a multiple of
    `unit` rows; inputs: the weights of a row."""
    some = -(-max(1, AT_ONCE // inputs) // unit) * unit
    firsts, threads = range(0, rows, some), _threads.get() or torch.get_num_threads()
    if threads == 1 or len(firsts) == 1:
        for first in firsts:
            work(first, min(first + some, rows))
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, first, min(first + some, rows)) for first in firsts]:
            done.result()


def made_of_each(
    work: Callable[[Thing], Made],
    things: Sequence[Thing],
    done: Callable[[int], None] = lambda count: None,
    most: int | None = None,
) -> list[Made]:
    """The results of work(thing) for all things, in order. As many threads as torch has work, or `most` of them at
    most; in each thread torch's operators use that thread only. done: called after each result with the number of
    results."""
    made, threads = list[Made](), min(most or _threads.get() or torch.get_num_threads(), len(things))
    with contextlib.ExitStack() as stack:
        results: Iterator[Made] = map(work, things)
        if threads > 1:
            stack.enter_context(torch_alone())
            results = stack.enter_context(ThreadPoolExecutor(threads)).map(work, things)
        for result in results:
            made.append(result)
            done(len(made))
    return made
