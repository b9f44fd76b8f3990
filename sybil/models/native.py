"""The forward in one call on a CPU: native.c, built once by the machine's C compiler and kept.

A step of a small model is 12 operators a layer, each found cold in the caches after the weights have streamed
through them; together they cost more than the weights. In C they cost nothing, the weights run at the memory's
bandwidth, and the order of every sum is ours: a token's logits have the same bits whatever is verified beside it.
Without a compiler everything goes through Transformer instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import mmap
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sybil.errors import UnsupportedModel
from sybil.models.linear import quantise
from sybil.models.shape import Shape

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")
ONE_THREAD_BYTES = 1 << 20
PREFILL_ROWS = 256
STORAGES = (torch.float32, torch.bfloat16, torch.int8)
_ACTIVATIONS = ("none", "gelu_tanh", "gelu", "relu", "silu")
_NORMS = ("layer", "rms")
_BLOCK_NORMS = ("attention_norm", "mlp_norm", "query_norm", "key_norm")
_BLOCK_PRODUCTS = ("query_key_value", "attention_out", "mlp_in", "mlp_out")
_NUMBERS = (
    *("vocab_size", "context", "layers", "heads", "kv_heads", "head_size", "width", "inner"),
    *("activation", "gated", "norm", "post_norm", "parallel", "window", "rotary_size", "position_offset"),
)


class _Product(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("storage", ctypes.c_int32),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Block(ctypes.Structure):
    _fields_ = [*((name, _Norm) for name in _BLOCK_NORMS), *((name, _Product) for name in _BLOCK_PRODUCTS)]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in _NUMBERS),
        ("epsilon", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
        ("blocks", ctypes.POINTER(_Block)),
        ("final_norm", _Norm),
        *((name, _Product) for name in ("token_embedding", "head", "project_in", "project_out")),
        *((name, ctypes.c_void_p) for name in ("positions", "cosines", "sines")),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("batch", ctypes.c_int32),
        ("capacity", ctypes.c_int32),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled native.c, or None where SYBIL_NATIVE=0 or no compiler will have it (a warning says why)."""
    if os.environ.get("SYBIL_NATIVE") == "0":
        return None
    command = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or "clang"]
    try:
        built = ctypes.CDLL(str(_build(command)))
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"{command[0]} doesn't build sybil's native.c ({told.strip().splitlines()[-1]}): decoding goes on at half "
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
    key = "\n".join([SOURCE.read_text(encoding="utf-8"), *FLAGS, *threads, *compiler, run("--version"), _processor()])
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


