"""The exact values of the numbers in docs/theory.md, section by section in reading order, from Sybil's own
functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import accumulate, pairwise
from operator import mul
from pathlib import Path

import torch
from proof import Problem, accepted, cells, steps_of
from reading import tables
from torch import Tensor

from sybil.measuring.workload import SHAPES
from sybil.models import rounding
from sybil.models.storage import Bits
from sybil.residual import Residual
from sybil.sampling import race
from sybil.transfer import native
from sybil.verification import RULES
from tools.theory import costs, example, figures
from tools.theory.costs import CORES, GPT2, GTX_FLOAT16, GTX_FLOAT32, LLAMA_7B, MEDIUM
from tools.theory.example import DRAFT, PROPOSAL, TARGET, WORDS, row

PERFORMANCE = (Path(__file__).parents[1] / "docs" / "performance.md").read_text()
GAMMA = len(PROPOSAL)


def problem(gamma: int = GAMMA, stops: frozenset[int] = frozenset(), certain: bool = False) -> Problem:
    """The worked example for proof.py. A node is a prefix, of which both models see only the last word."""
    last = [WORDS.index(example.PROMPT)]
    for depth in range(1, gamma + 1):
        last += [word for _ in range(len(WORDS) ** (depth - 1)) for word in range(len(WORDS))]
    return Problem(gamma, TARGET[last], None if certain else DRAFT[last], stops)


@cache
def kept_at_least(rule: str, gamma: int = GAMMA) -> list[float]:
    """s_0 to s_gamma of the example by the shipped rule, summed over all proposals and all noise."""
    if rule == "coupled":
        together = torch.stack([both_draw(*pair) for pair in zip(TARGET, DRAFT, strict=True)])
        place = torch.eye(len(WORDS), dtype=torch.float64)[WORDS.index(example.PROMPT)]
        return [1.0, *(float((place := place @ together).sum()) for _ in range(gamma))]
    proposals, weights = zip(*problem(gamma).proposals(), strict=True)
    proposed, found = problem(gamma).proposed(list(proposals)), torch.zeros(gamma + 1, dtype=torch.float64)
    for share, noise in cells(steps_of(RULES[rule], proposed)):
        mass = share * torch.tensor(weights, dtype=torch.float64)
        kept = accepted(RULES[rule], proposed, noise)
        found += torch.stack([mass[kept >= count].sum() for count in range(gamma + 1)])
    return found.tolist()


def both_draw(target: Tensor, draft: Tensor) -> Tensor:
    """(words,): the probability that two races with the same exponentials are both won by that word.

    With the word's own exponential at 1, another word loses both races if its own is above some number, which is asked
    of race() itself, by bisection; all others do with probability 1 / (1 + the sum of these numbers)."""
    found = torch.zeros_like(target)
    for word in range(len(target)):
        others = torch.tensor([other for other in range(len(target)) if other != word])
        if target[word] * draft[word] == 0:
            continue
        low, high = torch.zeros(len(others)).double(), torch.full((len(others),), 1e6).double()
        for _ in range(70):
            middle = (low + high) / 2
            exponentials = torch.full((len(others), len(target)), 1e9, dtype=torch.float64)
            exponentials[:, word] = 1.0
            exponentials.scatter_(1, others[:, None], middle[:, None])
            wins = (race(target, exponentials) == word) & (race(draft, exponentials) == word)
            low, high = torch.where(wins, low, middle), torch.where(wins, middle, high)
        found[word] = 1 / (1 + high.sum())
    return found


def left(word: str, weight: float = 1.0) -> Tensor:
    """What remains of weight times the target's distribution after a word when the draft's is taken away, (words,). The
    rules' own residual computes it."""
    target, draft = row(TARGET, word)[None, None], row(DRAFT, word)[None, None]
    nowhere = native(torch.zeros(1, dtype=torch.int64))
    at = nowhere, nowhere, native(torch.tensor([weight], dtype=torch.float64)), native(torch.tensor([True]))
    residual = Residual(target, draft, torch.zeros(1, 1, dtype=torch.int64), *at)
    share = (weight * target - draft)[0, 0].clamp(min=0)
    torch.testing.assert_close(residual.sums(), share.sum()[None], rtol=0, atol=1e-15)
    return share


