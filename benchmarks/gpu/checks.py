"""The checks of Sybil on a GPU. The tests with the marker cuda run them too (tests/test_gpu.py).

Each check takes a plan and a device and returns what it found; it raises an AssertionError that says what is wrong. On
a CPU the checks run with fixed shapes but without graphs, and a check that needs a GPU says so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.bars import RANDOM_PAIRS
from benchmarks.gpu.models import dtype_of
from benchmarks.gpu.rows import GpuPlan, GpuRow
from benchmarks.gpu.work import run
from sybil.agreement import FLOAT32, HALF, first_difference, lead
from sybil.decoding import Decoder
from sybil.drafting import DraftLookup, DraftModel
from sybil.errors import OutOfMemory
from sybil.measuring.workload import RandomModel
from sybil.models.operators.graphs import Graphs
from sybil.models.operators.static import KEPT, SIZES, USES
from sybil.models.operators.transformer import Transformer
from sybil.noise import Exponentials, Noise
from sybil.sampling import race
from sybil.transfer import integers

NOT_HERE = "needs a GPU"


def _random(kind: str, layers: int = 3) -> RandomModel:
    counted = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    return RandomModel(kind, {"model_type": kind, **RANDOM_PAIRS[kind], counted: layers})


def _model(kind: str, dtype: torch.dtype, device: torch.device, static: bool = True, layers: int = 3) -> Transformer:
    """A small model of a family, computed by torch's operators. static: with fixed shapes."""
    random = _random(kind, layers)
    return Transformer(random.shape, random.weights(dtype, device), static=static)


