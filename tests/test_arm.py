"""The C forward on Arm, by emulation: built for aarch64 and run under qemu it says what it says on x86, bit for bit.

`nox -s arm`, on x86, with Debian's gcc-aarch64-linux-gnu and qemu-user. An emulator shows that the code is right there
and what its numbers are; not how fast it is, nor what an Arm processor's memory, which is weaker ordered than the one
that emulates it, makes of threads.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from lying import Lying
from sanitizing import Case, build_by, cut_case, random_case, run
from shapes import SHAPES, assert_same_bits, random_weights
from torch import Tensor

from sybil.models.native import STORAGES, NativeTransformer, library
from sybil.models.storage import BLOCKS, BlockStorage, Kept, Rounding

pytestmark = pytest.mark.arm

LANES = 4
"""Floats in a vector of both: Arm's own width."""
FLAGS = ("-O3", "-ffp-contract=fast", "-static", "-Wall", "-Wextra", "-Werror", f"-DLANES={LANES}")


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For x86 and for Arm, by compilers of one make: another may fuse other products and sums."""
    assert library.load() is not None, "there is no C compiler here, or SYBIL_NATIVE is 0"
    folder = tmp_path_factory.mktemp("arm")
    x86 = build_by(["gcc"], folder / "x86", "-march=x86-64-v3", *FLAGS)
    return x86, build_by(["aarch64-linux-gnu-gcc"], folder / "arm", "-march=armv8-a", *FLAGS)


def logits(driver: Path, cases: list[Case], *emulator: str) -> list[Tensor]:
    found, said = run(driver, cases, *emulator)
    assert said == ""
    assert not any(answer.refusal for answer in found)
    return [answer.logits for answer in found]


def compare(drivers: tuple[Path, Path], cases: list[Case]) -> None:
    x86, arm = drivers
    wanted, found = logits(x86, cases), logits(arm, cases, "qemu-aarch64")
    assert len(wanted) == sum(1 + len(case.calls) for case in cases)
    for one, other in zip(found, wanted, strict=True):
        assert_same_bits(one, other)


def test_random_models_have_the_same_bits(drivers: tuple[Path, Path]) -> None:
    """Of every kind of shape and storage, by one to three threads."""
    compare(drivers, [random_case(seed, LANES)[0] for seed in range(150)])


@pytest.mark.parametrize("storage", [*STORAGES, *map(Rounding, (4, 5, 6, 8))], ids=str)
def test_models_of_every_family_have_the_same_bits(storage: Kept, drivers: tuple[Path, Path]) -> None:
    chance = random.Random(0)
    models = [NativeTransformer(shape, random_weights(shape), storage, 1, LANES) for shape in SHAPES.values()]
    compare(drivers, [cut_case(model, chance)[0] for model in models for _ in range(3)])


@pytest.mark.parametrize("storage", BLOCKS)
def test_blocks_of_every_format_have_the_same_bits(storage: BlockStorage, drivers: tuple[Path, Path]) -> None:
    chance, width = random.Random(0), max(96, BLOCKS[storage][0])
    shape = replace(SHAPES["qwen3, windowed"], width=width, embedding_width=width, inner=2 * width)
    models = [NativeTransformer(shape, Lying(shape, (storage,), seed), "stored", 1, LANES) for seed in range(3)]
    assert all({part.storage for part in each._products["head"].parts} for each in models)
    compare(drivers, [cut_case(model, chance)[0] for model in models for _ in range(2)])


def test_the_check_sees_a_last_bit(drivers: tuple[Path, Path], tmp_path: Path) -> None:
    """Products and sums that aren't fused round once more."""
    x86 = build_by(["gcc"], tmp_path / "x86", "-march=x86-64-v3", *FLAGS, "-ffp-contract=off")
    with pytest.raises(AssertionError):
        compare((x86, drivers[1]), [random_case(seed, LANES)[0] for seed in range(10)])
