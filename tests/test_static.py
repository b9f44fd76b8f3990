"""Forwards of fixed shapes, recorded as graphs: what a CPU can show of them. The graphs here compute anew."""

from __future__ import annotations

import ast
import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from shapes import SHAPES, random_tokens, random_weights
from test_conversation import MODELS
from test_conversation import decoder as talking
from tiny import fixed, gpt2, in_sybil, perturbed, prompts, windowed
from torch import Tensor

import sybil
from sybil import Conversation, Decoder
from sybil.clock import Clock
from sybil.drafting import DraftModel
from sybil.measuring import profile, workload
from sybil.measuring.memory import PeakMemory, idle
from sybil.measuring.timing import TRIES, unrecorded
from sybil.models.operators import attention, static
from sybil.models.operators.cache import WHOLE, KVCache
from sybil.models.operators.graphs import Graphs
from sybil.models.operators.linear import WideLinear
from sybil.models.operators.static import KEPT, LONGEST, USES, StaticCache, StaticCaches, bucket, padded
from sybil.models.operators.transformer import PROMPT, Transformer

CPU = torch.device("cpu")


class Rerun:
    """Graphs that compute what they were shown once more, and count. refuses: whether nothing can be recorded."""

    refuses = False

    def __init__(self, device: torch.device) -> None:
        self.nbytes = 1000

    def record(self, run: Callable[[], object]) -> Callable[[], object] | None:
        if self.refuses:
            return None
        Graphs.recorded += 1
        return run


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[Rerun]:
    monkeypatch.setattr(static, "graphs_on", Rerun)
    monkeypatch.setattr(Graphs, "recorded", 0)
    monkeypatch.setattr(Rerun, "refuses", False)
    return Rerun


def forwards_of(cache: Any, model: Any) -> Any:
    return cache._held.forwards_of(model, model._masks)


# what is computed


@given(st.integers(1, 5_000), st.integers(1, LONGEST))
def test_buckets_and_sizes_are_enough_and_not_much_more(keys: int, count: int) -> None:
    assert keys <= bucket(keys) < max(1.25 * keys, keys) + 128
    assert bucket(keys) % 128 == 0
    assert bucket(bucket(keys)) == bucket(keys)
    assert count <= padded(count) < 2 * count
    assert padded(count + 1 if count < LONGEST else count) >= padded(count)
    assert all(padded(gamma + 1) == gamma + 1 for gamma in (0, 1, 2, 4, 8, 16))


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("model", [gpt2(), windowed()], ids=["gpt2", "mistral"])
def test_recorded_forwards_say_what_plain_ones_do(model: Any, refuses: bool, recording: type[Rerun]) -> None:
    """Counts that are no size of their own, at every length to the cache's end, rows that differ."""
    recording.refuses = refuses
    ours, plain = fixed(model), in_sybil(model)
    caches = [each.new_cache(2, 64) for each in (ours, plain)]
    tokens = torch.randint(31, (2, 64), generator=torch.Generator().manual_seed(0))
    for count in (9, *(1, 4, 3, 2, 6) * 3, 1):
        for cache in caches:  # rows roll back by unequal numbers
            cache.lengths = (cache.lengths - torch.tensor([count % 2, count % 3])).clamp(min=0)
        start = int(caches[0].lengths.max())
        found, wanted = (
            each.forward(tokens[:, start : start + count], cache)
            for each, cache in zip((ours, plain), caches, strict=True)
        )
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    assert (Graphs.recorded > 0) is not refuses


def test_a_count_is_computed_alone_where_a_larger_one_has_no_place() -> None:
    model = fixed(gpt2(context=128))
    cache = model.new_cache(1, 128)
    cache.lengths = torch.tensor([124])
    assert model.forward(torch.ones(1, 4, dtype=torch.int64), cache).shape[1] == 4
    assert list(forwards_of(cache, model)._kept) == [(4, 128)]
    cache.lengths = torch.tensor([100])
    model.forward(torch.ones(1, 4, dtype=torch.int64), cache)
    assert list(forwards_of(cache, model)._kept) == [(4, 128), (5, 128)]


