"""The bars of real models: SmolLM2 from its package's file, and Gemma 3 where its file is named. See bars.py."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.engine.bars import CPU, Bar, Result, Tick
from sybil.errors import InvalidSetting
from sybil.loading import load
from sybil.measuring import prompts as texts
from sybil.measuring.contenders import AUTOREGRESSIVE, LLAMA_CPP, Contender, PromptResult, SybilContender
from sybil.measuring.peers import peers
from sybil.measuring.profile import DEPTH
from sybil.measuring.timing import Interval, forward_case, interleave, speed_up
from sybil.models.folders import packaged_file
from sybil.pairs import PAIRS, SMOLLM2
from sybil.transfer import integers

NEW_TOKENS = 64
LLAMA_BARS = {"SmolLM2": 1.5, "Gemma 3": 1.3}
VERIFIED = {5: 1.8, 9: 2.6}
"""By the number of tokens: how many times as long as over one token a verification over so many may take."""
LOADING, BUSY, MEMORY, IDLE = 3.0, 1.25, 250.0, 0.02
"""LOADING: seconds. BUSY: beside a busy process, times as long as one thread alone. MEMORY: MB above the imports. IDLE:
seconds of processor time in a second in which nothing is decoded."""
START = """
import json, sys, time
from benchmarks.fresh import resident
import torch, sybil
torch.set_num_threads(int(sys.argv[2]))
before, began = resident("VmRSS"), time.perf_counter()
decoder = sybil.load(sys.argv[1], device="cpu")
loaded = time.perf_counter() - began
decoder.generate("Why is the sky blue?", max_new_tokens=64, eos_token_id=[])
idle = time.process_time()
time.sleep(1)
idle = time.process_time() - idle
print(json.dumps({"load": loaded, "memory": resident("VmHWM") - before, "idle": idle}))
"""


def smollm2() -> Path:
    """The file that SmolLM2's package brings; raises InvalidSetting if the package isn't installed."""
    pair = PAIRS[SMOLLM2]
    found = packaged_file(str(pair.file))
    if found is None:
        raise InvalidSetting(f"the package of {SMOLLM2} isn't installed: {pair.fetching}")
    return found


def real(passes: int, count: int, gemma: Path | None, tick: Tick) -> Result:
    """All bars, SmolLM2's first. count: the number of prompts beside llama.cpp."""
    result = Result()
    for name, file in (("SmolLM2", smollm2()), ("Gemma 3", gemma)):
        if file is not None:
            _beside_llama(name, file, count, result, tick)
    _verified(passes, result, tick)
    _started(max(passes // 6, 2), result, tick)
    _beside_a_busy_process(max(passes // 3, 2), result, tick)
    return result


def _beside_llama(name: str, file: Path, count: int, result: Result, tick: Tick) -> None:
    """Plain greedy decoding by Sybil and by llama.cpp, which take turns on the same token ids with as many threads."""
    decoder = load(file, device=CPU)
    found, lacking = peers(file, decoder.target.context, decoder.eos_token_ids)
    if LLAMA_CPP not in found:
        raise InvalidSetting(lacking.get(LLAMA_CPP, "xllamacpp isn't installed: pip install xllamacpp"))
    contenders: dict[str, Contender] = {AUTOREGRESSIVE: SybilContender(decoder, eos_token_id=[]), **found}
    chosen = texts.spread(texts.load(shipped=PAIRS[SMOLLM2].prompts), count)
    encoded = [integers(texts.encode(prompt, decoder)) for prompt in chosen]
    for contender in contenders.values():
        contender.run(encoded[0], 8)  # warm up
    rows: dict[str, list[PromptResult]] = {each: [] for each in contenders}
    for index, ids in enumerate(encoded):
        for each in list(contenders)[:: 1 if index % 2 == 0 else -1]:
            rows[each].append(contenders[each].run(ids, NEW_TOKENS))
            tick(f"{name}: {each}")
    after = {
        AUTOREGRESSIVE: [
            1e3 * (row.seconds - row.time_to_first_token) / (NEW_TOKENS - 1) for row in rows[AUTOREGRESSIVE]
        ],
        LLAMA_CPP: [float(row.ms_after_first or "nan") for row in rows[LLAMA_CPP]],
    }
    whole = {each: [1e3 * row.seconds / len(row.tokens) for row in group] for each, group in rows.items()}
    first = {each: [1e3 * row.time_to_first_token for row in group] for each, group in rows.items()}
    for what, ms, bound in (
        ("a token after the prompt", after, LLAMA_BARS[name]),
        ("a token, prompt included", whole, None),
        ("to the first token", first, None),
    ):
        medians = f"llama.cpp {median(ms[LLAMA_CPP]):.2f} ms over Sybil's {median(ms[AUTOREGRESSIVE]):.2f}"
        result.bars.append(
            Bar(f"{name}, {what}: {medians}", speed_up(ms[LLAMA_CPP], ms[AUTOREGRESSIVE]), at_least=bound)
        )
        result.samples[f"{name}, {what}"] = ms


def _verified(passes: int, result: Result, tick: Tick) -> None:
    """The time of a forward over several tokens, after 128 tokens, divided by that over one token."""
    model = load(smollm2(), device=CPU).target
    samples = []
    for sample in interleave({str(n): forward_case(model, n, DEPTH) for n in (1, 2, 3, 5, 9, 17)}, passes, CPU):
        samples.append(sample)
        tick("SmolLM2: forwards")
    ms = {name: [sample[name] for sample in samples] for name in samples[0]}
    for name in list(ms)[1:]:
        what = f"SmolLM2: {name} tokens over 1 ({median(ms['1']):.2f} ms)"
        result.bars.append(Bar(what, speed_up(ms[name], ms["1"]), at_most=VERIFIED.get(int(name))))
    result.samples["SmolLM2: forwards"] = ms


def _started(count: int, result: Result, tick: Tick) -> None:
    """Fresh processes: seconds to load, memory above the imports, processor time in a second after decoding."""
    starts: list[dict[str, float]] = []
    for _ in range(count):
        command = [sys.executable, "-c", START, str(smollm2()), str(torch.get_num_threads())]
        starts.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        tick("SmolLM2: a fresh process")
    for name, what, bound in (
        ("load", "seconds to load", LOADING),
        ("memory", "MB at most above the imports, loading and decoding", MEMORY),
        ("idle", "seconds of processor time in an idle one", IDLE),
    ):
        values = [start[name] for start in starts]
        result.bars.append(Bar(f"SmolLM2: {what}", Interval(median(values), min(values), max(values)), at_most=bound))
    result.samples["SmolLM2: fresh processes"] = starts


def _beside_a_busy_process(passes: int, result: Result, tick: Tick) -> None:
    """The time of all threads beside a process that keeps the first core busy, divided by one thread's on an idle
    machine."""
    decoder, threads = load(smollm2(), device=CPU), torch.get_num_threads()
    settings: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "eos_token_id": []}

    def timed() -> float:
        steps = decoder.stream("Why is the sky blue?", **settings)
        next(steps)
        began = time.perf_counter()
        rounds = sum(1 for _ in steps)
        return 1e3 * (time.perf_counter() - began) / rounds

    def alone() -> float:
        torch.set_num_threads(1)
        return timed()

    def beside() -> float:
        torch.set_num_threads(threads)
        with _busy():
            return timed()

    cases: dict[str, Callable[[], float]] = {"one thread alone": alone, f"{threads} threads beside": beside}
    ms: dict[str, list[float]] = {name: [] for name in cases}
    try:
        for number, name in itertools.product(range(passes + 1), cases):
            found = cases[name]()
            if number:  # the first pass warms up
                ms[name].append(found)
                tick(f"SmolLM2: {name}")
    finally:
        torch.set_num_threads(threads)
    (single, one), (several, other) = ms.items()
    what = f"SmolLM2: {several} a busy process ({median(other):.2f} ms a token) over {single} ({median(one):.2f} ms)"
    result.bars.append(Bar(what, speed_up(other, one), at_most=BUSY))
    result.samples["SmolLM2: beside a busy process"] = ms


@contextmanager
def _busy() -> Iterator[None]:
    """Run another process that never rests. Where the system can, it is bound to the first of this process's cores."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, [min(os.sched_getaffinity(0))])
    time.sleep(0.5)  # until the process is busy
    try:
        yield
    finally:
        process.kill()
        process.wait()
