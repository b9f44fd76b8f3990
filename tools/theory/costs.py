"""The cost of a forward by the rates of a machine, and the speed-up of speculation at given costs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from sybil.drafting.auto import MOST, longest_that_pay
from sybil.drafting.costs import STEP, SizedCosts
from sybil.measuring.workload import SHAPES, RandomModel
from sybil.models.checkpoints.families import understand
from sybil.models.copies import HEAD
from sybil.models.rounding import row_bytes
from sybil.models.storage import BLOCKS, FORMATS, Bits


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine: the bytes that it reads and the operations that it does in a second."""

    name: str
    bandwidth: float
    operations: float

    @property
    def ridge(self) -> float:
        """The operations for each byte from which on arithmetic is the bottleneck, and not memory."""
        return self.operations / self.bandwidth


GPU_UNITS, GPU_MEGAHERTZ = 896, 1665
GPU_LINES, GPU_GBITS = 128, 8
GTX_1650_MEMORY = 4 * 2**30
CORES_GB, CORES_FUSED = 25.3, 34
"""Measured by `python -m benchmarks.engine`: GB a second, and thousand million fused products and sums a core and
second; docs/performance.md has both."""

_GPU = 2.0 * GPU_UNITS * GPU_MEGAHERTZ * 1e6
GTX_FLOAT32 = Machine("GTX 1650, float32", GPU_LINES * GPU_GBITS / 8 * 1e9, _GPU)
GTX_FLOAT16 = Machine("GTX 1650, float16", GPU_LINES * GPU_GBITS / 8 * 1e9, 2 * _GPU)
CORES = Machine("two cores", CORES_GB * 1e9, 2 * 2 * CORES_FUSED * 1e9)


@dataclass(frozen=True, slots=True)
class Sized:
    """The numbers of a model that its costs depend on. read: the weights that a forward reads; tables of which a token
    takes one row aren't among them. queries, keys: how many numbers one token's queries, and its keys, have in a
    layer."""

    parameters: int
    read: int
    layers: int
    queries: int
    keys: int


def sized(model: RandomModel) -> Sized:
    shape, parameters = understand(model.config)[1], model.parameters
    positions = 0 if shape.position_offset is None else (shape.context + shape.position_offset) * shape.width
    embedding = 0 if shape.tied_head else shape.vocab_size * shape.embedding_width
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    return Sized(parameters, parameters - positions - embedding, shape.layers, queries, keys)


GPT2, MEDIUM = sized(SHAPES["gpt2"]), sized(SHAPES["gpt2-medium"])
LLAMA_7B = sized(
    RandomModel(
        "llama-7b",
        {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
    )
)


def on_gpu(storage: str) -> Machine:
    """The GTX 1650, computing with weights in a storage. It computes in float16, unless the weights are float32."""
    return GTX_FLOAT32 if storage == "float32" else GTX_FLOAT16


def bytes_a_weight(storage: str) -> float:
    if storage in BLOCKS:
        inputs, taken = BLOCKS[storage]  # type: ignore[index]
        return taken / inputs
    return float(FORMATS[storage].nbytes(1, 1))  # type: ignore[index]


def cache_bytes(model: Sized, storage: str = "float16") -> float:
    """The bytes of one token's keys and values."""
    return 2 * model.layers * model.keys * bytes_a_weight(storage)


def intensity(storage: str, tokens: int = 1) -> float:
    """Operations for each byte of weights that is read."""
    return 2 * tokens / bytes_a_weight(storage)


def reading(model: Sized, storage: str, machine: Machine, rows: int = 1, text: int = 0) -> float:
    """Seconds to read the weights once, and the KV caches of `rows` rows with `text` tokens each."""
    return (model.read * bytes_a_weight(storage) + rows * text * cache_bytes(model)) / machine.bandwidth


def computing(model: Sized, machine: Machine, tokens: int = 1, text: int = 0) -> float:
    """Seconds of arithmetic. For each key in the text, a token's attention does one multiplication and one addition for
    each number of its queries, and as many for each value."""
    attention = 4 * model.layers * model.queries * text
    return tokens * (2 * model.read + attention) / machine.operations


def forward(model: Sized, storage: str, machine: Machine, tokens: int = 1, rows: int = 1, text: int = 0) -> float:
    """Seconds of a forward over `tokens` tokens of each row: the time to read or the time to compute, whichever is
    larger."""
    return max(reading(model, storage, machine, rows, text), computing(model, machine, rows * tokens, text))


def free_tokens(storage: str, machine: Machine) -> float:
    """How many tokens a forward can process in the time of one token."""
    return machine.ridge / intensity(storage)


def copy_bytes(model: RandomModel, bits: Bits) -> int:
    """The bytes of a copy with `bits` bits, as copies.py rounds it: products in blocks, the head in more bits, the rest
    in float32."""
    family, shape = understand(model.config)
    head = "token_embedding" if shape.tied_head else "head.weight"
    total = 0
    for name, source in family.sources(model.config, shape, "", "embedding", "head"):
        if name == "position_embedding" or (name == "token_embedding" and name != head):
            continue  # a token reads only one row of it
        outputs, *inputs = source.size
        total += outputs * row_bytes(HEAD[bits] if name == head else bits, *inputs) if inputs else 4 * outputs
    return total


def survivals(kept: float, most: int) -> list[float]:
    """s_1 to s_most, if each token is kept with the same probability."""
    return list(accumulate([kept] * most, mul))


def costs(step: float) -> SizedCosts:
    """Sybil's costs by sizes. step: the time of a draft's token, as a share of the target's forward over one token."""
    return SizedCosts(MOST, 100, [round(100 * (step - STEP))])


def speed_ups(kept: float, costs: SizedCosts) -> list[float]:
    """The speed-ups with 0, 1, 2, ... proposed tokens. costs: in any unit."""
    emitted = accumulate([1.0, *survivals(kept, costs.most)])
    verify, draft = costs.verify, costs.draft[0]
    return [each * verify[1] / (draft[k] + verify[k + 1]) for k, each in enumerate(emitted)]


def best(kept: float, costs: SizedCosts) -> tuple[float, int]:
    """The greatest speed-up, and the number of proposed tokens at which it is reached, as gamma="auto" finds it."""
    expected = list(accumulate([0.0, *survivals(kept, costs.most)]))
    k = longest_that_pay({0: [expected]}, 1, costs)[0]
    return speed_ups(kept, costs)[k], k


class Batch(SizedCosts):
    """Costs in seconds of GPT-2 Medium in float16 on a GTX 1650, with a draft whose token takes a share of the target's
    step."""

    def __init__(self, rows: int, text: int, step: float) -> None:
        super().__init__(MOST, 100, [0])
        self._verify_table = [forward(MEDIUM, "float16", GTX_FLOAT16, tokens, rows, text) for tokens in range(MOST + 2)]
        self._draft_tables = [[k * step * self._verify_table[1] for k in range(MOST + 1)]]


def flat(costs: SizedCosts, tokens: int) -> float:
    """The time of a forward over `tokens` tokens, divided by the time of a forward over one."""
    return costs.verify[tokens] / costs.verify[1]


def rate(kept: float, most: int) -> float:
    """The acceptance rate: kept tokens divided by proposed ones."""
    return sum(survivals(kept, most)) / most
