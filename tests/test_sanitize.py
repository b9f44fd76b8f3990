"""forward.c under the address and undefined-behaviour sanitizers: `nox -s sanitize`.

Every array lies in memory of exactly its size, what a cache or working memory holds at first is NaN, and the answers
are those of the library without sanitizers.
"""

from __future__ import annotations

import ctypes
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sanitizing import Case, build, build_by, cut_case, instrumented, random_case, run
from shapes import SHAPES, random_weights

from sybil.models.native import STORAGES, NativeTransformer, compiler, library, structs
from sybil.models.native.records import WORDS, panel_bytes
from sybil.models.storage import Rounding

pytestmark = pytest.mark.sanitize

NUMBERS = (-(2**31), -1, 0, 1, 2, 3, 7, 9, 16, 64, 2**16, 2**24, 2**30, 2**31 - 1)
LONG = (*NUMBERS, -(2**63), 2**40, 2**62, 2**63 - 1)


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    assert library.load() is not None, "there is no C compiler here, or SYBIL_NATIVE is 0"
    return {lanes: build(tmp_path_factory.mktemp(f"lanes-{lanes}"), f"-DLANES={lanes}") for lanes in library.WIDTHS}


def check(driver: Path, given: list[tuple[Case, list[torch.Tensor]]]) -> None:
    found, said = run(driver, [case for case, _ in given])
    assert said == ""
    replies = iter(found)
    for case, wanted in given:
        assert next(replies).refusal == ""
        for logits in wanted:
            reply = next(replies)
            assert reply.refusal == ""
            # -O1 fuses otherwise than -O3
            torch.testing.assert_close(reply.logits, logits, rtol=1e-3, atol=1e-3, equal_nan=True)
        assert len(case.calls) == len(wanted)
    assert next(replies, None) is None


@pytest.mark.parametrize("lanes", library.WIDTHS)
def test_random_models_stay_in_their_memory(lanes: int, drivers: dict[int, Path]) -> None:
    check(drivers[lanes], [random_case(seed, lanes) for seed in range(150)])


@pytest.mark.parametrize("lanes", library.WIDTHS)
def test_models_of_every_family_stay_in_their_memory(lanes: int, drivers: dict[int, Path], tmp_path: Path) -> None:
    """What is rounded to 8 bits may come out a step away where -O1 fuses otherwise, and a deep model makes much of
    that: its answers are held to those of the same driver without sanitizers, bit for bit."""
    chance = random.Random(0)
    models = [
        NativeTransformer(shape, random_weights(shape), storage, 1, lanes)
        for shape in SHAPES.values()
        for storage in STORAGES
    ]
    check(drivers[lanes], [cut_case(model, chance) for model in models for _ in range(3)])
    copies = [NativeTransformer(shape, random_weights(shape), Rounding(5), 1, lanes) for shape in SHAPES.values()]
    cases = [cut_case(model, chance)[0] for model in copies for _ in range(3)]
    plain, _ = run(build_by(compiler.command(), tmp_path / "plain", "-march=native", f"-DLANES={lanes}"), cases)
    found, said = run(drivers[lanes], cases)
    assert said == ""
    for one, other in zip(found, plain, strict=True):
        assert one.refusal == other.refusal == ""
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=0, equal_nan=True)


def test_threads_stay_in_theirs(tmp_path: Path) -> None:
    check(build(tmp_path), [random_case(seed, library.load().sybil_lanes()) for seed in range(40)])


def hostile(lanes: int) -> list[Case]:
    """Models and calls with one number that isn't theirs."""
    models = [
        NativeTransformer(SHAPES[name], random_weights(SHAPES[name]), Rounding(8), 1, lanes)
        for name in ("qwen3, windowed", "opt-350m")
    ]
    return [case for model in models for each in (spoilt_models, spoilt_calls) for case in each(model)]


def spoilt_models(model: NativeTransformer) -> Iterator[Case]:
    def case(spoil: Any) -> Case:
        made = Case(model, spoil)
        made.call(torch.arange(8).view(2, 4), [0, 3], 9, fresh=True)
        made.call(torch.arange(2).view(2, 1), [4, 7], 9)
        return made

    def setting(path: str, *fields_and_values: Any) -> Any:
        def spoil(m: Any, blocks: Any) -> None:
            found = SimpleNamespace(m=m, blocks=blocks[1])
            for name in path.split("."):
                found = found[int(name)] if name.isdigit() else getattr(found, name)
            for field, value in zip(fields_and_values[::2], fields_and_values[1::2], strict=True):
                setattr(found, field, value)

        return spoil

    for field in (name for name, kind in model._model._fields_ if kind is ctypes.c_int32 and name != "sound"):
        yield from (case(setting("m", field, value)) for value in NUMBERS)
    for field in ("rotary_size", "window", "layer"):
        yield from (case(setting("blocks", field, value)) for value in NUMBERS)
    of_q6_k = "storage", WORDS.index("q6_k")  # whose blocks have 256 inputs: these products have less than one
    panel = panel_bytes("q6_k", 1, model._lanes)
    products = ("m.token_embedding", "m.head", "blocks.query_key_value", "blocks.attention_out", "blocks.mlp_in")
    for path in (*products, "blocks.mlp_out"):
        for field in ("inputs", "outputs"):
            yield from (case(setting(path, field, value)) for value in NUMBERS)
        for part in range(structs.PARTS):
            for field in ("outputs", "storage", "bytes"):
                yield from (case(setting(f"{path}.parts.{part}", field, value)) for value in NUMBERS)
        yield from (case(setting(f"{path}.parts.0", *of_q6_k, "bytes", panels * panel)) for panels in range(5))
    tables = ("blocks.cosines", "m.positions", "m.final_norm.weight", "blocks.attention_norm.weight")
    tables += ("blocks.mlp_in.parts.0.bias", "blocks.mlp_in.parts.1.bias")
    for path in tables:
        yield from (case(setting(path, "count", value)) for value in LONG)
    yield from (case(setting("m", "block_count", value)) for value in LONG)


