"""Progress bars on standard error, while a model is fetched and while its weights are read.

Every function's argument `progress` says whether bars are shown. None shows them where standard error is a terminal.
The hub's own switch, HF_HUB_DISABLE_PROGRESS_BARS, overrides the argument."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WAIT = 1.0
"""Seconds before a bar for weights appears, so that a small model shows none."""


def is_shown(progress: bool | None) -> bool:
    """Whether bars are shown."""
    if progress is None:
        return sys.stderr is not None and sys.stderr.isatty()
    return progress


def download_bar(progress: bool | None) -> type:
    """The class from which the hub's library makes its progress bars for downloads."""
    from huggingface_hub.utils.tqdm import tqdm

    class ProgressBar(tqdm):
        """A bar that is shown or hidden as `progress` says, whatever standard error is."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            keywords["disable"] = not is_shown(progress)
            super().__init__(*arguments, **keywords)  # type: ignore[no-untyped-call]

    return ProgressBar


@contextmanager
def bar(name: str, total: int, progress: bool | None) -> Iterator[Callable[[int], object]]:
    """A context manager around work on `total` bytes. It gives the function that is called with the number of bytes
    done."""
    if not is_shown(progress):
        yield lambda done: None
        return
    from huggingface_hub.utils.tqdm import tqdm

    settings = {"total": total, "desc": name, "unit": "B", "unit_scale": True, "leave": False, "delay": WAIT}
    with tqdm(**settings) as shown:  # type: ignore[no-untyped-call]
        yield shown.update


def silence_transformers() -> None:
    """No warnings and no bars of transformers' own from now on: a command that measures shows its own bar alone."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def transformers_bars(progress: bool | None) -> Iterator[None]:
    """A context manager that hides transformers' own bars while it reads a model, where no bars are asked for."""
    from transformers.utils import logging

    hides = logging.is_progress_bar_enabled() and not is_shown(progress)
    if hides:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hides:
            logging.enable_progress_bar()
