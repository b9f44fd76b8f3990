"""The C forward as a library: the structs that cross into it, and what builds it once by the machine's compiler."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("forward.c")
SOURCES = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")
BLOCK_NORMS = ("attention_norm", "mlp_norm", "query_norm", "key_norm")
BLOCK_PRODUCTS = ("query_key_value", "attention_out", "mlp_in", "mlp_out")
NUMBERS = (
    *("vocab_size", "context", "layers", "heads", "kv_heads", "head_size", "width", "inner"),
    *("activation", "gated", "norm", "post_norm", "parallel", "window", "rotary_size", "position_offset"),
)


class Product(ctypes.Structure):
    """model.h's struct of that name."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("storage", ctypes.c_int32),
    ]


class Norm(ctypes.Structure):
    """model.h's struct of that name."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class Block(ctypes.Structure):
    """model.h's struct of that name."""

    _fields_ = [*((name, Norm) for name in BLOCK_NORMS), *((name, Product) for name in BLOCK_PRODUCTS)]


class Model(ctypes.Structure):
    """model.h's struct of that name."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in NUMBERS),
        ("epsilon", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
        ("blocks", ctypes.POINTER(Block)),
        ("final_norm", Norm),
        *((name, Product) for name in ("token_embedding", "head", "project_in", "project_out")),
        *((name, ctypes.c_void_p) for name in ("positions", "cosines", "sines")),
    ]


class Cache(ctypes.Structure):
    """model.h's struct of that name."""

    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("batch", ctypes.c_int32),
        ("capacity", ctypes.c_int32),
    ]


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled forward.c, or None where SYBIL_NATIVE=0 or no compiler will have it (a warning says why)."""
    if os.environ.get("SYBIL_NATIVE") == "0":
        return None
    command = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or "clang"]
    try:
        built = ctypes.CDLL(str(_build(command)))
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"{command[0]} doesn't build sybil's C forward ({told.strip().splitlines()[-1]}): decoding goes on at half "
            "the speed; install a C compiler, or set SYBIL_NATIVE=0 to be told no more",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    built.sybil_scratch.restype = ctypes.c_int64
    built.sybil_scratch.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3]
    built.sybil_forward.restype = ctypes.c_int32
    built.sybil_forward.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_int32, *[ctypes.c_void_p] * 2, ctypes.c_int32]
    return built


def _build(compiler: list[str]) -> Path:
    """The shared library for this source, compiler and processor; raises OSError or SubprocessError."""

    def run(*arguments: str) -> str:
        return subprocess.run([*compiler, *arguments], capture_output=True, check=True, text=True, timeout=120).stdout

    threads = _threading()
    sources = [each.read_text(encoding="utf-8") for each in SOURCES]
    key = "\n".join([*sources, *FLAGS, *threads, *compiler, run("--version"), _processor()])
    folder = _folder()
    target = folder / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "native.so"
            run(*FLAGS, "-o", str(made), str(SOURCE), *threads, "-lm")
            made.replace(target)
    return target


def _folder() -> Path:
    """Where what was built is kept; for this process alone where there is no such place."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sybil"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix="sybil-"))


def _threading() -> list[str]:
    """OpenMP by the very runtime that torch has loaded: two of them would fight for the cores. Raises OSError."""
    mapped = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text("utf-8").splitlines()}
    runtimes = sorted(path for path in mapped if re.search(r"/lib(?:gomp|iomp5|omp)[^/]*\.so[^/]*$", path))
    site = str(Path(torch.__file__).parents[1])
    runtimes.sort(key=lambda path: not path.startswith(site))  # another package may have brought one of its own
    if not runtimes:
        raise OSError("torch has loaded no OpenMP runtime to share its threads with")
    return ["-fopenmp", runtimes[0]]


def _processor() -> str:
    """What -march=native depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine() + platform.processor()
    return "\n".join(sorted(set(re.findall(r"^(?:model name|flags|Features)\s*:.*$", text, re.MULTILINE))))
