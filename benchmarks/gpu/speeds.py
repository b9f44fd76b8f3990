"""How fast a GPU is: its memory, forwards with CUDA graphs and without, and the noise that sampling needs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.gpu.models import dtype_of, pair_of, synchronise
from benchmarks.gpu.rows import GpuPlan, GpuRow
from sybil.devices import has_bfloat16
from sybil.measuring.machine import describe
from sybil.measuring.profile import bytes_read
from sybil.measuring.timing import STREAM, STREAM_BYTES, forward_case, interleave, stream_case
from sybil.models.operators.transformer import Transformer
from sybil.noise import Exponentials, Noise
from sybil.transfer import integers

TOKENS = (1, 5)


def device(plan: GpuPlan, device: torch.device) -> Iterator[GpuRow]:
    """The device, and the versions of what runs on it."""
    about = describe(device)
    numbers = dict(about)
    told = f"torch {about['torch']}, transformers {about['transformers']}, commit {about['commit'] or 'none'}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        numbers |= {
            "capability": f"{properties.major}.{properties.minor}",
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": str(torch.version.cuda),
            "bfloat16": has_bfloat16(device),
        }
        told += f", CUDA {torch.version.cuda}, {properties.total_memory / 1e9:.1f} GB"
    yield GpuRow("device", str(about["processor"]), told, numbers=numbers)


def graphs(plan: GpuPlan, device: torch.device) -> Iterator[GpuRow]:
    """The time of the target's forward with graphs and without, and the share of the memory's bandwidth that it
    reaches."""
    pair = pair_of(plan)
    for name in plan.dtypes:
        weights = dict(pair.target.weights(dtype_of(name), device))
        recorded, launched = (Transformer(pair.target.shape, weights, static=static) for static in (True, False))
        depth = min(128, recorded.context // 2)
        cases = {STREAM: stream_case(device)}
        for count in TOKENS:
            cases[f"graph {count}"] = forward_case(recorded, count, depth)
            cases[f"no graph {count}"] = forward_case(launched, count, depth)
        samples = list(interleave(cases, plan.passes, device))
        ms = {case: median(sample[case] for sample in samples) for case in cases}
        for count in TOKENS:
            one, other = ms[f"graph {count}"], ms[f"no graph {count}"]
            share = bytes_read(recorded) / one / (STREAM_BYTES / ms[STREAM])
            found = f"{one:.3f} ms, without graphs {other:.3f} ms ({other / one:.2f}x); {share:.0%} of the bandwidth"
            what = f"{pair.target.name} {name}, a forward of {count}"
            yield GpuRow("graphs", what, found, numbers={"ms": one, "ms_without": other, "share": share})
        bandwidth = STREAM_BYTES / ms[STREAM] / 1e6
        yield GpuRow("graphs", f"{name}: streaming", f"{bandwidth:.0f} GB/s", numbers={"gigabytes_a_second": bandwidth})
        del recorded, launched, weights, cases


def noise(plan: GpuPlan, device: torch.device) -> Iterator[GpuRow]:
    """The time to make the exponentials of one position, on the host and on the device."""
    source, ms = Noise(1), dict[str, float]()
    for name in ("host", "device"):
        times = []
        for place in range(plan.passes + 1):
            places = integers([[place]])
            lazy = Exponentials(source, torch.zeros_like(places), places, plan.vocab)
            synchronise(device)
            began = time.perf_counter()
            if name == "host":
                lazy.all().to(device)
            else:
                lazy.made_on(device)
            synchronise(device)
            times.append(1e3 * (time.perf_counter() - began))
        ms[name] = median(times[1:])
    what = f"exponentials of {plan.vocab} tokens"
    yield GpuRow("noise", what, f"{ms['device']:.3f} ms there, {ms['host']:.3f} ms on the host", numbers=ms)