def _prompts(count: int, vocab: int, seed: int = 0) -> list[Tensor]:
    """Prompts of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (5 + 17 * index,), generator=generator) for index in range(count)]


def _tolerance(dtype: torch.dtype, logits: Tensor) -> float:
    """The most by which a logit of two forwards in that dtype may differ."""
    return float(HALF.get(dtype, FLOAT32).of(float(logits.abs().max())))


def fixed_shapes(plan: GpuPlan, device: torch.device) -> str:
    """Forwards with fixed shapes give the logits of forwards without, after rollbacks too. On a GPU they are recorded
    as graphs."""
    furthest, before = 0.0, Graphs.recorded
    for kind in plan.families:
        for dtype in map(dtype_of, plan.checked):
            fixed, plain = (_model(kind, dtype, device, static) for static in (True, False))
            caches = [model.new_cache(2, 200) for model in (fixed, plain)]
            tokens = torch.randint(fixed.vocab_size, (2, 200), generator=torch.Generator().manual_seed(1))
            for place, count in enumerate((40, *(1, 2, 3, 4, 5, 9) * (USES + 1), 30, 30)):
                lengths = caches[1].lengths
                part = tokens[:, int(lengths.max()) :][:, :count]
                logits, wanted = fixed.forward(part, caches[0]), plain.forward(part, caches[1])
                off = float((logits - wanted).abs().max())
                assert off <= _tolerance(dtype, wanted), f"{kind} in {dtype}: a logit of {count} tokens is off by {off}"
                furthest = max(furthest, off)
                for cache in caches:  # rows roll back by unequal numbers of tokens
                    cache.lengths = torch.maximum(cache.lengths - integers([place % 3, place % 2]), integers([1, 1]))
    recorded = Graphs.recorded - before
    assert recorded or device.type != "cuda", "no graph was recorded"
    return f"off by {furthest:.1e} at most; {recorded} graphs"


def greedy(plan: GpuPlan, device: torch.device) -> str:
    """Speculative greedy texts equal plain ones, and plain ones equal transformers', except where two logits nearly
    tie."""
    parted = texts = 0
    for kind in plan.families:
        for dtype in map(dtype_of, plan.checked):
            target, draft = _model(kind, dtype, device), _model(kind, dtype, device, layers=2)
            twin, rows = _random(kind).twin(dtype, device), _prompts(3, target.vocab_size)
            asked: dict[str, Any] = {"max_new_tokens": plan.checked_tokens, "eos_token_id": []}
            plain = Decoder(target).generate(rows, **asked)
            drafted = Decoder(target, DraftModel(draft)).generate(rows, gamma=4, **asked)
            looked = Decoder(target, DraftLookup()).generate(rows, gamma=4, **asked)
            for row, prompt in enumerate(rows):
                ids = prompt[None].to(device)
                shown = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
                said = twin.generate(ids, max_new_tokens=plan.checked_tokens, **shown)
                theirs = said[0, len(prompt) :].tolist()
                for name, found in (("drafted", drafted), ("looked up", looked), ("plain", plain)):
                    wanted = theirs if name == "plain" else plain.tokens[row].tolist()
                    apart = first_difference(found.tokens[row].tolist(), wanted)
                    texts += 1
                    if apart is not None:
                        parted += 1
                        _near_tie(twin, [*prompt.tolist(), *wanted[:apart]], f"{kind} in {dtype}, {name}")
    return f"{texts - parted} of {texts} texts the same, near-ties in the rest"


def _near_tie(twin: Any, tokens: list[int], what: str) -> None:
    with torch.inference_mode():
        logits = twin(input_ids=integers([tokens]).to(twin.device)).logits[0, -1].float()
    gap = float(lead(logits))
    assert gap <= _tolerance(twin.dtype, logits), f"{what}: a text parts where the best token leads by {gap:.3f}"


def seeds(plan: GpuPlan, device: torch.device) -> str:
    """Coupled sampling gives the tokens of plain sampling, and the same seed gives the same text again."""
    for kind in plan.families:
        target, draft = _model(kind, torch.float32, device), _model(kind, torch.float32, device, layers=2)
        asked: dict[str, Any] = {
            "max_new_tokens": plan.checked_tokens,
            "eos_token_id": [],
            "do_sample": True,
            "seed": 3,
        }
        rows = _prompts(3, target.vocab_size)
        wanted = Decoder(target).generate(rows, **asked)
        again = Decoder(target).generate(rows, **asked)
        coupled = Decoder(target, DraftModel(draft)).generate(rows, gamma=3, rule="coupled", **asked)
        alone = [Decoder(target, DraftLookup()).generate(rows[:1], gamma=3, rule="coupled", **asked).tokens[0]]
        for found in (again.tokens, coupled.tokens, alone):
            for row, other in zip(found, wanted.tokens, strict=False):
                assert torch.equal(row, other), f"{kind}: a seed's texts part"
    return "the same tokens"


def noise(plan: GpuPlan, device: torch.device) -> str:
    """The noise that is made on the device equals the host's up to the last bits of a logarithm, and draws the same
    tokens."""
    furthest = 0.0
    for vocab in (31, 4096, plan.vocab):
        places = integers([[5, 6, 1000]])
        source = Noise(11)
        host = source.exponentials(integers([0]), places, vocab)
        lazy = Exponentials(source, torch.zeros_like(places), places, vocab)
        made = lazy.made_on(device).cpu()
        furthest = max(furthest, float(((made - host) / host).abs().max()))
        probs = (3 * torch.randn(1, 3, vocab, generator=torch.Generator().manual_seed(0))).softmax(-1)
        assert torch.equal(race(probs.to(device), lazy).cpu(), race(probs, host)), "the races have other winners"
    assert furthest < 1e-14, f"an exponential is off by {furthest:.1e} of itself"
    return f"off by {furthest:.1e} at most"


def modes(plan: GpuPlan, device: torch.device) -> str:
    """Generations inside and outside inference mode, by turns, over one cache, give the same text."""
    target, draft = (_model("gpt2", torch.float32, device, layers=layers) for layers in (3, 2))
    decoder = Decoder(target, DraftModel(draft))
    texts = []
    for is_inside in (True, False, True, False):
        with torch.inference_mode(is_inside):
            found = decoder.generate([integers([1, 2, 3])], max_new_tokens=12, eos_token_id=[])
        texts.append(found.tokens[0].tolist())
    assert texts.count(texts[0]) == len(texts), "the texts part"
    return f"{len(texts)} generations"


def waits(plan: GpuPlan, device: torch.device) -> str:
    """The host waits for the GPU once a round."""
    if device.type != "cuda":
        return NOT_HERE
    target, draft = _model("llama", torch.float32, device), _model("llama", torch.float32, device, layers=2)
    told, wrong = [], []
    for name, factory, settings in (
        ("plain", None, {}),
        ("plain sampling", None, {"do_sample": True, "seed": 1}),
        ("a draft", DraftModel(draft), {"gamma": 4}),
        ("a draft, token", DraftModel(draft), {"gamma": 4, "do_sample": True, "seed": 1}),
        ("a draft, coupled", DraftModel(draft), {"gamma": 4, "do_sample": True, "seed": 1, "rule": "coupled"}),
        ("lookup", DraftLookup(), {"gamma": 4}),
    ):
        decoder = Decoder(target, factory)
        asked: dict[str, Any] = {"max_new_tokens": plan.checked_tokens, "eos_token_id": [], **settings}
        for _ in range(USES):  # recording graphs makes the host wait
            decoder.generate([integers([1, 2, 3])], **asked)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                rounds = decoder.generate([integers([1, 2, 3])], **asked).stats.rounds
            finally:
                torch.cuda.set_sync_debug_mode("default")
        count = sum("synchroniz" in str(each.message) for each in caught)
        told.append(f"{name} {count / rounds:.1f}")
        wrong += [name] * (count > rounds + 3)
    assert not wrong, f"more than one wait a round: {', '.join(told)}"
    return f"waits a round: {', '.join(told)}"


def unrecordable(plan: GpuPlan, device: torch.device) -> str:
    """What a graph can't record is computed without one, and the stream that was current before is current
    afterwards."""
    if device.type != "cuda":
        return NOT_HERE
    graphs, numbers = Graphs(device), torch.ones(4, dtype=torch.float32, device=device)
    before = torch.cuda.current_stream(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert graphs.record(lambda: numbers.sum().item()) is None, "a wait was recorded"
    assert any("CUDA graph" in str(each.message) for each in caught), "nothing was said of it"
    assert torch.cuda.current_stream(device) == before, "another stream is current"
    replay = Graphs(device).record(lambda: numbers.add_(1))
    assert replay is not None, "nothing can be recorded any more"
    held = float(numbers[0])
    replay()
    assert float(numbers[0]) == held + 1, "a replay computes something else"
    return "its reason is told, and the stream is the one before"


def kept(plan: GpuPlan, device: torch.device) -> str:
    """Only a few recorded forwards are kept, whatever is asked for, and they share memory."""
    model = _model("gpt2", torch.float32, device)
    cache = model.new_cache(1, 250)
    for length in (1, 100, 200):
        for count in SIZES:
            for _ in range(USES):
                cache.lengths = integers([length])
                model.forward(torch.ones(1, count, dtype=torch.int64), cache)
    forwards = cache._held.forwards_of(model, model._masks)._kept
    assert len(forwards) <= KEPT, f"{len(forwards)} forwards are kept"
    held = cache._held.graph_bytes
    assert held < 256 << 20, f"the graphs of a model of {model.weight_bytes} bytes hold {held} bytes"
    return f"{len(forwards)} forwards; their graphs hold {held / 1e6:.0f} MB"


def growing(plan: GpuPlan, device: torch.device) -> str:
    """A larger cache takes the smaller one's place in memory."""
    if device.type != "cuda":
        return NOT_HERE
    model = _model("gpt2", torch.float32, device)
    small, large = 200_000, 300_000
    model.context = large  # of caches alone, here
    before = torch.cuda.memory_allocated(device)
    first = model.new_cache(1, small)
    size = first.nbytes
    del first
    torch.cuda.reset_peak_memory_stats(device)
    second = model.new_cache(1, large)
    peak = torch.cuda.max_memory_allocated(device) - before
    assert peak < second.nbytes + size / 2, f"{peak} bytes at once for a cache of {second.nbytes} after one of {size}"
    return f"{peak / second.nbytes:.2f} times the larger one"