def memory() -> Iterator[float]:
    yield from (2, 2, *map(costs.intensity, ("float32", "float16", "q4_0")), 8 * costs.bytes_a_weight("q4_0"))
    for machine in (GTX_FLOAT32, GTX_FLOAT16, CORES):
        yield from (machine.bandwidth / 1e9, machine.operations / 1e9, machine.ridge)
    yield from (costs.GPU_UNITS, costs.GPU_MEGAHERTZ, costs.GPU_LINES, costs.GPU_GBITS)
    for model, storage in (
        *((MEDIUM, storage) for storage in ("float32", "float16", "q4_0")),
        *((LLAMA_7B, storage) for storage in ("float16", "q4_0")),
    ):
        yield model.read * costs.bytes_a_weight(storage) / 1e9
        for machine in (costs.on_gpu(storage), CORES):
            yield 1e3 * costs.reading(model, storage, machine)
            yield 1e3 * costs.computing(model, machine)
    yield from (LLAMA_7B.parameters / 1e9, costs.GTX_1650_MEMORY / 2**30)
    yield costs.reading(MEDIUM, "float16", GTX_FLOAT16) / costs.computing(MEDIUM, GTX_FLOAT16)
    yield costs.reading(MEDIUM, "float32", CORES) / costs.computing(MEDIUM, CORES)
    for storage in ("float32", "float16", "q4_0"):
        yield from (costs.free_tokens(storage, costs.on_gpu(storage)), costs.free_tokens(storage, CORES))
    yield from figures.COVERED
    for tokens, measured in flat().items():
        yield tokens
        for storage, found in zip(("float32", "bfloat16"), measured, strict=True):
            whole, one = (costs.forward(MEDIUM, storage, CORES, n) for n in (tokens, 1))
            yield from (whole / one, found)
    yield from (costs.cache_bytes(MEDIUM) / 1e3, costs.cache_bytes(LLAMA_7B) / 1e3)
    for model, text in ((MEDIUM, 1024), (LLAMA_7B, 2048)):
        yield from (text * costs.cache_bytes(model) / 1e9, text)


def flat() -> dict[int, tuple[float, float]]:
    """By the number of tokens: the measured time over one token's, in float32 and bfloat16, from
    docs/performance.md."""
    title = "Verification is flat: `python -m benchmarks.engine flat`"
    _, *rows = tables(PERFORMANCE, title)[0]
    found = {}
    for tokens, *cells_of in rows:
        float32, bfloat16 = (float(cell.strip("* ").split()[0]) for cell in cells_of[:2])
        found[int(tokens.split()[0])] = float32, bfloat16
    return found


