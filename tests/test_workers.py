"""The C forward's own threads: nobody waits for one that the system has put aside, and its late work does no harm."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import SHAPES, assert_same_bits, compiled, logits_in_parts, random_tokens, random_weights
from torch import Tensor

from sybil.models.native import NativeTransformer, compiler, library, workers

pytestmark = compiled

PUT_ASIDE = """#include <time.h>
static _Thread_local int is_worker;
static int64_t aside_for, aside_from, aside_to, aside_every = 1;
static _Atomic int64_t published;
void sybil_put_aside(int64_t nanoseconds, int64_t every, int64_t from, int64_t to) {
    aside_for = nanoseconds, aside_every = every, aside_from = from, aside_to = to, published = 0;
}
static void put_aside(void) {
    if (is_worker < aside_from || is_worker > aside_to) return;
    if (aside_for && ++published % aside_every == 0) {
        struct timespec time = {aside_for / 1000000000, aside_for % 1000000000};
        nanosleep(&time, NULL);
    }
}
"""
PUBLISH = "static inline int publish(Share *share) {"
PLANTS = [
    ("stages.h", "typedef struct { /* what one thread", f"{PUT_ASIDE}typedef struct {{ /* what one thread"),
    ("stages.h", PUBLISH, f"{PUBLISH}\n    put_aside();"),
    ("stages.h", "else return share->item;", "else { put_aside(); return share->item; }"),
    ("stages.h", "share->stage++;", "share->stage++;\n    put_aside();"),
    ("pool.h", "Worker *me = given;", "Worker *me = given;\n    is_worker = 1;"),
    ("pool.h", "Job job = pool.job;", "put_aside();\n        Job job = pool.job;\n        put_aside();"),
    (
        "pool.h",
        "Share share = {.threads = job.threads,",
        "put_aside();\n            Share share = {.threads = job.threads,",
    ),
]
"""Threads that fall asleep before an item is computed and before it is stored, between stages, and on their way in."""
CALLER, WORKERS, ALL = (0, 0), (1, 1), (0, 1)
LONG = 2.0
"""Seconds that a worker sleeps for in a plant; the others' work takes some thousandths."""


def built(folder: Path, plants: list[tuple[str, str, str]]) -> ctypes.CDLL:
    """The C forward with other texts: (file, text, what is put there)."""
    source = folder / "source"
    shutil.copytree(compiler.SOURCE.parent, source)
    for name, text, other in plants:
        held = (source / name).read_text()
        assert held.count(text) == 1, text
        (source / name).write_text(held.replace(text, other))
    recipe = compiler.recipe(None)
    flags = tuple("-O1" if flag == "-O3" else flag for flag in recipe.flags)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "SOURCE", source / "forward.c")
        made = ctypes.CDLL(str(replace(recipe, flags=flags).build(folder)))
    library._declare(made)
    return made


@pytest.fixture(scope="module")
def sleepy(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = built(tmp_path_factory.mktemp("sleepy"), PLANTS)
    made.sybil_put_aside.argtypes = [ctypes.c_int64] * 4
    return made


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch) -> Callable[..., NativeTransformer]:
    """A model of a shape by a library."""

    def made(own: ctypes.CDLL, name: str, threads: int) -> NativeTransformer:
        monkeypatch.setattr(library, "load", lambda lanes=None: own)
        return NativeTransformer(SHAPES[name], random_weights(SHAPES[name]), threads=threads)

    return made


def cut(tokens: int, seed: int) -> list[int]:
    chance, parts = random.Random(seed), []
    while sum(parts) < tokens:
        parts.append(min(chance.choice((1, 1, 2, 5, 9)), tokens - sum(parts)))
    return parts


def answers(model: NativeTransformer, rounds: int) -> list[Tensor]:
    """Of caches that come and go, rows of several texts, blocks of several lengths."""
    batches = [random_tokens(model.shape, 1 + seed % 3, 24, seed) for seed in range(rounds)]
    return [logits_in_parts(model, batch, cut(24, seed)) for seed, batch in enumerate(batches)]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("threads", [2, 3, 4])
