"""Makes a sweep's cells from its file: the product of its lists, with the baseline of each cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sybil.arguments import described
from sybil.devices import AUTO, choose_device, dtype_named, word_of
from sybil.drafts import has_model, is_model, parse
from sybil.errors import InvalidSetting
from sybil.measuring.prompts import Prompt, load, spread
from sybil.pairs import ENGLISH, canonical, pair
from sybil.sweeping.asked import ALL, PAIR, SweepConfig, asked
from sybil.sweeping.run import UNCACHED, RunConfig
from sybil.sweeping.sheet import Sheet, read

FILE = ".yaml"


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep's cells. name: the file's name without its ending. cells: the cells asked for and their baselines, each
    once, in the order of the file; a baseline comes before the first cell that needs it. left_out: the impossible
    combinations, and why."""

    name: str
    cells: tuple[RunConfig, ...]
    warm_ups: int
    seed: int
    left_out: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[tuple[RunConfig, ...], ...]:
        """The cells grouped by target. A target's cells are measured in turn while it is loaded."""
        found: dict[str, list[RunConfig]] = {}
        for cell in self.cells:
            found.setdefault(cell.pair, []).append(cell)
        return tuple(map(tuple, found.values()))

    @property
    def texts(self) -> int:
        """How many texts are decoded, without warm-ups."""
        return sum(cell.prompts * cell.repeats for cell in self.cells)


def shipped() -> dict[str, Path]:
    """The sweep files that ship with Sybil, by name."""
    folder = Path(str(resources.files("sybil.sweeping"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob(f"*{FILE}"))}


def plan(source: str | Path, *, elsewhere: bool = False) -> SweepPlan:
    """The cells of a file, or of a shipped file given by its name. elsewhere: whether the cells run on another machine,
    whose devices aren't known here. Raises InvalidSetting; the message names the line and the key."""
    path = shipped().get(str(source)) or Path(source)
    if not path.suffix and not path.exists():
        raise InvalidSetting(f"there is no sweep {str(source)!r}: name a YAML file, or one of {', '.join(shipped())}")
    sheet = read(path)
    wanted = asked(sheet, elsewhere)
    cells, left_out = _possible(sheet, wanted)
    return SweepPlan(path.stem, cells, wanted.warm_ups, wanted.seed, left_out)


def prompts_of(config: RunConfig) -> list[Prompt]:
    """The prompts that a cell decodes. They are the pair's own, or the English ones where the pair's own lack the
    domain. Raises InvalidSetting where there are too few."""
    own, english = load(shipped=pair(config.pair).prompts), load(shipped=ENGLISH)
    found = own if config.domain == ALL else [each for each in own if each.domain == config.domain]
    found = found or [each for each in english if each.domain == config.domain]
    if not found:
        known = ", ".join(dict.fromkeys(each.domain for each in (*own, *english)))
        raise InvalidSetting(f"there is no domain {described(config.domain)}: use {ALL}, {known}")
    if config.prompts > len(found):
        there = f"domain {config.domain} of {config.pair} has {len(found)}"
        raise InvalidSetting(f"prompts is {config.prompts} and {there}: lower prompts")
    return spread(found, config.prompts)


def draft_of(config: RunConfig) -> str:
    """The name of a cell's draft as sybil.load takes it. Raises InvalidSetting where the pair has no draft."""
    if config.drafter not in (PAIR, UNCACHED):
        return config.drafter
    chosen = pair(config.pair)
    if config.drafter == UNCACHED and (chosen.draft is None or not is_model(chosen.draft)):
        raise InvalidSetting(f"{UNCACHED} runs two models, and {config.pair} has no second one: use another drafter")
    name = chosen.draft or (chosen.best and chosen.best.draft)
    if not name:
        raise InvalidSetting(f"{config.pair} has no draft of its own: name a drafter, such as self")
    return name


def _possible(sheet: Sheet, wanted: SweepConfig) -> tuple[tuple[RunConfig, ...], tuple[str, ...]]:
    """(the cells and their baselines, the combinations left out and why). A drafter that some pairs can't have is left
    out for those pairs. Raises InvalidSetting for a drafter that no pair can have."""
    found: dict[RunConfig, None] = {}
    lacking: dict[tuple[str, str], InvalidSetting] = {}
    whole = set[tuple[str, str]]()  # pairs and domains that have enough prompts
    for cell in _product(wanted):
        try:
            cell = _settled(cell)
        except InvalidSetting as error:
            lacking[cell.pair, cell.drafter] = error
            continue
        if (cell.pair, cell.domain) not in whole:
            _check_prompts(sheet, wanted, cell)
            whole.add((cell.pair, cell.domain))
        found |= dict.fromkeys((cell.baseline, cell))
    for number, drafter in enumerate(wanted.drafters):
        without = [error for (_, name), error in lacking.items() if name == drafter]
        if len(without) == len(wanted.pairs):
            raise sheet.fault(("drafters", number), f"drafters: {without[0]}")
    if wanted.draft_dtype is not None and not any(cell.draft_dtype for cell in found):
        raise sheet.fault(("draft_dtype",), "draft_dtype is set and no drafter is a second model: leave it out")
    return tuple(found), tuple(map(str, lacking.values()))


def _product(wanted: SweepConfig) -> Iterator[RunConfig]:
    device = str(choose_device(AUTO)) if wanted.device == AUTO else wanted.device
    dtype, draft_dtype = _word(wanted.dtype), _word(wanted.draft_dtype)
    for name, drafter, rule, gamma, temperature, domain, batch in itertools.product(*wanted.lists):
        filters = (wanted.top_k, wanted.top_p, wanted.min_p) if temperature else (0, 1.0, 0.0)
        yield RunConfig(
            pair=canonical(name), drafter=drafter, rule=rule, gamma=gamma, window=wanted.window,
            temperature=temperature + 0.0, domain=domain, batch=batch, seed=wanted.seed, dtype=dtype,
            draft_dtype=draft_dtype, device=device, prompts=wanted.prompts, new_tokens=wanted.new_tokens,
            repeats=wanted.repeats, top_k=filters[0], top_p=filters[1], min_p=filters[2],
        )  # fmt: skip


def _settled(cell: RunConfig) -> RunConfig:
    """The cell without settings that have no effect in it. Raises InvalidSetting where its pair lacks what it needs."""
    if cell.plain:
        return cell.baseline.model_copy(update={"drafter": cell.drafter})
    draft = draft_of(cell)
    if cell.drafter == UNCACHED:
        return cell.model_copy(update={"draft_dtype": None, "window": "constant"})
    return cell if has_model(parse(draft)) else cell.model_copy(update={"draft_dtype": None})


def _check_prompts(sheet: Sheet, wanted: SweepConfig, cell: RunConfig) -> None:
    """Raises InvalidSetting where there is no such domain, or too few prompts in it."""
    try:
        prompts_of(cell)
    except InvalidSetting as error:
        reason = str(error)
        if reason.startswith("prompts"):
            raise sheet.fault(("prompts",), reason) from None
        raise sheet.fault(("domains", wanted.domains.index(cell.domain)), f"domains: {reason}") from None


def _word(dtype: str | None) -> str | None:
    """The full name of a dtype that is given by a short form."""
    found = dtype_named(dtype)
    return None if found is None else word_of(found)