def by_hand() -> Iterator[float]:
    yield len(WORDS)
    yield from (*TARGET.flatten().tolist(), *DRAFT.flatten().tolist())
    yield GAMMA
    before = (example.PROMPT, *PROPOSAL)
    target, draft = (
        [float(row(models, last)[WORDS.index(word)]) for last, word in zip(before, PROPOSAL, strict=False)]
        for models in (TARGET, DRAFT)
    )
    ratios, uniforms = [t / d for t, d in zip(target, draft, strict=True)], example.UNIFORMS[0].tolist()
    for place in range(GAMMA):
        yield from (place + 1, target[place], draft[place], ratios[place], uniforms[place + 1])
    rest = left("cat")
    on, mat = (float(rest[WORDS.index(word)]) for word in ("on", "mat"))
    yield from (on, mat, on / (on + mat), mat / (on + mat), uniforms[0])
    verdict = RULES["token"](example.proposed(), example.UNIFORMS)
    yield int(verdict.accepted) + 1

    yield 1
    weight = 1.0
    for place, ratio in enumerate(ratios):
        weight = min(1.0, weight * ratio)
        yield from (place + 1, ratio, weight)
        if place + 1 < GAMMA:
            spare = float(left(PROPOSAL[place], weight).sum())
            yield from (spare, spare / (spare + 1 - weight))
        else:
            yield weight
        yield uniforms[place + 1]
    verdict = RULES["block"](example.proposed(), example.UNIFORMS)
    kept = int(verdict.accepted)
    yield from (kept, kept, uniforms[0], kept + 1)

    yield 1
    for place, last in enumerate((example.PROMPT, PROPOSAL[0])):
        exponentials = example.EXPONENTIALS[place]
        yield from (place + 1, *exponentials.tolist())
        for models in (DRAFT, TARGET):
            yield from (each for each in (exponentials / row(models, last)).tolist() if math.isfinite(each))
    kept = int(RULES["coupled"](example.proposed(), example.exponentials()).accepted)
    yield from (kept, kept + 1, kept + 1)

    yield from (len(WORDS) ** GAMMA, GAMMA, *range(GAMMA + 1))
    for rule in ("token", "block", "coupled"):
        least = [*kept_at_least(rule), 0.0]
        yield from (one - other for one, other in pairwise(least))
        yield sum(least)

    cat, replaced = target[0], float(left("cat").sum())
    on_after_cat, first = float(row(TARGET, "cat")[3]), float(left("the").sum())
    yield from (cat, on_after_cat, cat * on_after_cat)
    yield from (draft[0], float(row(DRAFT, "cat")[3]), replaced, on / replaced, 0.1 + on)
    yield from (draft[0], on_after_cat, draft[0] * on_after_cat)
    share = float(left("the")[1]) / first
    yield from (first, share, first, share, on_after_cat, first * share * on_after_cat)
    yield from (draft[0] * on_after_cat, first * share * on_after_cat, cat * on_after_cat)


def token_rule() -> Iterator[float]:
    yield 0
    target, draft, rest = row(TARGET, "cat"), row(DRAFT, "cat"), left("cat")
    both = target.minimum(draft)
    columns = torch.stack([draft, target, both, rest, rest, both + rest])
    yield from columns.T.flatten().tolist()
    yield from columns.sum(1).tolist()
    rejected = float(rest.sum())
    yield from (rejected, rejected)
    sat = WORDS.index("sat")
    yield from (both[sat], rejected, target[sat], both[sat] + rejected * target[sat], target[sat])
    # the draft's words after "the" below a threshold are left out
    target, draft, threshold = row(TARGET, "the"), row(DRAFT, "the"), 0.2
    dropped = float(draft[draft < threshold].sum())
    yield from (threshold, dropped, target[sat], dropped * target[sat], target[sat], dropped)


def greedy() -> Iterator[float]:
    yield from (1, 1, 0, 1, 0, 1, 0)


def certain() -> Iterator[float]:
    yield 1


def block_rule() -> Iterator[float]:
    yield from (0, 1, 1, 1, 0, 1)
    yield 100 * (sum(kept_at_least("block")) / sum(kept_at_least("token")) - 1)


def coupled_rule() -> Iterator[float]:
    yield from (1, 1, 0, 0, 1)
    for target, draft in zip(TARGET, DRAFT, strict=True):
        both = float(target.minimum(draft).sum())
        yield from (both, float(both_draw(target, draft).sum()), both / (2 - both))


def two_tokenizers() -> Iterator[float]:
    shared = [word for word in WORDS if word not in example.OTHER_WORD]
    target, own = row(TARGET, "the"), row(DRAFT, "the")
    inside = torch.tensor([word in shared for word in WORDS])
    drawn = torch.where(inside, own, 0.0) / own[inside].sum()
    for place, word in enumerate(WORDS):
        if word in shared:
            yield from (own[place], drawn[place], target[place], min(drawn[place], target[place]))
        else:
            yield own[place]
            yield from (drawn[place], target[place], min(drawn[place], target[place]))
    kept = float(drawn.minimum(target).sum())
    yield from (own.sum(), drawn.sum(), target.sum(), kept)
    yield from (float(target.minimum(own).sum()), kept, float(target[WORDS.index("mat")]))
    chances = list(accumulate(_certain_chances(), mul))
    yield from (len(chances), *chances, sum(chances), sum(kept_at_least("token")) - 1)


