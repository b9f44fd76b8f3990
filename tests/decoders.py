"""Decoders for `sybil verify --decoder decoders:NAME`: some that answer, and others that fail in every way.

This module doesn't import torch, so a process for one of them starts at once."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import numpy as np

print("imported")  # noqa: T201  it must get into nobody's JSON
VALUE = 3
ODD = [
    None, "abc", [1.5], [-1], [True], [2**31], [10**5000], {1: 2}, (1, 2, None), iter([1]), [[1]], [1] * 100_001,
    ([1], [1, 2]), object(), np.ones(3), np.array(3), np.ones((2, 2), int),
]  # fmt: skip
RAISED: list[BaseException] = [
    ValueError("bad\nvalue"), SystemExit(0), KeyboardInterrupt(), GeneratorExit(), EOFError(),
    SystemExit("\x1b[31mgone"),
]  # fmt: skip


def cold(prompt: list[int], *, temperature: float, **settings: Any) -> list[int]:
    """The tiny target's own tokens, sampled at a lower temperature than was asked for."""
    from tiny import gpt2, letters

    from sybil.losslessness.samples import Request
    from sybil.losslessness.subjects import TransformersSubject

    names = ("max_new_tokens", "top_k", "top_p", "min_p", "eos_token_ids", "stop_strings")
    request = Request(temperature=0.3 * temperature, **{name: settings[name] for name in names})
    (sample,) = TransformersSubject(gpt2(), letters()).sample([prompt], request, settings["seed"])
    return list(sample.tokens)


def echoing(prompt: list[int], *, max_new_tokens: int, **rest: Any) -> list[int]:
    return prompt + [1] * max_new_tokens


def stubborn(prompt: list[int], *, max_new_tokens: int, **rest: Any) -> list[int]:
    return [30] * max_new_tokens


def sized(prompt: list[int], *, max_new_tokens: int, gamma: int = 4, **rest: Any) -> list[int]:
    """Returns the number of tokens that it was asked to propose at once."""
    return [gamma] * max_new_tokens


def short(prompt: list[int], max_new_tokens: int, temperature: float = 1.0) -> list[int]:
    """Accepts fewer settings than the judge could give it."""
    return [max_new_tokens] * 2


def counts(prompt: list[int], *, max_new_tokens: int, **rest: Any) -> Any:
    return np.arange(max_new_tokens), [0, 1] * (max_new_tokens // 2)


def drafting(prompt: list[int], *, max_new_tokens: int, **rest: Any) -> Any:
    """Reports how many tokens it drafted and accepted, but not their places."""
    return [1] * max_new_tokens, None, (max_new_tokens, 0)


def strict(
    prompt: list[int], *, max_new_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float,
    eos_token_ids: tuple[int, ...], stop_strings: tuple[str, ...], seed: int,
) -> list[int]:  # fmt: skip
    """Prints, and answers with the prompt if all else is as test_foreign.py asks it."""
    assert (max_new_tokens, temperature, top_k, top_p, min_p) == (4, 1.0, 0, 1.0, 0.0)
    assert eos_token_ids == (3,)
    assert stop_strings == ("é\ud800",)
    assert type(seed) is int
    print("aloud")  # noqa: T201
    os.write(1, b"aloud\n")
    assert sys.stdin.read() == ""
    return prompt


def pid(prompt: list[int], **rest: Any) -> list[int]:
    return [os.getpid()]


def nonsense(prompt: list[int], **rest: Any) -> Any:
    return ODD[prompt[0] % len(ODD)]


def beyond(prompt: list[int], **rest: Any) -> list[int]:
    return [2**31 - 1]


def raises(prompt: list[int], **rest: Any) -> NoReturn:
    raise RAISED[prompt[0] % len(RAISED)]


def recurses(prompt: list[int], **rest: Any) -> list[int]:
    return recurses(prompt)


def exits(prompt: list[int], **rest: Any) -> NoReturn:
    sys.exit(0)


def exits_at_once(prompt: list[int], **rest: Any) -> NoReturn:
    os._exit(prompt[0])


def passes(prompt: list[int], **rest: Any) -> NoReturn:
    os._exit(0)


def dies(prompt: list[int], **rest: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def rings(prompt: list[int], **rest: Any) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    time.sleep(60)


def forks(prompt: list[int], **rest: Any) -> None:
    if os.fork():
        os._exit(0)  # the child process goes on, and holds the pipe
    time.sleep(60)


def scribbles(prompt: list[int], **rest: Any) -> None:
    written = [b"PASS", b'{"tokens": [[1]]}', b"[1]", b"{}", b"[" * 100_000][prompt[0] % 5]
    for number in range(3, 20):
        try:
            os.write(number, written + b"\n")
        except OSError:
            continue
    time.sleep(60)


def floods(prompt: list[int], **rest: Any) -> None:
    for number in range(3, 20):
        try:
            while True:
                os.write(number, b"x" * 2**16)
        except OSError:
            continue


def closes(prompt: list[int], **rest: Any) -> list[int]:
    os.closerange(3, 100)
    return [1]


def leaves_a_thread(prompt: list[int], **rest: Any) -> list[int]:
    threading.Thread(target=time.sleep, args=(60,)).start()
    return [1]


def spins(prompt: list[int], **rest: Any) -> None:
    while True:
        pass


def holds_the_lock(prompt: list[int], **rest: Any) -> None:
    re.match("(a*)*b", "a" * 60)


def ignores_signals(prompt: list[int], **rest: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)