def test_the_latest_forwards_are_kept_and_write_to_the_same_place(recording: type[Rerun]) -> None:
    model = fixed(gpt2(context=1024))
    cache = model.new_cache(1, 1024)
    for length in range(0, 1024 - LONGEST, 128):
        for count in (1, 2, 3, 4, 5):
            for _ in range(USES):
                cache.lengths = torch.tensor([length])
                found = model.forward(torch.ones(1, count, dtype=torch.int64), cache)
    forwards = forwards_of(cache, model)
    assert len(forwards._kept) == KEPT
    assert [keys for _, keys in forwards._kept][-1] == 1024
    assert set(forwards._logits) == {1, 2, 3, 5}
    assert found.data_ptr() == forwards._logits[5].data_ptr()
    assert forwards.nbytes == (1 + 2 + 3 + 5) * 31 * 8
    assert cache._held.nbytes == cache.nbytes + forwards.nbytes


def test_prompts_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = in_sybil(gpt2(context=128)), list[int]()
    original = Transformer._at_lengths

    def noted(self: Transformer, tokens: Tensor, cache: Any) -> Tensor:
        asked.append(tokens.shape[1])
        return original(self, tokens, cache)

    monkeypatch.setattr(Transformer, "_at_lengths", noted)
    monkeypatch.setattr("sybil.models.operators.transformer.PROMPT", 50)
    tokens = torch.randint(31, (2, 121), generator=torch.Generator().manual_seed(0))
    cache, whole = model.new_cache(2, 128), model.new_cache(2, 128)
    model.prefill(tokens[:, :120], cache)
    assert asked == [50, 50, 20]
    found = model.forward(tokens[:, 120:], cache)
    torch.testing.assert_close(found[:, 0], model.forward(tokens, whole)[:, -1], rtol=0, atol=1e-10)
    with pytest.raises(IndexError):
        model.prefill(tokens, cache)
    assert cache.lengths.tolist() == [121, 121]
    assert PROMPT >= LONGEST


# (1) caches outlive the mode in which they were made


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("draft", ["none", "model", "in the target's cache"])
def test_turns_in_inference_mode_and_outside_share_their_caches(model: str, draft: str) -> None:
    """Caches are kept, grow, and are used again: by a conversation's next turn, and by the next generation."""
    of = talking(model, draft)
    talk = Conversation(of)
    for is_inside, text in ((True, "abc"), (False, "hello there"), (True, "q"), (False, "what now")):
        messages = [*talk.messages, {"role": "user", "content": text}]
        with torch.inference_mode(is_inside):
            answer = talk.ask(text, max_new_tokens=12).tokens[0]
        with torch.inference_mode(not is_inside):
            assert of.generate(messages, max_new_tokens=12).tokens[0].tolist() == answer.tolist()