def grouped_heads(plan: GpuPlan, device: torch.device) -> str:
    """Attention with grouped heads under a mask uses torch's fast kernels."""
    if device.type != "cuda":
        return NOT_HERE
    from torch.nn.attention import SDPBackend, sdpa_kernel

    told = []
    for dtype in (torch.float32, torch.float16):
        model = _model("llama", dtype, device)
        cache = model.new_cache(2, 100)
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION]):  # raises if neither kernel can
            model.prefill(torch.ones(2, 60, dtype=torch.int64), cache)
            for _ in range(USES + 1):
                cache.lengths = integers([60, 57])
                model.forward(torch.ones(2, 5, dtype=torch.int64), cache)
        told.append(str(dtype).removeprefix("torch."))
    return f"in {' and '.join(told)}"


def logits(plan: GpuPlan, device: torch.device) -> str:
    """Logits of a model in half precision are float32, and finer than half precision."""
    for dtype in (torch.float16, torch.bfloat16):
        for kind in ("gpt2", "llama"):  # GPT-2's head is its embedding; this Llama has a head of its own
            model = _model(kind, dtype, device)
            found = model.forward(torch.ones(1, 3, dtype=torch.int64), model.new_cache(1, 3))
            assert found.dtype == torch.float32, f"logits are {found.dtype}"
            assert bool((found.to(dtype).float() != found).any()), f"logits are rounded to {dtype}"
    one_product = device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype")
    return "in one product" if one_product else "by parts of the head"


