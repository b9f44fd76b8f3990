"""A forked process has lost the threads of torch's operators. They stay in its parent, and whatever waits for them
waits forever. (The C forward starts workers of its own.)"""

from __future__ import annotations

import os

import torch

_used = False


def note_use() -> None:
    """Note that a model computes in this process from now on, and torch's operators with it."""
    global _used
    _used = True


def _after_fork() -> None:
    if _used:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