def test_a_cache_of_inference_tensors_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: caches are made in whatever mode there is."""
    original = KVCache.__init__

    def spoilt(self: KVCache, *given: Any) -> None:
        original(self, *given)
        self.keys, self.values = self.keys.clone(), self.values.clone()

    monkeypatch.setattr(KVCache, "__init__", spoilt)
    decoder = Decoder(fixed(gpt2()))
    with torch.inference_mode():
        decoder.generate(prompts([3]), max_new_tokens=4)
    with pytest.raises(RuntimeError, match="inference tensor"):
        decoder.generate(prompts([3]), max_new_tokens=4)


# (2) logits of models in half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", ["gpt2", "qwen3, windowed", "granite", "opt-350m"])
@pytest.mark.parametrize("static", [False, True])
def test_a_head_in_half_precision_gives_float32(dtype: torch.dtype, shape: str, static: bool) -> None:
    """What it is given times the very weights, in float32; rounded to the dtype they would differ."""
    weights = {name: weight.to(dtype) for name, weight in random_weights(SHAPES[shape]).items()}
    given = list[Tensor]()
    model = Transformer(SHAPES[shape], weights, static=static)
    head = model.head
    assert isinstance(head, WideLinear)
    model.head = lambda x: (given.append(x), head(x))[1]
    logits = model.forward(random_tokens(SHAPES[shape], 2, 7), model.new_cache(2, 7))
    assert logits.dtype == torch.float32
    assert given[0].dtype == dtype
    kept = weights["token_embedding" if SHAPES[shape].tied_head else "head.weight"]
    wanted = (given[0].double() @ kept.double().T / SHAPES[shape].logit_divisor).float()[:, :7]
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits, logits.to(dtype).float())
    if SHAPES[shape].tied_head:
        assert kept.data_ptr() == head.weight.data_ptr() == model.token_embedding.data_ptr()


def test_large_heads_are_widened_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sybil.models.operators.linear.AT_ONCE", 5)
    weight, x = torch.randn(13, 4).half(), torch.randn(2, 3, 4).half()
    bias = torch.randn(13).half()
    wanted = x.float() @ weight.float().T + bias.float()
    torch.testing.assert_close(WideLinear(weight, bias)(x), wanted, rtol=0, atol=1e-6)


# (4) what recording does to measurements


def test_a_run_in_which_a_graph_is_recorded_is_measured_anew(recording: type[Rerun]) -> None:
    decoder, counts = Decoder(fixed(gpt2())), list[int]()

    def run() -> int:
        decoder.generate(prompts([3]), max_new_tokens=2, eos_token_id=[])  # fewer rounds than a graph takes
        counts.append(Graphs.recorded)
        return len(counts)

    assert unrecorded(run) == 1  # nothing was recorded yet
    assert counts == [0]
    assert unrecorded(run) == 3  # the second of these recorded
    assert counts == [0, 1, 1]
    assert unrecorded(run) == 4

    def always() -> None:
        Graphs.recorded += 1

    before = Graphs.recorded
    unrecorded(always)
    assert Graphs.recorded == before + TRIES


def test_memory_counts_idle_caches_and_graphs(recording: type[Rerun], monkeypatch: pytest.MonkeyPatch) -> None:
    """By an allocator that says what this one would: 5,000 bytes of weights, what is idle, and 300 more at work."""
    target = fixed(gpt2())
    decoder = Decoder(target, DraftModel(target))
    decoder.generate(prompts([3]), max_new_tokens=12, gamma=3, eos_token_id=[])
    (held,) = idle(decoder.models)
    told = held.nbytes
    assert told > held.store.nbytes  # graphs write logits
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5_000 + told)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5_300 + told)
    with PeakMemory(torch.device("cuda"), decoder.models) as peak:
        pass
    assert peak.growth == told + 300 + held.graph_bytes
    assert held.graph_bytes == 1000
    with PeakMemory(torch.device("cuda")) as peak:  # somebody else's: theirs is no growth
        pass
    assert peak.growth == 300


def test_a_graph_s_memory_is_what_torch_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [
        {"segment_pool_id": (0, 1), "total_size": 100, "allocated_size": 30},
        {"segment_pool_id": (0, 2), "total_size": 1000, "allocated_size": 0},
        {"segment_pool_id": (0, 1), "total_size": 7, "allocated_size": 0},
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert Fake().graphs(monkeypatch).nbytes == 77


# (6) what can't be recorded


class Fake:
    """torch.cuda as far as graphs use it, with a stream that is current."""

    def __init__(self, error: Exception | None = None) -> None:
        self.current: Any = "before"
        self.error = error
        self.replays = 0

    def graphs(self, monkeypatch: pytest.MonkeyPatch) -> Graphs:
        outer = self

        class Stream:
            def __init__(self, device: torch.device) -> None: ...

            def wait_stream(self, other: Any) -> None: ...

        class Current(Stream):
            name = self.current

        @contextlib.contextmanager
        def stream(chosen: Any) -> Iterator[None]:
            before, outer.current = outer.current, chosen
            yield
            outer.current = before

        class Recording:
            """As torch.cuda.graph is: where recording fails, its stream stays."""

            def __init__(self, graph: Any, pool: Any, chosen: Any, capture_error_mode: str) -> None:
                self.chosen = chosen

            def __enter__(self) -> None:
                self.before, outer.current = outer.current, self.chosen

            def __exit__(self, *_: object) -> None:
                if outer.error:
                    raise outer.error
                outer.current = self.before

        before = Current(CPU)
        self.before = self.current = before
        replayed = SimpleNamespace(replay=lambda: setattr(outer, "replays", outer.replays + 1))
        for name, made in {
            "graph_pool_handle": lambda: (0, 1),
            "Stream": Stream,
            "CUDAGraph": lambda: replayed,
            "device": lambda device: contextlib.nullcontext(),
            "current_stream": lambda device=None: outer.current,
            "set_stream": lambda chosen: setattr(outer, "current", chosen),
            "stream": stream,
            "graph": Recording,
        }.items():
            monkeypatch.setattr(torch.cuda, name, made)
        return Graphs(torch.device("cuda"))


def test_what_is_recorded_is_replayed_on_the_stream_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, ran = Fake(), list[Any]()
    made, recorded = fake.graphs(monkeypatch), Graphs.recorded
    replay = made.record(lambda: ran.append(fake.current))
    assert replay is not None
    assert len(ran) == 2  # once for libraries, once to be recorded
    assert all(each is not fake.before for each in ran)
    assert fake.current is fake.before
    replay()
    assert fake.replays == 1
    assert Graphs.recorded == recorded + 1
    monkeypatch.setattr(Graphs, "recorded", recorded)


def test_a_recording_that_fails_leaves_the_stream_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, before = Fake(torch.cuda.OutOfMemoryError("CUDA out of memory")), Graphs.recorded
    made = fake.graphs(monkeypatch)
    for _ in range(2):  # another shape may fit
        assert made.record(lambda: None) is None
        assert fake.current is fake.before
    fake.error = RuntimeError("operation not permitted when stream is capturing\nmore of it")
    with pytest.warns(
        UserWarning, match=r"no CUDA graph can be made .*\(operation not permitted .* one by one"
    ) as told:
        assert made.record(lambda: None) is None
    assert "\n" not in str(told[0].message)
    assert fake.current is fake.before
    fake.error = None
    assert made.record(lambda: None) is None  # given up: each try takes time
    fake.error = ValueError("of somebody else")
    with pytest.raises(ValueError, match="of somebody else"):
        fake.graphs(monkeypatch).record(lambda: None)
    assert fake.current is fake.before
    assert Graphs.recorded == before


# (7) a growing cache


def live(stores: list[weakref.ref[KVCache]]) -> int:
    return sum(each() is not None for each in stores)


def test_a_larger_cache_is_made_when_the_smaller_one_is_gone() -> None:
    caches, stores, beside = StaticCaches(), list[weakref.ref[KVCache]](), list[int]()

    def make(batch: int, capacity: int) -> KVCache:
        beside.append(live(stores))
        made = KVCache(1, batch, 1, capacity, 4, torch.float32, CPU)
        stores.append(weakref.ref(made))
        return made

    for batch, capacity in ((1, 100), (1, 120), (1, 300), (2, 300), (1, 10)):
        cache = caches.take(make, batch, capacity)
        assert cache.store.capacity % 128 == 0
        del cache
    assert beside == [0, 0, 0, 0]  # 120 found a place in the first
    assert live(stores) == 1
    two = caches.take(make, 1, 50), caches.take(make, 1, 50)
    assert beside[-1] == 1  # another generation holds it
    del two
    assert live(stores) == 1


def test_a_conversation_that_grows_lets_its_smaller_cache_go() -> None:
    caches, stores = StaticCaches(), list[weakref.ref[KVCache]]()

    def make(batch: int, capacity: int) -> KVCache:
        made = KVCache(1, batch, 1, capacity, 4, torch.float32, CPU)
        stores.append(weakref.ref(made))
        return made

    cache: StaticCache = caches.take(make, 1, 100)
    for room in (200, 400, 800):
        cache.lengths = torch.tensor([room // 2])
        larger = caches.take(make, 1, room)
        larger.take_over(cache)
        cache = larger
        del larger
        assert live(stores) == 1
    del cache
    assert caches.idle is not None
    assert caches.idle.store.capacity == 896


# (8) grouped heads


def test_grouped_heads_attend_as_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """No way is asked for that copies keys, and masks are made once for all layers, in rows that are aligned."""
    asked = list[dict[str, Any]]()
    original = F.scaled_dot_product_attention

    def noted(query: Tensor, keys: Tensor, values: Tensor, **more: Any) -> Tensor:
        asked.append({"query": query, "keys": keys, **more})
        return original(query, keys, values, **more)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", noted)
    shape = SHAPES["granite"]  # 4 heads over 2
    model = Transformer(shape, random_weights(shape), static=True)
    cache = model.new_cache(2, 40)
    for count in (33, 5, 1):
        model.forward(random_tokens(shape, 2, count), cache)
    assert len(asked) == 3 * shape.layers
    for each in asked:
        assert "enable_gqa" not in each
        assert each["keys"].untyped_storage().data_ptr() == cache.store.keys.untyped_storage().data_ptr()
        assert each["query"].shape[1] == each["keys"].shape[1] == shape.kv_heads
        mask = each["attn_mask"]
        assert mask.dtype == torch.float32
        assert mask.shape == (2, 1, each["query"].shape[2], each["keys"].shape[2])
        assert all(stride % WHOLE == 0 for stride in mask.stride()[:-1])
    for first, second in zip(asked[::2], asked[1::2], strict=True):
        assert first["attn_mask"] is second["attn_mask"]


@pytest.mark.parametrize("shape", ["granite", "gemma2", "olmo2"])
def test_grouped_attention_is_that_of_heads_with_keys_of_their_own(shape: str) -> None:
    """Also where scores are capped: against keys and values that are copied for each query."""
    of, generator = SHAPES[shape], torch.Generator().manual_seed(0)
    query = torch.randn(2, of.heads, 3, of.head_size, dtype=torch.float64, generator=generator)
    keys, values = torch.randn(2, 2, of.kv_heads, 7, of.head_size, dtype=torch.float64, generator=generator)
    seen = torch.rand(2, 1, 3, 7, generator=generator) < 0.6
    seen[..., 0] = True
    times = of.heads // of.kv_heads
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    found = attention.attend(of, query, keys, values, mask.repeat(1, 1, times, 1))
    own_keys, own_values = (each.repeat_interleave(times, 1) for each in (keys, values))
    scores = attention.capped(query @ own_keys.transpose(2, 3) * of.attention_scale, of.attention_cap)
    wanted = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ own_values
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 if of.attention_cap else 1e-12)


# (10) and (11): what waits, and which device is asked


def sent(source: str) -> list[str]:
    """Tensors that are sent to a device otherwise than by upload(), which doesn't wait for it."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "to"):
            continue
        if any("device" in ast.unparse(each) for each in [*call.args, *(word.value for word in call.keywords)]):
            found.append(f"{call.lineno}: {ast.unparse(call)}")
    return found


