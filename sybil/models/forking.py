"""Lets a forked process compute with torch's operators. Their threads stay in its parent, so the process would wait for
them forever; it computes with one thread. (The C forward starts its own threads again.)"""

from __future__ import annotations

import os

import torch

_used = False


def note_use() -> None:
    """Notes that a model, and so torch's operators, compute in this process from now on."""
    global _used
    _used = True


def _after_fork() -> None:
    if _used:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