class _Arena:
    """Memory for weights in huge pages, where the system has them: a product reads through megabytes in one go."""

    CHUNK = 64 << 20

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)
        self.used = 0

    def take(self, source: Tensor) -> Tensor:
        """A copy of the tensor, contiguous and aligned to 64 bytes."""
        size = -(-source.nbytes // 64) * 64
        if size > len(self._free):
            if hasattr(mmap, "MADV_HUGEPAGE"):  # for private memory only
                chunk = mmap.mmap(-1, max(size, self.CHUNK), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                with contextlib.suppress(OSError):
                    chunk.madvise(mmap.MADV_HUGEPAGE)
            else:
                chunk = mmap.mmap(-1, max(size, self.CHUNK))
            self._free = torch.frombuffer(chunk, dtype=torch.uint8)
        place, self._free = self._free[: source.nbytes], self._free[size:]
        self.used += source.nbytes
        return place.view(source.dtype).view(source.shape).copy_(source)


class NativeCache:
    """Keys (layers, batch, heads, head size, capacity) and values (..., capacity, head size), both in whole lanes;
    and the forward's working memory."""

    def __init__(self, shape: Shape, batch: int, capacity: int, lanes: int) -> None:
        capacity, head_size = (-(-size // lanes) * lanes for size in (capacity, shape.head_size))
        self.keys = torch.zeros(shape.layers, batch, shape.kv_heads, head_size, capacity)
        self.values = torch.zeros(shape.layers, batch, shape.kv_heads, capacity, head_size)
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        self.native = _Cache(self.keys.data_ptr(), self.values.data_ptr(), batch, capacity)
        self.nbytes = self.keys.nbytes + self.values.nbytes
        self.address, self.batch, self.capacity = ctypes.addressof(self.native), batch, capacity
        self.scratch, self.scratch_address, self.rows = torch.empty(0), 0, 0

    def make_room(self, rows: int, floats: int) -> None:
        """Working memory for calls of so many rows."""
        self.scratch, self.rows = torch.empty(floats), rows
        self.scratch_address = self.scratch.data_ptr()


class NativeTransformer:
    """Transformer's contract and arguments, computed in float32 by native.c.

    storage: what the products' weights are kept in: float32, bfloat16, or int8 with a scale an output (for drafts).
    threads: how many compute; None is torch's number, or one for a model so small that two would wait for each other.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(
        self,
        shape: Shape,
        weights: Mapping[str, Tensor],
        storage: torch.dtype = torch.float32,
        threads: int | None = None,
    ) -> None:
        built = library()
        if built is None:
            raise UnsupportedModel("native.c isn't built here: install a C compiler, or load through Transformer")
        self.shape, self.vocab_size, self.context, self.storage = shape, shape.vocab_size, shape.context, storage
        self._library, self._lanes, self._panel = built, built.sybil_lanes(), built.sybil_panel()
        self._kept: list[object] = []
        self._arena = _Arena()
        token_embedding = self._product(weights, "token_embedding")  # the largest first, while little else is there
        head = token_embedding if shape.tied_head else self._product(weights, "head.weight")
        blocks = (_Block * shape.layers)()
        for layer in range(shape.layers):
            for name in _BLOCK_NORMS:
                setattr(blocks[layer], name, self._norm(weights, f"{layer}.{name}"))
            for name in _BLOCK_PRODUCTS:
                setattr(blocks[layer], name, self._product(weights, f"{layer}.{name}"))
        rotary = shape.rotary
        cosines, sines = rotary.tables(shape.context) if rotary else (None, None)
        positions = weights["position_embedding"] if shape.position_offset is not None else None
        numbers = {name: getattr(shape, name, 0) or 0 for name in _NUMBERS}
        numbers |= {
            "activation": _ACTIVATIONS.index(shape.activation),
            "norm": _NORMS.index(shape.norm),
            "rotary_size": rotary.size if rotary else 0,
        }
        self._model = _Model(
            **numbers,
            epsilon=shape.epsilon,
            attention_scale=shape.attention_scale,
            blocks=blocks,
            final_norm=self._norm(weights, "final_norm"),
            token_embedding=token_embedding,
            head=head,
            project_in=self._product(weights, "project_in"),
            project_out=self._product(weights, "project_out"),
            positions=self._keep(positions),
            cosines=self._keep(cosines),
            sines=self._keep(sines),
        )
        self._address = ctypes.addressof(self._model)
        self.weight_bytes = self._arena.used
        small = self.weight_bytes < ONE_THREAD_BYTES
        self._threads = threads or (1 if small else torch.get_num_threads())

    def new_cache(self, batch: int, capacity: int) -> NativeCache:
        return NativeCache(self.shape, batch, capacity, self._lanes)

    def forward(self, tokens: Tensor, cache: NativeCache) -> Tensor:
        """tokens (B, n) -> logits (B, n, vocab) float32; writes the tokens at each row's length, advances it by n."""
        logits = torch.empty(*tokens.shape, self.vocab_size)
        self._run(tokens, cache, logits.data_ptr())
        return logits

    def prefill(self, tokens: Tensor, cache: NativeCache) -> None:
        """forward() without the logits, some tokens at a time."""
        for part in torch.split(tokens, max(1, PREFILL_ROWS // len(tokens)), 1):
            self._run(part, cache, None)

    def _run(self, tokens: Tensor, cache: NativeCache, logits: int | None) -> None:
        (batch, count), lengths = tokens.shape, cache.lengths
        if tokens.dtype != torch.int64 or tokens.is_cuda or not tokens.is_contiguous():
            tokens = tokens.to("cpu", torch.int64).contiguous()
        if batch != cache.batch or lengths.shape != (batch,) or lengths.dtype != torch.int64:
            raise IndexError(f"tokens {(batch, count)}, lengths {lengths.tolist()}: the cache has {cache.batch} rows")
        rows = batch * count
        if not rows:
            return
        if rows > cache.rows:
            cache.make_room(rows, self._library.sybil_scratch(self._address, rows, cache.capacity, self._threads))
        done = self._library.sybil_forward(
            self._address,
            cache.address,
            tokens.data_ptr(),
            lengths.data_ptr(),
            count,
            logits,
            cache.scratch_address,
            self._threads,
        )
        if not done:
            raise IndexError(
                f"tokens {tokens.tolist()} at lengths {lengths.tolist()} don't fit a vocabulary of {self.vocab_size} "
                f"or a cache of {cache.capacity}"
            )
        cache.lengths = lengths + count

    def _keep(self, tensor: Tensor | None) -> int | None:
        """The address of a float32 copy that lives as long as the model."""
        if tensor is None:
            return None
        copy = self._arena.take(tensor.float())
        self._kept.append(copy)
        return copy.data_ptr()

    def _norm(self, weights: Mapping[str, Tensor], name: str) -> _Norm:
        return _Norm(*(self._keep(weights.get(f"{name}.{part}")) for part in ("weight", "bias")))

    def _product(self, weights: Mapping[str, Tensor], name: str) -> _Product:
        """A weight (outputs, inputs) as (panels, words, panel, inputs a word): native.c reads it front to back."""
        weight = weights.get(name if name in ("token_embedding", "head.weight") else f"{name}.weight")
        if weight is None:
            return _Product()
        outputs, inputs = weight.shape
        gated = self.shape.gated and name.endswith("mlp_in")

        def panels(tensor: Tensor) -> Tensor:
            """(outputs, ...) -> (panels, panel, ...), padded with zeros; gated: of gates and of values in turn."""
            parts = 2 if gated else 1
            each, rest = outputs // parts, tensor.shape[1:]
            padded = tensor.new_zeros(parts, -(-each // self._panel) * self._panel, *rest)
            padded[:, :each] = tensor.view(parts, each, *rest)
            return padded.view(parts, -1, self._panel, *rest).transpose(0, 1).flatten(0, 1)

        scale = None
        if self.storage == torch.int8:
            scale, weight = quantise(weight)
        per_word = 4 // self.storage.itemsize
        words = F.pad(weight.to(self.storage), (0, -inputs % per_word)).view(outputs, -1, per_word)
        packed = self._arena.take(panels(words).transpose(1, 2))
        self._kept.append(packed)
        bias = weights.get(f"{name}.bias")
        return _Product(
            packed.data_ptr(),
            None if scale is None else self._keep(panels(scale)),
            None if bias is None else self._keep(panels(bias)),
            inputs,
            outputs,
            STORAGES.index(self.storage),
        )
