"""What tests/native/driver.c reads and prints (packed models, and calls of their forward), and how it is built."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import shlex
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lying import Lying
from shapes import random_weights
from torch import Tensor

from sybil.models.native import NativeTransformer, compiler, structs
from sybil.models.native.structs import BLOCK_PRODUCTS
from sybil.models.shape import Attention, Rotary, Shape
from sybil.models.storage import Bits, Rounding

BITS: tuple[Bits, ...] = (4, 5, 6, 8)
DRIVER = Path(__file__).parent / "native" / "driver.c"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
FLAGS = ("-O1", "-g1", "-std=gnu11", "-pthread", "-Wno-psabi")


class Call(ctypes.Structure):
    """driver.c's struct of that name."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("cache_floats", "told_cache_floats", "scratch_floats")),
        *((name, ctypes.c_int64) for name in ("told_scratch_floats", "logits", "lengths", "tokens")),
        *((name, ctypes.c_int32) for name in ("batch", "capacity", "places", "count", "threads", "fresh")),
    ]  # fmt: skip


@dataclass
class Case:
    """One model and its calls. spoil: changes its structs, (model, blocks), before they are written."""

    model: NativeTransformer
    spoil: Callable[[Any, Any], None] = lambda model, blocks: None
    calls: list[bytes] = field(default_factory=list)

    def call(
        self, tokens: Tensor, lengths: list[int], room: int, workers: int = 1, fresh: bool = False, **told: int
    ) -> None:
        """A forward of tokens (batch, count) at the rows' lengths. room: how many tokens a row of the cache can hold.
        fresh: the cache is a new one. told: fields of Call with other values than the true ones."""
        model, (batch, count) = self.model, tokens.shape
        places, head_size = (-(-size // model._lanes) * model._lanes for size in (room, model.shape.head_size))
        floats = model.shape.layers * batch * model.shape.kv_heads * places * head_size
        scratch = model._library.sybil_scratch(model._address, batch * count, room)
        fields = {
            "cache_floats": floats,
            "told_cache_floats": floats,
            "scratch_floats": scratch,
            "told_scratch_floats": scratch,
            "logits": batch * count * model.vocab_size,
            "lengths": batch,
            "tokens": batch * count,
            "batch": batch,
            "capacity": room,
            "places": places,
            "count": count,
            "threads": workers,
            "fresh": int(fresh),
        }
        numbers = struct.pack(f"{batch + batch * count}q", *lengths, *tokens.flatten().tolist())
        self.calls.append(bytes(Call(**fields | told)) + numbers)

    def written(self) -> bytes:
        model = self.model
        model._rotations.reach(model.context)
        tensors = [*model._floats.values(), *(table for pair in model._rotations._tables.values() for table in pair)]
        tensors += [each for packed in model._products.values() for part in packed.parts for each in part.tensors]
        places = {tensor.data_ptr(): index for index, tensor in enumerate(tensors, start=1)}
        copy = structs.ModelStruct.from_buffer_copy(model._model)
        blocks = (structs.BlockStruct * len(model._blocks)).from_buffer_copy(model._blocks)
        self.spoil(copy, blocks)
        for each in (copy, *blocks):
            number_arrays(each, places)
        arrays = [tensor.view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]
        parts = [struct.pack("q", len(arrays))]
        for array in arrays:
            parts += [struct.pack("q", len(array)), array]
        parts += [bytes(copy), struct.pack("q", len(blocks)), bytes(blocks), struct.pack("q", len(self.calls))]
        return b"".join([*parts, *self.calls])


def number_arrays(each: Any, places: dict[int, int]) -> None:
    """Replace every address in a struct by the number of its array."""
    for name, kind in each._fields_:
        if kind is ctypes.c_void_p:
            value = getattr(each, name)
            setattr(each, name, places[value] if value else None)
        elif issubclass(kind, ctypes.Array):
            for part in getattr(each, name):
                number_arrays(part, places)
        elif issubclass(kind, structs.Struct):
            number_arrays(getattr(each, name), places)


@dataclass(frozen=True)
class Answer:
    """The answer to a call, or to a model as a whole: the reason of a refusal, or ''; and the logits, flat."""

    refusal: str
    logits: Tensor


def build(folder: Path, *flags: str, source: Path = compiler.SOURCE.parent) -> Path:
    """Build the driver and the sources of a folder for this processor, with the sanitizers."""
    return build_by(compiler.command(), folder / "driver", "-march=native", *SANITIZERS, *flags, source=source)


def build_by(command: Sequence[str], made: Path, *flags: str, source: Path = compiler.SOURCE.parent) -> Path:
    arguments = [*command, *FLAGS, *flags, f"-I{source}", str(DRIVER), "-o", str(made), "-lm"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr}"
    return made


def instrumented() -> dict[str, str]:
    """The environment of a Python process whose C forward is built with the sanitizers. Their runtime must be loaded
    before Python, together with C++'s runtime, whose exceptions it intercepts."""

    def found(*names: str) -> str:
        said = [
            subprocess.run([*compiler.command(), f"-print-file-name={name}"], capture_output=True) for name in names
        ]
        paths = [Path(each.stdout.decode().strip()) for each in said]
        return next(str(path) for path in paths if path.is_absolute() and path.exists())

    runtime = found("libclang_rt.asan.so", f"libclang_rt.asan-{platform.machine()}.so", "libasan.so")  # clang has both
    shared = ("-shared-libasan",) if "libclang" in runtime else ()
    return {
        **os.environ,
        "LD_PRELOAD": f"{runtime} {found('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "SYBIL_CFLAGS": shlex.join([*FLAGS[:2], *SANITIZERS, *shared]),
        "OMP_NUM_THREADS": "1",
    }


def run(driver: Path, cases: Sequence[Case], *emulator: str) -> tuple[list[Answer], str]:
    """For each case the answer of the model and the answers of its calls, and a sanitizer's report or ''. A report ends
    the run."""
    written = struct.pack("q", len(cases)) + b"".join(case.written() for case in cases)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run([*emulator, driver], input=written, capture_output=True, env=environment)
    said = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0 or said, f"the driver ended with {done.returncode}"
    return [] if said else list(answers(done.stdout)), said


def answers(printed: bytes) -> Iterator[Answer]:
    at = 0
    while at < len(printed):
        (size,) = struct.unpack_from("q", printed, at)
        refusal = printed[at + 8 : at + 8 + size].decode()
        (floats,) = struct.unpack_from("q", printed, at + 8 + size)
        at += 16 + size
        yield Answer(
            refusal, torch.frombuffer(bytearray(printed[at : at + 4 * floats] or b"\0" * 4), dtype=torch.float32)
        )
        at += 4 * floats


def random_attention(chance: random.Random, head_size: int) -> Attention:
    rotated = chance.randint(0, head_size // 2)
    rotary = Rotary(2 * rotated, tuple(chance.uniform(0.01, 1) for _ in range(rotated))) if rotated else None
    return Attention(rotary, chance.choice((None, 1, 3, 40)))


def random_shape(chance: random.Random) -> Shape:
    """A random shape: of some family, or of none."""
    kv_heads, group, head_size = chance.randint(1, 3), chance.randint(1, 3), chance.choice((1, 2, 3, 8, 9, 16, 17, 20))
    width = chance.choice((1, 5, 16, 23, 32, 40, 64, 256))
    normed, parallel, layers = chance.choice(("input", "output", "both", "sum")), False, chance.randint(1, 3)
    if normed == "input":
        parallel = chance.random() < 0.4
    kinds = [random_attention(chance, head_size) for _ in range(2)]
    return Shape(
        vocab_size=chance.randint(2, 70),
        context=chance.randint(4, 30),
        layers=layers,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_size=head_size,
        width=width,
        embedding_width=chance.choice((width, width + 3, width + 32)),
        inner=chance.choice((1, 7, 48, 50, 96, 100, 512)),
        activation=chance.choice(("none", "gelu_tanh", "gelu", "relu", "silu")),
        gated=chance.random() < 0.5,
        norm=chance.choice(("layer", "rms")),
        epsilon=1e-5,
        normed=normed,
        parallel=parallel,
        final_norm=chance.random() < 0.7,
        position_offset=chance.choice((None, 0, 2)),
        attentions=tuple(chance.choice(kinds) for _ in range(layers)),
        query_key_norm=chance.choice(("none", "head", "whole")),
        attention_cap=chance.choice((0.0, 0.0, 3.0)),
        embedding_scale=chance.choice((1.0, 3.5)),
        residual_scale=1.0 if parallel else chance.choice((1.0, 0.3)),
        logit_divisor=chance.choice((1.0, 7.0)),
        logit_cap=chance.choice((0.0, 2.0)),
        tied_head=chance.random() < 0.5,
    )


def random_rounding(shape: Shape, chance: random.Random) -> Rounding:
    """A random rounding, with other bits for some products."""
    names = (
        "token_embedding",
        "head",
        *(f"{layer}.{name}" for layer in range(shape.layers) for name in BLOCK_PRODUCTS),
    )
    few = chance.sample(names, len(names) // 3)
    return Rounding(chance.choice(BITS), {name: chance.choice(BITS) for name in few})


def random_case(seed: int, lanes: int) -> tuple[Case, list[Tensor]]:
    """A random model, its tokens fed in random parts into a cache of random room, and the logits of each part."""
    chance = random.Random(seed)
    shape, storage = random_shape(chance), chance.choice(("float32", "bfloat16", "rounded", "stored", "stored"))
    weights = Lying(shape, seed=seed) if storage == "stored" else random_weights(shape, seed)
    kept = random_rounding(shape, chance) if storage == "rounded" else storage
    return cut_case(NativeTransformer(shape, weights, kept, 1, lanes), chance)


def cut_case(model: NativeTransformer, chance: random.Random) -> tuple[Case, list[Tensor]]:
    case, wanted = Case(model), []
    batch, count = chance.choice((1, 1, 2, 3)), chance.choice((1, 4, 9, 17, 30))
    tokens = torch.tensor([[chance.randrange(model.vocab_size) for _ in range(count)] for _ in range(batch)])
    capacity = chance.choice((count, count + 1, count + 9))
    cache, done, fresh = model.new_cache(batch, capacity), 0, True
    while done < count:
        size = min(chance.choice((1, 1, 2, 5, 30)), count - done)
        part = tokens[:, done : done + size]
        held = cache.lengths.tolist()
        cache.lengths = torch.tensor([max(length - chance.randint(0, 2), 0) for length in held])  # some rolled back
        case.call(part, cache.lengths.tolist(), capacity, chance.randint(1, 3), fresh)
        wanted.append(model.forward(part, cache).flatten())
        done, fresh = done + size, False
    return case, wanted