def too_much(plan: GpuPlan, device: torch.device) -> str:
    """An allocation that fails is reported as an error of one line."""
    model = _model("gpt2", torch.float32, device)
    try:
        model.new_cache(64, 1 << 30)
    except OutOfMemory as error:
        said = str(error)
    else:
        raise AssertionError("a cache of terabytes was made")
    assert "\n" not in said, "it takes several lines"
    return said[:60] + "..."


def cards(plan: GpuPlan, device: torch.device) -> str:
    """A forward on the second GPU is timed on that GPU."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        return "needs two GPUs"
    other = torch.device("cuda", 1)
    steps = list(Decoder(_model("gpt2", torch.float32, other)).stream([integers([1, 2])], max_new_tokens=30))
    seconds = [step.timings.verify for step in steps]
    assert all(each > 0 and math.isfinite(each) for each in seconds), f"verify took {min(seconds)} s"
    return f"{1e3 * min(seconds):.2f} ms a forward"


CHECKS: Mapping[str, Callable[[GpuPlan, torch.device], str]] = {
    "fixed shapes say what plain ones do": fixed_shapes,
    "greedy texts are plain ones and transformers'": greedy,
    "a seed's tokens with any draft": seeds,
    "noise is the host's": noise,
    "inference mode and none, by turns": modes,
    "the host waits once a round": waits,
    "what can't be recorded": unrecordable,
    "few graphs are kept": kept,
    "a growing cache": growing,
    "grouped heads under a mask": grouped_heads,
    "logits are float32": logits,
    "out of memory is one line": too_much,
    "a second GPU is timed": cards,
}


def checks(plan: GpuPlan, device: torch.device) -> Iterator[GpuRow]:
    """The rows of all checks. A check that fails doesn't stop the others."""
    for what, check in CHECKS.items():
        for row in run("checks", plan, str(device), {"checks": _as_part(check)}):
            yield replace(row, what=what)


def _as_part(check: Callable[[GpuPlan, torch.device], str]) -> Callable[[GpuPlan, Any], Iterator[GpuRow]]:
    def rows(plan: GpuPlan, device: Any) -> Iterator[GpuRow]:
        try:
            found = check(plan, device)
        except AssertionError as wrong:
            yield GpuRow("checks", "", str(wrong), ok=False)
        else:
            yield GpuRow("checks", "", found, ok=None if found.startswith("needs ") else True)

    return rows