def test_what_a_round_sends_to_a_device_nobody_waits_for() -> None:
    library = Path(sybil.__file__).parent
    files = [library / f"{name}.py" for name in ("decoding", "noise", "residual", "sampling", "verification")]
    files += [library / "models" / f"{name}.py" for name in ("__init__", "huggingface")]
    files += [*(library / "drafting").glob("*.py"), *(library / "models" / "operators").glob("*.py")]
    sources = {file.name: file.read_text() for file in files if file.stem != "packaged"}  # which moves weights, once
    sources["replay"] = inspect.getsource(workload.ReplayDrafter)
    assert {name: lines for name, source in sources.items() if (lines := sent(source))} == {}
    assert sent("x = a.to(b.device)\ny = a.to(dtype)\nz = a.to(device=d.device)") == [
        "1: a.to(b.device)",
        "3: a.to(device=d.device)",
    ]


def test_events_are_recorded_on_the_device_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = list[str]()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            recorded.append(stream)

        def elapsed_time(self, other: Any) -> float:
            return 1000.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    other = torch.device("cuda:1")
    clock = Clock(other)
    clock.lap("verify")
    assert clock.timings().verify == 1.0
    model: Any = SimpleNamespace(
        vocab_size=3, context=5, device=other, weight_bytes=0, new_cache=None, prefill=None, forward=lambda *_: None
    )
    timed = profile._Timed(model)
    timed.forward(torch.zeros(1), None)
    assert timed.seconds() == 1.0
    assert recorded == ["the stream of cuda:1"] * 4


def test_draws_on_a_device_need_no_noise_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain sampling asks for its noise when the target's forward is under way; a drafter, before."""
    asked = list[str]()
    target, draft = in_sybil(gpt2()), in_sybil(perturbed(gpt2(), 0.05))
    forward = target.forward
    monkeypatch.setattr(target, "forward", lambda *given: (asked.append("forward"), forward(*given))[1])
    monkeypatch.setattr("sybil.noise.Exponentials.on", lambda self, device: (asked.append("made"), self.all())[1])
    settings: dict[str, Any] = dict(do_sample=True, seed=1, max_new_tokens=2, rule="coupled", gamma=1)
    plain = Decoder(target).generate(prompts([3]), **settings)
    assert asked == ["forward", "forward"]
    asked.clear()
    drafted = Decoder(target, DraftModel(draft)).generate(prompts([3]), **settings)
    assert asked[:2] == ["made", "forward"]
    assert drafted.tokens[0].tolist() == plain.tokens[0].tolist()