def test_the_bits_do_not_depend_on_threads(name: str, threads: int) -> None:
    """On fewer cores than threads too."""
    weights = random_weights(SHAPES[name])
    alone = answers(NativeTransformer(SHAPES[name], weights, threads=1), 6)
    assert_same(answers(NativeTransformer(SHAPES[name], weights, threads=threads), 6), alone)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("who", [WORKERS, ALL], ids=["workers", "all"])
def test_late_work_does_no_harm(name: str, who: tuple[int, int], sleepy: ctypes.CDLL, by: Any) -> None:
    """Threads sleep again and again for longer than others have patience, and are back in later stages or calls."""
    alone = answers(by(sleepy, name, 1), 6)
    model = by(sleepy, name, 3)
    for every, microseconds in ((1, 150), (7, 400), (40, 2000)):
        sleepy.sybil_put_aside(microseconds * 1000, every, *who)
        assert_same(answers(model, 6), alone)
    sleepy.sybil_put_aside(0, 1, *who)


def test_the_check_sees_late_work_that_is_stored(tmp_path: Path) -> None:
    """In a process of its own: what is stored late may lie anywhere, and may end the process."""
    code = f"import test_workers; test_workers.store_late_work({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode < 0 or done.stdout == "other bits\n", (done.returncode, done.stdout, done.stderr)


def store_late_work(folder: str) -> None:
    """Says whether a library that stores what comes late gives other logits."""
    advance = "share->storing = advance("
    plants = [*PLANTS, ("stages.h", advance, f"share->storing = 1 | {advance.split(' = ')[1]}")]
    own = built(Path(folder), plants)
    own.sybil_put_aside.argtypes = [ctypes.c_int64] * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load", lambda lanes=None: own)
        shape, weights = SHAPES["wide"], random_weights(SHAPES["wide"])
        alone, shared = (NativeTransformer(shape, weights, threads=threads) for threads in (1, 3))
    wanted = answers(alone, 3)
    own.sybil_put_aside(400_000, 7, *WORKERS)
    tries = (answers(shared, 3) for _ in range(20))  # on a busy machine the callers are late, too
    same = all(one.equal(other) for found in tries for one, other in zip(found, wanted, strict=True))
    os.write(1, b"the same bits\n" if same else b"other bits\n")
    os._exit(0)  # late work may have spoilt what Python cleans up


def test_nobody_waits_for_a_worker_that_is_put_aside(sleepy: ctypes.CDLL, by: Any) -> None:
    """And what it may still read lies there until it is back."""
    alone = answers(by(sleepy, "wide", 1), 3)
    model = by(sleepy, "wide", 2)
    cache = model.new_cache(1, 4000)
    model.forward(torch.tensor([[1]]), cache)  # the worker is there
    sleepy.sybil_put_aside(int(LONG * 1e9), 1, *WORKERS)
    began = time.monotonic()
    while not sleepy.sybil_late() and time.monotonic() - began < 20:
        cache.lengths = torch.zeros(1, dtype=torch.int64)
        model.forward(torch.tensor([[1]]), cache)
    since = time.monotonic()
    assert sleepy.sybil_late()
    assert_same(answers(model, 3), alone)
    assert time.monotonic() - since < LONG / 2
    assert sleepy.sybil_late()
    assert any(cache in memory for _, memory in workers._kept.values())
    sleepy.sybil_put_aside(0, 1, *WORKERS)
    while sleepy.sybil_late():
        time.sleep(0.01)
    assert_same(answers(model, 3), alone)
    while sleepy.sybil_late():
        time.sleep(0.01)
    workers.keep(sleepy)
    assert not [library for library, _ in workers._kept.values() if library is sleepy]


