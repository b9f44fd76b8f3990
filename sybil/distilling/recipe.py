"""The settings of a distillation and the plan that it made from them, kept on disk so that a later run can continue."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sybil.arguments import integer, number
from sybil.errors import InvalidSetting, ResultsMismatch, told
from sybil.measuring import files

LAYERS, WIDTH, VOCABULARY = 64, 4096, 1 << 20  # the largest value of each
WINDOW, BUDGET = 256, 30.0
COMMONEST = 16384
SMALLEST = 32  # the fewest tokens that a draft may know
STEPS = 10_000_000
LONGEST = 14 * 24 * 60.0  # the largest budget, in minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The sizes of a draft and the settings of its training. 0 stands for a size that fits the target.

    vocabulary: tokens that the draft knows; one of them stands for all others. window: tokens of a training text, and
    how many tokens back the draft attends. answers: batches of the target's answers. steps: steps of the optimiser.
    Where answers or steps is None, the budget decides. budget: minutes. data, model: hashes of the data and of the
    target, by which a later run knows whether it continues the same distillation."""

    target: str
    layers: int = 0
    width: int = 0
    vocabulary: int = 0
    window: int = WINDOW
    answers: int | None = None
    steps: int | None = None
    budget: float = BUDGET
    seed: int = 0
    data: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidSetting for a setting that is out of range."""
        integer("layers", self.layers, 0, LAYERS)
        integer("width", self.width, 0, WIDTH)
        integer("vocabulary", self.vocabulary, 0, VOCABULARY)
        integer("window", self.window, 8, 1 << 15)
        integer("seed", self.seed, 0, 2**31 - 1)
        for name in ("answers", "steps"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1, STEPS)
        if not 0 < number("budget", self.budget) <= LONGEST:
            raise InvalidSetting(f"budget is {self.budget:g} minutes: use a number above 0, at most {LONGEST:g}")
        if self.width % 8:
            raise InvalidSetting(f"width is {self.width}: use a multiple of 64, or of 8 for a tiny draft")
        if 0 < self.vocabulary < SMALLEST:
            raise InvalidSetting(f"vocabulary is {self.vocabulary} tokens: use {SMALLEST} or more, or leave it out")

    def filled(self, layers: int, width: int, vocab_size: int, context: int) -> Recipe:
        """The recipe with its open sizes filled in for a target of these sizes: an eighth of the target's layers, and a
        little less than half its width. A forward of such a draft costs a few hundredths of one of the target."""
        known = min(self.vocabulary or COMMONEST, vocab_size)
        usual = min(max(round(0.45 * width / 64) * 64, 64), 512)
        return replace(
            self,
            layers=self.layers or max(layers // 8, 1),
            width=self.width or usual,
            vocabulary=known,
            window=min(self.window, context),
        )


DECIDING = ("answers", "steps", "budget")
"""Fields that may differ when a run continues an earlier one, because the plan has what was decided of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How much is done, decided once. answers, texts: batches. steps: None until it is known how long a step takes."""

    answers: int
    texts: int
    steps: int | None = None


def keep(recipe: Recipe, path: Path) -> None:
    """Write the recipe to path if no file is there. Raises ResultsMismatch if a recipe there differs in
    a field that isn't in DECIDING."""
    if not path.exists():
        files.replace(path, _written(recipe))
        return
    theirs = _read(path, Recipe)
    names = [
        each.name
        for each in fields(Recipe)
        if each.name not in DECIDING and getattr(theirs, each.name) != getattr(recipe, each.name)
    ]
    if names:
        had, wanted = (", ".join(f"{name} {getattr(each, name)!r}" for name in names) for each in (theirs, recipe))
        raise ResultsMismatch(
            f"{path.parent.parent} was begun with {had}, and this run asks for {wanted}: use the same, or another --out"
        )


def keep_plan(plan: TrainingPlan, path: Path) -> None:
    """Write the plan to path."""
    files.replace(path, _written(plan))


def planned(path: Path) -> TrainingPlan | None:
    """The plan of an earlier run, None if there is none. Raises ResultsMismatch for a file that holds no plan."""
    return _read(path, TrainingPlan) if path.exists() else None


def check_plan(plan: TrainingPlan, asked: Recipe, out: Path) -> None:
    """Raises ResultsMismatch where the recipe asks for other numbers of answers or steps than the plan has."""
    for name in ("answers", "steps"):
        planned, wanted = getattr(plan, name), getattr(asked, name)
        if None not in (planned, wanted) and planned != wanted:
            raise ResultsMismatch(
                f"{out} was planned with {name} {planned}, and this run asks for {wanted}: leave --{name} out, or use "
                "another --out"
            )


def _written(record: Recipe | TrainingPlan) -> bytes:
    return json.dumps(asdict(record), indent=1).encode() + b"\n"


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        record = kind(**json.loads(path.read_text(encoding="utf-8")))
        if kind is TrainingPlan:
            for name in ("answers", "texts", "steps"):
                if name != "steps" or record.steps is not None:
                    integer(name, getattr(record, name), 0, STEPS)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ResultsMismatch(f"{path} can't be gone on with ({told(error)}): name another --out") from None
    return record