def _certain_chances() -> list[float]:
    """For each word of the proposal, how often the token rule keeps it if the draft gives no probabilities."""
    steps = steps_of(RULES["token"], example.proposed(certain=True))
    return steps[0].tolist()


def fewer_bits() -> Iterator[float]:
    yield from (4, 8, 1, 1, 0)
    for spread in (0.1, 0.5, 1, 2):
        yield from (spread, 1 - math.tanh(spread / 4))
    every: tuple[Bits, ...] = (4, 5, 6, 8)
    spare = {8 * rounding.block_bytes(bits) / rounding.BLOCK - bits for bits in every}
    assert len(spare) == 1
    yield from (rounding.BLOCK, 16, *spare)
    measured = copies()
    for bits in every:
        size = costs.copy_bytes(SHAPES["gpt2-medium"], bits)
        yield from (bits, size / 1e6, size / (4 * MEDIUM.read), rounding_error(bits), measured[bits])
    yield GAMMA


def rounding_error(bits: Bits) -> float:
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    back = rounding.decoded(rounding.rounded(weight, bits), bits, weight.shape[1])
    return float((weight - back).double().square().mean().sqrt())


def copies() -> dict[int, float]:
    """By bits: the acceptance rate of the embedded pair's copies at gamma 4, from docs/performance.md."""
    found = {}
    for table in tables(PERFORMANCE, "Drafting without a second model"):
        if table[0][2:3] == ["step, ms (target's: 2.87)"]:
            found = {int(cells_of[0]): float(cells_of[4].split(",")[0]) for cells_of in table[1:]}
    return found


def what_sets_it() -> Iterator[float]:
    steps, chances = (0.05, 0.1, 0.2, 0.35, 0.5), (0.5, 0.6, 0.7, 0.8, 0.9)
    yield from (costs.costs(0.1).verify[2] - 1, costs.costs(0.1).most, *steps)
    for chance in chances:
        yield chance
        for step in steps:
            yield from costs.best(chance, costs.costs(step))
    yield GPT2.read / MEDIUM.read
    yield from (costs.best(0.8, costs.costs(0.35))[0], 0.8, 8)
    yield costs.copy_bytes(SHAPES["gpt2"], 8) / (4 * MEDIUM.read)
    yield 1
    yield from (0.8, 1 / (1 - 0.8), 0.1, 1 / 0.1)
    yield 0.8
    for most in (1, 4, 8):
        yield from (costs.rate(0.8, most), most)


def when_it_hurts() -> Iterator[float]:
    yield from (0.5, 0.5, costs.costs(0.5).verify[2] - 1)
    found = costs.speed_ups(0.6, costs.costs(0.2))
    yield from (0.6, 0.2, 2, found[2], 16, found[16], 16, sum(costs.survivals(0.6, 16)))
    yield costs.free_tokens("q4_0", CORES)
    yield from (5, 1, 0.8, 0.1, 4)
    yield from (5, 1, 4, figures.TEXT, 5, 1, 4)
    for rows in (1, 4, 8, 16, 32):
        short, long = (costs.Batch(rows, text, 0.1) for text in (0, figures.TEXT))
        yield from (rows, costs.flat(short, 5), costs.speed_ups(0.8, short)[4], *costs.best(0.8, short))
        yield from (costs.flat(long, 5), costs.speed_ups(0.8, long)[4])
    yield from (32, figures.TEXT, 32 * figures.TEXT * costs.cache_bytes(MEDIUM) / 1e9)
    yield MEDIUM.read * costs.bytes_a_weight("float16") / 1e9


EXACT: Mapping[str, Callable[[], Iterator[float]]] = {
    "Why decoding is bound by memory": memory,
    "One round by hand": by_hand,
    "Greedy decoding": greedy,
    "Sampling by the token rule": token_rule,
    "A proposal that is certain": certain,
    "The block rule": block_rule,
    "The coupled rule": coupled_rule,
    "Two tokenizers": two_tokenizers,
    "Drafts in fewer bits": fewer_bits,
    "What sets the speed-up": what_sets_it,
    "When speculation hurts": when_it_hurts,
}