def test_what_a_worker_may_read_is_kept_after_ctrl_c_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python raises KeyboardInterrupt as the call ends, before the line that follows."""
    model = NativeTransformer(SHAPES["wide"], random_weights(SHAPES["wide"]))
    real = model._library

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def sybil_forward(self, *arguments: Any) -> Any:
            real.sybil_forward(*arguments)
            raise KeyboardInterrupt

        def sybil_late(self) -> int:
            return 1

    stopped = Interrupted()
    monkeypatch.setattr(model, "_library", stopped)
    monkeypatch.setattr(workers, "_kept", {})
    cache = model.new_cache(1, 4)
    with pytest.raises(KeyboardInterrupt):
        model.forward(torch.tensor([[1]]), cache)
    assert [*workers._kept.values()] == [(stopped, (model, cache, cache.scratch))]


def test_two_models_in_two_threads_share_the_workers(sleepy: ctypes.CDLL, by: Any) -> None:
    names = ["wide", "qwen3, windowed", "neox"]
    wanted = {name: answers(by(sleepy, name, 1), 4) for name in names}
    models = {name: by(sleepy, name, 3) for name in names}
    found: dict[str, list[Tensor]] = {}
    sleepy.sybil_put_aside(200_000, 11, *ALL)
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: answers(models[name], 4)})) for name in names
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    sleepy.sybil_put_aside(0, 1, *ALL)
    for name in names:
        assert_same(found[name], wanted[name])


def test_workers_take_denormal_numbers_as_their_caller_does(sleepy: ctypes.CDLL, by: Any) -> None:
    """torch sets that for one thread, here when the workers are already there."""
    shape = replace(SHAPES["neox"], vocab_size=2000)
    weights = random_weights(shape)
    weights["head.weight"] *= 1e-39
    by(sleepy, "neox", 3)
    models = [NativeTransformer(shape, weights, threads=threads) for threads in (1, 3)]
    sleepy.sybil_put_aside(300_000, 3, *CALLER)
    try:
        for flushed in (False, True, False):
            torch.set_flush_denormal(flushed)
            alone, shared = (logits_in_parts(model, random_tokens(shape, 1, 6), [1] * 6) for model in models)
            assert_same_bits(alone, shared)
            assert bool(alone.view(torch.int32).abs().count_nonzero()) != flushed
    finally:
        torch.set_flush_denormal(False)
        sleepy.sybil_put_aside(0, 1, *ALL)


def busy_seconds(model: NativeTransformer) -> float:
    """Processor time of this process in a fifth of a second after a call."""
    logits_in_parts(model, random_tokens(model.shape, 1, 9), [9])
    began = time.process_time()
    time.sleep(0.2)
    return time.process_time() - began


def test_nothing_spins_while_nothing_is_decoded(tmp_path: Path, by: Any) -> None:
    model = by(library.load(None), "wide", 3)
    assert min(busy_seconds(model) for _ in range(3)) < 0.01
    awake = by(built(tmp_path, [("pool.h", "#define AWAKE 1000000 ", "#define AWAKE 1000000000 ")]), "wide", 3)
    assert max(busy_seconds(awake) for _ in range(5)) > 0.01


def test_the_number_of_threads_is_torch_s_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    shape = replace(SHAPES["wide"], inner=2000)
    model = NativeTransformer(shape, random_weights(shape))
    small = NativeTransformer(SHAPES["gpt2"], random_weights(SHAPES["gpt2"]))
    real = model._library

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def sybil_forward(self, *arguments: Any) -> Any:
            seen.append(arguments[-1])
            return real.sybil_forward(*arguments)

    tokens, answers = random_tokens(shape, 1, 4), []
    try:
        for number in (1, 2, 3, 1):
            torch.set_num_threads(number)
            for each in (model, small):
                monkeypatch.setattr(each, "_library", Watched())
                answers.append(logits_in_parts(each, tokens % 37, [1, 3]))
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 1, 1, 2, 2, 1, 1, 3, 3, 1, 1, 1, 1, 1, 1]
    assert_same(answers[2:], answers[:2] * 3)