def spoilt_calls(model: NativeTransformer) -> Iterator[Case]:
    def case(tokens: list[int], lengths: list[int], **told: int) -> Case:
        made = Case(model)
        made.call(torch.tensor(tokens).view(2, 4), lengths, 9, fresh=True, **told)
        return made

    tokens, lengths = list(range(8)), [0, 3]
    for value in LONG:
        yield case(tokens, lengths, told_cache_floats=value)
        if value <= model._library.sybil_scratch(model._address, 8, 9):
            yield case(tokens, lengths, told_scratch_floats=value)
        for place in range(8):
            yield case([*tokens[:place], value, *tokens[place + 1 :]], lengths)
        yield case(tokens, [value, 3])
        yield case(tokens, [0, value])
    for field in ("batch", "capacity", "places", "count", "threads"):
        for value in NUMBERS:
            yield case(tokens, lengths, **{field: value})


@pytest.mark.parametrize("lanes", library.WIDTHS)
def test_hostile_numbers_are_refused_or_do_no_harm(lanes: int, drivers: dict[int, Path]) -> None:
    """A window of 64 is as good as one of 5; but a window of -1 wrote where the file said."""
    cases = hostile(lanes)
    found, said = run(drivers[lanes], cases)
    assert said == ""
    refused = sum(bool(answer.refusal) for answer in found)
    assert refused > 0.9 * len(cases)
    assert refused < len(found)


def test_the_library_in_a_process_of_python_stays_in_its_memory() -> None:
    """All that these tests ask of it, but for how much memory it takes: the sanitizers take more."""
    files = [f"tests/test_{name}.py" for name in ("native", "native_refusals", "nan", "drawing")]
    asked = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not memory_than", *files]
    root = Path(__file__).parents[1]
    done = subprocess.run(asked, env=instrumented(), cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "skipped" not in done.stdout  # for want of a library


def test_a_process_of_python_ends_at_a_planted_fault() -> None:
    """It is the sanitizers' library that is loaded: C reads where no array is."""
    code = (
        "import sys; sys.path[:0] = ['.', 'tests']\n"
        "from shapes import SHAPES, random_weights\n"
        "from sybil.models.native import NativeTransformer\n"
        "model = NativeTransformer(SHAPES['gpt2'], random_weights(SHAPES['gpt2']))\n"
        "model._library.sybil_refusal(None)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], env=instrumented(), cwd=root, capture_output=True, text=True)
    assert done.returncode
    assert "runtime error: member access within null pointer" in done.stderr


PLANTED = {
    "a vector of keys too many": (
        "attention.h",
        "end = whole(last + 1, LANES);",
        "end = whole(last + 1, LANES) + LANES;",
    ),
    "a token too many": ("refusal.h", "0, cache->capacity - count)", "0, cache->places)"),
    "whole panels of outputs": ("products.h", "kept = smaller(PANEL, part->outputs - panel * PANEL);", "kept = PANEL;"),
    "an input too many": ("products.h", "int64_t input = 0; input < inputs;", "int64_t input = 0; input <= inputs;"),
    "a block of any size": ("refusal.h", "(inputs % record.inputs == 0 || is_rounded(part->storage)) && ", ""),
    "bytes of any number": ("refusal.h", " && part->bytes == times(padded / PANEL, panel)", ""),
    "a window of any sign": ("refusal.h", "NEED(within(block->window, 0, INT32_MAX));", ""),
    "working memory of any size": ("forward.c", "floats >= sybil_scratch(", "floats >= 0 * sybil_scratch("),
    "tokens of any vocabulary": ("refusal.h", "NEED(within(tokens[row], 0, m->vocab_size - 1));", ";"),
    "stages out of line": ("forward.c", "(((uintptr_t)scratch + 63) / 64 * 64)", "((uintptr_t)scratch + 4)"),
}
"""Faults by name: the file, its text, and what is put there."""


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_reported(fault: str, tmp_path: Path) -> None:
    """Of the same cases that are clean without it."""
    name, text, wrong = PLANTED[fault]
    source = tmp_path / "source"
    shutil.copytree(compiler.SOURCE.parent, source)
    spoilt = (source / name).read_text()
    assert spoilt.count(text) == 1
    (source / name).write_text(spoilt.replace(text, wrong))
    driver = build(tmp_path, "-DLANES=8", source=source)
    cases = [random_case(seed, 8)[0] for seed in range(40)]
    _, said = run(driver, [*cases, *hostile(8)])
    assert "AddressSanitizer" in said or "runtime error" in said
    assert re.search(r"in sybil_(forward|refusal)\b", said), said
