"""Distils a draft in processes that are killed at random, and then in one that isn't: for test_distill.py.

    python tests/killing.py TARGET DATA OUT KILLS

A process that has run a backward pass can't be forked, so this one only forks: importing torch once for all."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from sybil.distilling import documents, training
from sybil.distilling.recipe import Recipe
from sybil.distilling.stages import Distillation
from sybil.loading import load, read

SIZES = dict(layers=1, width=16, vocabulary=32, window=16, answers=3, steps=16, seed=3)


def distill(target: Path, data: Path, out: Path, seconds: float = 0.0) -> None:
    """Do what `sybil distill` does, in a tenth of a second for each stage. seconds: from one checkpoint to the next."""
    torch.set_num_threads(1)
    training.STEP_TOKENS, training.EVALUATIONS, training.CHECKPOINT_SECONDS = 256, 2, seconds
    asked = Recipe(target=str(target), **SIZES)
    Distillation(asked, load(target), read(target), documents.read([data]), out, lambda *_: None).run()


def forked(target: Path, data: Path, out: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        distill(target, data, out)
        os._exit(0)
    finally:
        os._exit(1)


def main(target: Path, data: Path, out: Path, kills: int) -> int:
    """Write how many processes were killed before they had ended; returns the exit status of the last process."""
    import transformers  # noqa: F401 - once, and not in each process

    moments, killed = random.Random(0), 0
    for _ in range(kills):
        pid = forked(target, data, out)
        time.sleep(moments.uniform(0.02, 0.5))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
    _, status = os.waitpid(forked(target, data, out), 0)
    sys.stdout.write(f"{killed}\n")
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4]), int(sys.argv[4])))
