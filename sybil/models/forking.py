"""What a forked process has lost: OpenMP's threads stay in its parent, and whoever asks for them waits forever."""

from __future__ import annotations

import os

import torch


class _Pool:
    used = lost = False


def note_use() -> None:
    """A model computes in this process from now on."""
    _Pool.used = True


def pool_is_lost() -> bool:
    """Whether this process was forked from one that had computed: it has one thread."""
    return _Pool.lost


def _after_fork() -> None:
    if _Pool.used:
        _Pool.lost = True
        torch.set_num_threads(1)  # torch's own operators would wait as well


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
